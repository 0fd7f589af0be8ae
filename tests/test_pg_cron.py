"""Ticking by pg_cron, while no worker runs."""

from __future__ import annotations

import itertools
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest

from clusters import Cluster, Database
from engine import call, claim_one, enqueue, kill_worker, refused, rows, value, workflow


@pytest.mark.pg(15)
def test_31_with_pg_cron_everything_that_time_demands_is_done_while_no_worker_runs(own_cluster: Cluster) -> None:
    with own_cluster.connect("postgres") as conn:
        conn.execute("create extension pg_cron")
        conn.execute("create extension durable")
        orphan, delayed = enqueue(conn), enqueue(conn, run_at=value(conn, "select now() + interval '2 seconds'"))
        late = enqueue(conn, queue="late", timeout="2 seconds")
        claim_one(conn, "dead", ["late"])
        claim_one(conn, "dead")
        call(conn, "schedule", "often", "2 seconds", "w", overlap="allow")
        call(conn, "schedule", "chain", "2 seconds", "w", overlap="queue_all", queue="chain")
        call(conn, "enable_pg_cron")
        call(conn, "enable_pg_cron")
        assert rows(conn, "select jobname, schedule from cron.job") == [("durable", "* * * * *")]
        kill_worker(conn, "dead")

        # pg_cron begins with the next full minute.
        deadline = time.monotonic() + 100
        ticks = "select count(distinct handled_at) from durable.schedule_firings where schedule = 'often'"
        while value(conn, ticks) < 4:
            assert time.monotonic() < deadline, rows(conn, "select * from cron.job_run_details")
            time.sleep(0.1)
        # A row for each due time since, and no longer one minute apart.
        fired = rows(
            conn,
            "select due_at, handled_at from durable.schedule_firings where schedule = 'often' order by due_at desc limit 4",
        )
        assert [a.due_at - b.due_at for a, b in itertools.pairwise(fired)] == [timedelta(seconds=2)] * 3
        assert len({row.handled_at for row in fired[:3]}) == 3
        assert workflow(conn, orphan).attempt == 2
        assert workflow(conn, delayed).wake_at is None
        assert workflow(conn, late).error["code"] == "WF010"
        assert value(conn, "select waiting from durable.schedules where name = 'chain'") > 0
        assert value(conn, "select count(*) from cron.job_run_details") == 1

        assert value(conn, "select durable.disable_pg_cron()")
        assert not value(conn, "select durable.disable_pg_cron()")
        assert rows(conn, "select from cron.job") == []


@pytest.mark.pg(15, 18)
def test_one_call_goes_by_the_time_of_each_tick(db: Database) -> None:
    conn = db.connect()
    delayed = enqueue(conn, run_at=value(conn, "select now() + interval '1 second'"))
    late = enqueue(conn, queue="late", timeout="1 second")
    claim_one(conn, queues=["late"])
    with ThreadPoolExecutor(1) as executor:
        ticking = executor.submit(db.connect().execute, "call durable._tick_for('4 seconds')")
        while workflow(conn, delayed).wake_at is not None or workflow(conn, late).error is None:
            assert not ticking.done()
            time.sleep(0.02)
        ticking.result()


def test_without_pg_cron_the_error_says_what_to_do(db: Database) -> None:
    conn = db.connect()
    for function in ("enable_pg_cron", "disable_pg_cron"):
        with refused("WF005") as info:
            call(conn, function)
        assert "create extension pg_cron" in (info.value.diag.message_hint or "")
        assert db.name in (info.value.diag.message_hint or "")
