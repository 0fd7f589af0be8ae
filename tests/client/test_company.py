"""Other people's transactions: two workers go on while somebody holds each lock that a user can take.

The calls are those of the catalog: a new function without a call here fails the tests.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import psycopg
import pytest

from client import programs
from client.journal import Journal
from client.programs import app
from client.workers import Process, Processes
from clusters import Database
from engine import Connection, call, enqueue, rows, value, wait_until

pytestmark = pytest.mark.pg(15)

# What a user may call while a transaction of theirs is open. id and lease are of a workflow that a worker is running, which
# nobody else uses; spare is one that is paused, and done and failed are ones that have failed.
CALLS = {
    "attach": "('{worker}')",
    "backfill_schedule": "('{schedule}', now() - interval '3 seconds', now() - interval '1 second', dry_run => false)",
    "begin_step": "('{id}', {lease}, 'own')",
    "build": "()",
    "cancel": "('{id}')",
    "checkpoint": "('{id}', {lease}, 'square', '1')",
    "checkpoint_many": "('{{{id}}}', '{{{lease}}}', '{{square}}', '{{1}}')",
    "child_results": "('{id}')",
    "claim": "('{worker}', '{{aside}}', 5)",
    "complete": "('{id}', {lease}, '1')",
    "complete_many": "('{{{id}}}', '{{{lease}}}', '{{1}}')",
    "configure": "('retention', '40 days')",
    "continue_as_new": "('{id}', {lease})",
    "cron_next": "('@daily', now())",
    "decide": "('{approval}', 'approved')",
    "disable_pg_cron": "()",
    "emit": "('an event')",
    "enable_pg_cron": "()",
    "enqueue": "('chain', queue => 'new', key => 'the key')",
    "enqueue_many": "('chain', '{{1,2}}', queue => 'new too')",
    "fail": "('{id}', {lease}, '{{\"type\": \"E\"}}')",
    "fail_many": "('{{{id}}}', '{{{lease}}}', array['{{\"type\": \"E\"}}'::jsonb])",
    "fail_step": "('{id}', {lease}, 'own', '{{\"type\": \"E\"}}', 1, 3)",
    "flush": "('{{{id}}}', '{{{lease}}}', '{{own}}', '{{1}}', '{{1}}', '{{1}}', '{{{id}}}', '{{{lease}}}', '{{1}}')",
    "fork": "('{id}')",
    "fork_many": "('{{{id}}}')",
    "grant_admin": "('postgres')",
    "grant_approver": "('postgres')",
    "grant_client": "('postgres')",
    "grant_observer": "('postgres')",
    "grant_worker": "('postgres')",
    "health": "()",
    "heartbeat": (
        "('{worker}', '{{{id}}}', '{{{lease}}}', jsonb_build_array(jsonb_build_object('workflow_id', '{id}', "
        "'lease', {lease}, 'step_name', 'square#2', 'attempt', 1, 'elapsed_ms', 10)))"
    ),
    "history": "('{id}')",
    "idle": "('{worker}', '{{default,aside}}')",
    "leave": "('worker in sql')",
    "next_firings": "('{schedule}')",
    "pause": "('{id}')",
    "pause_schedule": "('{schedule}')",
    "publish": "('{id}', {lease}, 'key', '1')",
    "recheck_waits": "('{{{id}}}')",
    "reclaim": "('{worker}')",
    "repair_sequences": "()",
    "recover": "()",
    "release_many": "('{{{id}}}', '{{{lease}}}')",
    "request_approval": "('{id}', {lease}, 'asked', 'May it?')",
    "result": "('{id}')",
    "resume": "('{spare}')",
    "resume_schedule": "('{schedule}')",
    "retain": "('40 days', queue => 'aside')",
    "retry": "('{done}')",
    "retry_many": "('{{{failed}}}')",
    "schedule": "('{schedule}', '2 seconds', 'chain', queue => 'aside')",
    "send": "('{waiting}', 'mail', '1')",
    "start_children": "('{id}', {lease}, 'children', 'chain', '{{1,2}}', queue => 'aside')",
    "start_step": "('{id}', {lease}, 'own')",
    "state": "('{id}')",
    "status": "('{id}')",
    "step_result": "('{id}', 'square')",
    "suspend": "('{id}', {lease}, 'why')",
    "tick": "()",
    "trigger_schedule": "('{schedule}')",
    "unschedule": "('{schedule}')",
    "version": "()",
    "wait": "('{id}', {lease}, 'a wait', '[{{\"message\": \"never\"}}]')",
    "wait_many": "('{{{id}}}', '{{{lease}}}', '{{a wait}}', array['[{{\"event\": \"never\"}}]'::jsonb])",
    "warn": "('{id}', {lease}, 'careful')",
}
# There is no pg_cron in these databases.
REFUSED = {"enable_pg_cron", "disable_pg_cron"}
# Everybody else goes on within a second. More is allowed here, where the machine may be busy; nobody's transaction ends meanwhile.
PATIENCE = 25.0


def functions(conn: Connection) -> list[str]:
    names = value(
        conn,
        "select array_agg(distinct proname::text order by proname::text) from pg_proc"
        " where pronamespace = 'durable'::regnamespace and proname !~ '^_'",
    )
    assert set(names) == set(CALLS), "each public function has a call here"
    return list(names)


@dataclass
class Company:
    """Two workers, what they run, and the transactions that stay open beside them."""

    db: Database
    journal: Journal
    workers: list[Process]
    conn: Connection
    open: list[Connection] = field(default_factory=list)
    rounds: int = 0

    def victims(self, names: Sequence[str]) -> dict[str, dict[str, Any]]:
        """For each name a workflow that is running in a worker, and one of each other kind that a call may take."""
        for name in names:
            self.journal.hold(f"{name}-1")
            enqueue(self.conn, "chain", input={"name": name, "steps": 2}, tags={"of": name})
            call(self.conn, "schedule", f"schedule of {name}", "1 hour", "chain", queue="aside")
        for name in names:
            self.journal.wait("square", name, 1)
        found = {}
        for name in names:
            (row,) = rows(
                self.conn,
                "select l.workflow_id, l.lease, w.name as worker from durable.live_workflows l join durable.workers w"
                " using (worker_id) where l.tags ->> 'of' = %s",
                name,
            )
            found[name] = {
                "id": row.workflow_id,
                "lease": row.lease,
                "worker": row.worker,
                "schedule": f"schedule of {name}",
            }
        return found

    def more(self) -> dict[str, Any]:
        """A workflow that waits for mail, one that is paused, one that has failed, and an open question."""
        waiting = enqueue(self.conn, "receiving", input=json.dumps(["waiting", 1]))
        spare, done, failed, asks = (enqueue(self.conn, "chain", queue="by hand") for _ in range(4))
        held = {row.workflow_id: row.lease for row in call(self.conn, "claim", "worker in sql", ["by hand"], 4)}
        for each in (done, failed):
            call(self.conn, "fail", each, held[each], {"type": "E"})
        ((approval,),) = call(self.conn, "request_approval", asks, held[asks], "asked", "May it?")
        call(self.conn, "pause", spare)
        wait_until(self.conn, "select status = 'waiting' from durable.workflows where workflow_id = %s", waiting)
        return {"waiting": waiting, "spare": spare, "done": done, "failed": failed, "approval": approval}

    def begin(self) -> Connection:
        conn = self.db.connect(autocommit=False)
        self.open.append(conn)
        return conn

    def call(self, names: Sequence[str]) -> dict[str, dict[str, Any]]:
        """Calls these functions, each in a transaction that stays open; returns what they were given."""
        victims, more = self.victims(names), self.more()
        granting = self.begin()
        for name in names:
            # Grants of one role wait for each other, as those of Postgres do.
            conn = granting if name.startswith("grant_") else self.begin()
            query = f"select * from durable.{name}{CALLS[name].format(**victims[name], **more)}".encode()
            if name in REFUSED:
                with pytest.raises(psycopg.Error):
                    conn.execute(query)
            else:
                conn.execute(query)
        return victims

    def end(self) -> None:
        for conn in self.open:
            conn.rollback()
        self.open.clear()

    def goes_on(self) -> None:
        """Something of everything is enqueued now, and comes to its end."""
        self.rounds += 1
        name = f"round {self.rounds}"
        fired = self.firings()
        handle = app.enqueue(programs.everything, name)
        late = enqueue(self.conn, "receiving", input=json.dumps([name, 1]), timeout="100 milliseconds")
        call(self.conn, "send", handle.workflow_id, "mail", "6")
        call(self.conn, "emit", f"event of {name}", "7")
        assert handle.result(timeout=PATIENCE) == [3, 2, "launched", 3, 4, 5, 6, 7]
        wait_until(self.conn, "select durable.status(%s) = 'failed'", late)
        give_up = time.monotonic() + PATIENCE
        while self.firings() == fired:
            assert time.monotonic() < give_up, "the schedule does not fire any more"
            time.sleep(0.05)

    def firings(self) -> int:
        count: int = value(
            self.conn,
            "select count(*) from durable.schedule_firings where schedule ~ 'each second' and outcome = 'fired'",
        )
        return count

    def is_unharmed(self) -> None:
        """The same two workers, none of which was taken for dead or lost anything by a fault."""
        assert [worker.running() for worker in self.workers] == [True, True]
        assert (
            value(self.conn, "select count(*) from durable.workers where died_at is not null and not left_by_itself")
            == 0
        )
        assert rows(self.conn, "select workflow_id from durable.workflows where crashes > 0 or suspicions > 0") == []
        for worker in self.workers:
            for word in ("Traceback", "ERROR"):
                assert word not in worker.log()


@contextlib.contextmanager
def company(db: Database, processes: Processes, journal: Journal) -> Iterator[Company]:
    conn = db.connect()
    conn.execute("create table bookings (n integer)")
    call(conn, "configure", "retry_initial", "20 milliseconds")
    # Three, for a tick that stays open keeps what it has fired.
    for n in range(3):
        call(
            conn,
            "schedule",
            f"each second {n}",
            "3 seconds",
            "leaf",
            json.dumps(["scheduled", n]),
            starts_at=f"2020-01-01 00:00:0{n}Z",
        )
    company = Company(db, journal, [processes.start(dsn=db.dsn), processes.start(dsn=db.dsn)], conn)
    try:
        company.goes_on()
        yield company
        company.is_unharmed()
    finally:
        company.end()


def test_no_call_in_a_transaction_that_stays_open_stops_the_workflows_of_others(
    db: Database, processes: Processes, journal: Journal
) -> None:
    with company(db, processes, journal) as held:
        names = functions(held.conn)
        victims = held.call(names)
        held.goes_on()
        # What their calls hold is reported, and waits for them alone.
        for name in names:
            journal.release(f"{name}-1")
        held.goes_on()
        # As Django does at the end of each block.
        for conn in held.open:
            if conn.info.transaction_status == psycopg.pq.TransactionStatus.INTRANS:
                conn.execute("set constraints all immediate")
                conn.execute("set constraints all deferred")
        held.goes_on()
        held.end()
        for name in names:
            wait_until(held.conn, "select durable.status(%s) = 'completed'", victims[name]["id"])


def test_no_transaction_that_is_prepared_stops_the_workflows_of_others(
    preparing_db: Database, processes: Processes, journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DURABLE_DSN", preparing_db.dsn)
    with company(preparing_db, processes, journal) as held:
        # What a worker calls may ring, and so cannot be prepared.
        of_workers = {
            name
            for (name,) in rows(
                held.conn,
                "select split_part(split_part(f::text, '.', 2), '(', 1) from durable._functions_of('worker') f",
            )
        }
        names = [name for name in functions(held.conn) if name not in of_workers | REFUSED]
        victims = held.call(names)
        prepared = [f"{preparing_db.name} {n}" for n in range(len(held.open))]
        for conn, name in zip(held.open, prepared, strict=True):
            conn.execute(f"prepare transaction '{name}'".encode())
        held.goes_on()
        # The first use of a queue holds a key of the engine.
        wait_until(
            held.conn,
            "select count(*) > 0 from durable.health() where detail ~ %s",
            f"prepared transaction '{preparing_db.name} [0-9]+' holds the advisory key durable.queues",
        )
        for name in prepared:
            held.conn.execute(f"rollback prepared '{name}'".encode())
        for name in names:
            journal.release(f"{name}-1")
            wait_until(held.conn, "select durable.status(%s) = 'completed'", victims[name]["id"])


def tables(conn: Connection) -> list[str]:
    """All tables of the engine, without the partitions, which are locked with their parents."""
    return [
        name
        for (name,) in rows(
            conn,
            "select c.oid::regclass::text from pg_class c where c.relnamespace = 'durable'::regnamespace"
            " and c.relkind in ('r', 'p') and not c.relispartition order by 1",
        )
    ]


def test_locks_that_allow_others_to_write_stop_nobody(db: Database, processes: Processes, journal: Journal) -> None:
    with company(db, processes, journal) as held:
        for mode in ("access share", "row share", "row exclusive", "share update exclusive"):
            conn = held.begin()
            conn.execute(f"lock table {', '.join(tables(held.conn))} in {mode} mode".encode())
            held.goes_on()
            held.end()
        conn = held.begin()
        conn.execute(f"analyze {', '.join(tables(held.conn))}".encode())
        held.goes_on()


@pytest.mark.parametrize("mode", ["share", "share row exclusive", "exclusive", "access exclusive"])
def test_after_a_lock_that_forbids_to_write_all_go_on(
    db: Database, processes: Processes, journal: Journal, mode: str
) -> None:
    with db.connect() as conn:
        call(conn, "configure", "lease", "3 seconds")
    with company(db, processes, journal) as held:
        conn = held.begin()
        conn.execute(f"lock table {', '.join(tables(held.conn))} in {mode} mode".encode())
        # Longer than a lease.
        time.sleep(4)
        held.end()
        held.goes_on()


def test_after_a_lock_on_any_one_table_all_go_on(db: Database, processes: Processes, journal: Journal) -> None:
    with db.connect() as conn:
        call(conn, "configure", "lease", "3 seconds")
    with company(db, processes, journal) as held:
        for name in tables(held.conn):
            conn = held.begin()
            conn.execute(f"lock table {name} in access exclusive mode".encode())
            # Longer than a lease, where a heartbeat may need it.
            time.sleep(4 if name in ("durable.workers", "durable.live_workflows", "durable.setting_defaults") else 0.5)
            held.end()
        held.goes_on()


def test_whoever_holds_a_key_of_the_engine_stops_nobody_and_is_named(
    db: Database, processes: Processes, journal: Journal
) -> None:
    keys = ["durable.tick", "durable.recover", "durable.wake_marks"]
    pairs = ["durable.lines", "durable.queues", "durable.turns"]
    with company(db, processes, journal) as held:
        holder = db.connect(application_name="the holder")
        for key in keys:
            holder.execute("select pg_advisory_lock(hashtext(%s))", [key])
        for key in pairs:
            holder.execute(
                "select pg_advisory_lock(hashtext(%s), hashtext(k)), pg_advisory_lock(hashtext(%s), n)"
                " from unnest(array['', 'default']) as k, generate_series(0, 63) as n",
                [key, key],
            )
        held.goes_on()
        found = [row.detail for row in call(held.conn, "health") if row.check == "locks"]
        for key in keys + pairs:
            assert any(key in detail and "the holder" in detail for detail in found), f"{key} is not in {found}"


# The rows of these are what goes on: a schedule whose row is locked does not fire.
OWN_ROWS = {"durable.schedules"}


def test_rows_that_somebody_has_locked_by_hand_stop_nobody_else(
    db: Database, processes: Processes, journal: Journal
) -> None:
    with company(db, processes, journal) as held:
        call(held.conn, "schedule", "queued", "1 second", "held", overlap="queue_all", queue="by hand")
        call(held.conn, "emit", "an event")
        wait_until(held.conn, "select waiting > 0 from durable.schedules where name = 'queued'")
        for name in tables(held.conn):
            if name in OWN_ROWS:
                continue
            waiting = enqueue(held.conn, "receiving", input=json.dumps([name, 1]))
            wait_until(held.conn, "select status = 'waiting' from durable.workflows where workflow_id = %s", waiting)
            held.begin().execute(f"select from {name} for update".encode())
            call(held.conn, "send", waiting, "mail", "6")
            if name == "durable.schedule_firings":
                # The next one is to start now.
                held.conn.execute("select durable.cancel(workflow_id) from durable.schedule_firings where open")
            held.goes_on()
            held.end()
            wait_until(held.conn, "select durable.status(%s) = 'completed'", waiting)


@pytest.mark.parametrize("how", ["savepoint", "shared"])
def test_reports_of_many_that_somebody_holds_in_a_savepoint_or_shares_hold_nobody_up(
    db: Database, processes: Processes, journal: Journal, how: str
) -> None:
    with company(db, processes, journal) as held:
        names = [f"held {n}" for n in range(12)]
        victims = held.victims(names)
        ids = [victims[name]["id"] for name in names]
        holder = held.begin()
        if how == "savepoint":
            holder.execute("savepoint a")
            for workflow_id in ids:
                call(holder, "cancel", workflow_id)
            holder.execute("release a")
        else:
            for conn in (holder, held.begin()):
                conn.execute("select from durable.live_workflows where workflow_id = any(%s) for share", [ids])
        for name in names:
            journal.release(f"{name}-1")
        for _ in range(3):
            held.goes_on()
        held.end()
        for workflow_id in ids:
            wait_until(held.conn, "select durable.status(%s) = 'completed'", workflow_id)
