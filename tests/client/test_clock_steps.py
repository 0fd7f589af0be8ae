"""Workers go on while the clock of the database is set back and forward: each workflow ends once, and each step runs once."""

from __future__ import annotations

from typing import Any

import pytest
from durable_client import Handle

from client import programs
from client.journal import Journal
from client.programs import app
from client.workers import Processes
from clusters import Cluster, Database
from engine import call, value, wait_until
from stepped_clock import SteppedClock

pytestmark = pytest.mark.pg(15)
PATIENCE = 60.0


@pytest.fixture
def clock(own_cluster: Cluster) -> SteppedClock:
    return SteppedClock(own_cluster)


@pytest.fixture
def own_db(own_cluster: Cluster, clock: SteppedClock) -> Database:
    return own_cluster.create_database()


def test_40_workers_go_on_while_the_clock_is_set_back_and_forward(
    clock: SteppedClock, own_db: Database, own_processes: Processes, journal: Journal
) -> None:
    conn = own_db.connect()
    conn.execute("create table bookings (n int)")
    call(conn, "schedule", "each second", "1 second", "leaf", '["scheduled", "good"]', overlap="allow")
    for _ in range(2):
        own_processes.start(concurrency=50)
    wait_until(conn, "select count(*) = 2 from durable.workers where session_lock")
    handles: list[Handle[Any]] = []
    # The last is where it is right, and all of them but the first few are set after the clock was ahead.
    for n, place in enumerate((0.0, -0.05, -1.0, -600.0, 7200.0, 0.0)):
        handles += app.enqueue_many(programs.mixed, range(100 * n, 100 * n + 20))
        handles += app.enqueue_many(programs.plain_mixed, range(100 * n + 50, 100 * n + 70))
        handles.append(app.enqueue(programs.knocking))
        waiting = [app.enqueue(programs.receiving, [f"receiver {n}-{m}", 1]) for m in range(5)]
        branching = app.enqueue(programs.branching, f"branch {n}")
        wait_until(
            conn, "select count(*) >= 5 from durable.live_workflows where name = 'receiving' and status = 'waiting'"
        )
        clock.set(place)
        for each in waiting:
            each.send("mail", n)
        handles += [*waiting, branching, app.enqueue(programs.sleeping, [f"sleeper {n}", "500ms"])]
        # A sleep that is set while the clock is ahead would last until it is there again.
        wait_until(
            conn, "select not exists (select from durable.live_workflows where name in ('receiving', 'sleeping'))"
        )
    since = value(conn, "select durable._now()")
    for handle in handles:
        handle.result(timeout=PATIENCE)
    wait_until(
        conn, "select count(*) >= 2 from durable.schedule_firings where outcome = 'fired' and due_at > %s", since
    )
    call(conn, "unschedule", "each second")
    wait_until(conn, "select not exists (select from durable.live_workflows)")
    assert value(conn, "select count(*) from durable.workflows where status <> 'completed' and parent_id is null") == 0
    assert value(conn, "select sum(crashes) + sum(attempt - 1) from durable.workflows") == 0
    # No worker was taken for dead.
    assert value(conn, "select count(*) from durable.workers") == 2
    assert value(conn, "select count(*) = count(distinct n) from bookings")
    assert value(conn, "select count(*) from bookings") == 6 * 40
    notes = [tuple(note) for note in journal.read() if str(note[1]).startswith(("receiver", "sleeper"))]
    assert len(notes) == len(set(notes)) == 6 * 5 + 6 * 2
