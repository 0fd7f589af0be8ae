"""A clock that is set back or forward delays what was set before by at most the step, and what is set after it by nothing."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from typing import Any
from uuid import UUID

import psycopg
import pytest
from psycopg import sql

from clusters import Cluster, Database
from engine import (
    Connection,
    advance,
    call,
    claim,
    claim_one,
    enqueue,
    rows,
    steps,
    value,
    wait_until,
    workflow,
)
from stepped_clock import SteppedClock

HOUR = 3600
# Where the clock goes, in seconds from the true time. What is left to wait for afterwards is half a second: with a step of two
# minutes or more, a test that waits for a minute tells the one from the other.
PATHS = {
    "50 milliseconds back": (0, -0.05),
    "a second back": (0, -1),
    "two minutes back": (0, -120),
    "two hours back": (0, -2 * HOUR),
    "two hours forward and back again": (0, 2 * HOUR, 0),
    "forty days forward and back again": (0, 40 * 24 * HOUR, 0),
}
SOON = "500 milliseconds"


class Background:
    """Threads that do something again and again, each on a connection of its own."""

    def __init__(self, db: Database) -> None:
        self._db = db
        self._stop = threading.Event()
        self._pool = ThreadPoolExecutor(10)
        self._running: list[Any] = []

    def start(self, work: Callable[[Connection], None], pause: float) -> None:
        conn = self._db.connect()

        def loop() -> None:
            while not self._stop.is_set():
                work(conn)
                time.sleep(pause)

        self._running.append(self._pool.submit(loop))

    def stop(self) -> None:
        self._stop.set()
        self._pool.shutdown()
        for running in self._running:
            running.result()


@contextmanager
def background(db: Database) -> Iterator[Background]:
    threads = Background(db)
    try:
        yield threads
    finally:
        threads.stop()


def tick(conn: Connection) -> dict[str, Any]:
    report: dict[str, Any] = value(conn, "select durable.tick()")
    assert {name: part for name, part in report.items() if isinstance(part, dict)} == {}
    return report


def ready(conn: Connection, workflow_ids: list[UUID]) -> None:
    """Returns when all of them are in line."""
    wait_until(
        conn,
        "select count(*) = %s from durable.live_workflows where workflow_id = any(%s) and ready_seq is not null",
        len(workflow_ids),
        workflow_ids,
    )


class Load:
    """Workflows that are enqueued and completed all the time."""

    def __init__(self, threads: Background) -> None:
        self.made: list[UUID] = []
        self._done: list[UUID] = []
        self._is_over = threading.Event()
        for n in range(2):
            threads.start(self._produce, 0.02)
            threads.start(lambda conn, n=n: self._consume(conn, f"consumer {n}"), 0.01)  # type: ignore[misc]

    def _produce(self, conn: Connection) -> None:
        if not self._is_over.is_set():
            self.made += [row[0] for row in call(conn, "enqueue_many", "loaded", [{}, {}], queue="load")]

    def _consume(self, conn: Connection, worker: str) -> None:
        assert call(conn, "heartbeat", worker) == []
        for claimed in claim(conn, worker, 5, ["load"]):
            assert claimed.attempt == 1
            call(conn, "complete", claimed.workflow_id, claimed.lease)
            self._done.append(claimed.workflow_id)

    def end(self, conn: Connection) -> None:
        self._is_over.set()
        wait_until(conn, "select not exists (select from durable.live_workflows where queue = 'load')")


    def check(self) -> None:
        assert Counter(self._done) == Counter(self.made)


class Waits:
    """A wait for each kind of fact, begun before a step; the facts come after it."""

    def __init__(self, conn: Connection, name: str) -> None:
        self.queue = f"waits {name}"
        self.event = f"event {name}"
        self.conditions: dict[UUID, str] = {}
        for kind in ("message", "event", "children", "approval"):
            enqueue(conn, kind, queue=self.queue)
        for claimed in claim(conn, "waiter", 10, [self.queue]):
            of = (claimed.workflow_id, claimed.lease)
            condition = {"message": "topic", "event": self.event, "approval": "ask"}.get(claimed.name)
            if claimed.name == "children":
                (started,) = call(conn, "start_children", *of, "start", "child", [{}], queue=f"children {name}")
                condition = str(started[0])
            elif claimed.name == "approval":
                call(conn, "request_approval", *of, "ask", "may I?")
            self.conditions[claimed.workflow_id] = f'[{{"{claimed.name}": "{condition}"}}]'
            (waited,) = call(conn, "wait", *of, "wait", self.conditions[claimed.workflow_id])
            assert waited.outcome == "parked"
        self.name = name

    def end(self, conn: Connection) -> None:
        for workflow_id in self.conditions:
            if workflow(conn, workflow_id).name == "message":
                call(conn, "send", workflow_id, "topic")
        call(conn, "emit", self.event)
        child = claim_one(conn, "worker of children", [f"children {self.name}"])
        call(conn, "complete", child.workflow_id, child.lease)
        for (approval_id,) in rows(
            conn, "select approval_id from durable.approvals where workflow_id = any(%s)", list(self.conditions)
        ):
            call(conn, "decide", approval_id, "approved")
        ready(conn, list(self.conditions))
        for claimed in claim(conn, "waiter", 10, [self.queue]):
            of = (claimed.workflow_id, claimed.lease)
            (waited,) = call(conn, "wait", *of, "wait", self.conditions.pop(claimed.workflow_id))
            assert waited.outcome == "ok", (claimed.name, waited)
            call(conn, "complete", *of)
        assert self.conditions == {}


def lose(conn: Connection, name: str) -> UUID:
    """A workflow whose worker is never heard of again, and had no session that could tell."""
    enqueue(conn, "lost", queue=name)
    return claim_one(conn, name, [name]).workflow_id  # type: ignore[no-any-return]


@contextmanager
def kept(db: Database, threads: Background) -> Iterator[None]:
    """A worker that lives keeps what it runs, under the lease that it has."""
    conn = db.connect()
    enqueue(conn, "kept", queue="kept")
    claimed = claim_one(conn, "keeper", ["kept"])

    def beat(conn: Connection) -> None:
        assert call(conn, "heartbeat", "keeper", [claimed.workflow_id], [claimed.lease]) == []

    threads.start(beat, 0.3)
    yield
    call(conn, "complete", claimed.workflow_id, claimed.lease)


def set_after(conn: Connection) -> None:
    """Each thing that takes half a second, set now, takes no longer because of what the clock was before."""
    tried, slept, starts, limited, stepped = (
        enqueue(conn, name, queue="after", max_attempts=2, timeout=SOON if name == "limited" else None)
        for name in ("tried", "slept", "starts", "limited", "stepped")
    )
    leases = {claimed.workflow_id: claimed.lease for claimed in claim(conn, "after", 10, ["after"])}
    call(conn, "complete", starts, leases[starts])
    starts = enqueue(conn, queue="after", run_at=value(conn, f"select durable._now() + interval '{SOON}'"))
    call(conn, "fail", tried, leases[tried], {"message": "no"}, SOON)
    (waited,) = call(conn, "wait", slept, leases[slept], "sleep", "[]", timeout=SOON)
    assert waited.outcome == "parked"
    ((pause,),) = call(conn, "fail_step", stepped, leases[stepped], "s", {"message": "no"}, 1, 2, SOON, 1, SOON)
    assert timedelta(0) < pause <= timedelta(seconds=0.5)
    lost = lose(conn, "lost after it")
    ready(conn, [tried, slept, starts, lost])
    wait_until(conn, "select not exists (select from durable.live_workflows where workflow_id = %s)", limited)
    assert workflow(conn, limited).error["code"] == "WF010"


def check_firings(conn: Connection, since: Any) -> None:
    """From now on it fires each second, and no due time has more than one workflow."""
    wait_until(conn, "select count(*) >= 3 from durable.schedule_firings where outcome = 'fired' and due_at > %s", since)
    assert value(
        conn, "select count(*) = count(distinct input ->> 'due_at') from durable.workflows where name = 'fire'"
    )
    fired = rows(
        conn,
        """select s.at, f.outcome
           from generate_series(date_trunc('second', %s) + interval '1 second', (
             select max(due_at) from durable.schedule_firings where due_at <= durable._now()), interval '1 second') as s(at)
           left join durable.schedule_firings f on f.schedule = 'each second' and f.due_at = s.at""",
        since,
    )
    assert {firing.outcome for firing in fired} == {"fired"}


@pytest.mark.pg(15)
@pytest.mark.parametrize("path", PATHS)
def test_40_a_step_of_the_clock_delays_only_what_was_set_before_it(own_cluster: Cluster, path: str) -> None:
    clock = SteppedClock(own_cluster)
    db = own_cluster.create_database()
    conn = db.connect()
    call(conn, "configure", "lease", "2 seconds")
    for name in ("retention", "firing_retention", "event_retention"):
        call(conn, "configure", name, "400 days")
    call(conn, "schedule", "each second", "1 second", "fire", queue="fires", overlap="allow")
    with background(db) as threads, ExitStack() as stack:
        threads.start(lambda conn: tick(conn) and None, 0.1)
        load = Load(threads)
        stack.enter_context(kept(db, threads))
        waits, lost = [], []
        for place in PATHS[path][:-1]:
            clock.set(place)
            fired = value(conn, "select count(*) from durable.schedule_firings where outcome = 'fired'")
            waits.append(Waits(conn, str(place)))
            lost.append(lose(conn, f"lost at {place}"))
            wait_until(conn, f"select count(*) > {fired} from durable.schedule_firings where outcome = 'fired'")
        clock.set(PATHS[path][-1])
        since = value(conn, "select durable._now()")
        set_after(conn)
        for each in waits:
            each.end(conn)
        # Of these the lease was set before it, and they do not wait for it either.
        ready(conn, lost)
        check_firings(conn, since)
        load.end(conn)
    load.check()
    assert rows(conn, "select name, error from durable.workflows where status in ('failed', 'cancelled')") == [
        ("limited", {"code": "WF010", "type": "WorkflowTimedOut", "message": "the timeout of the workflow has passed"})
    ]


@pytest.mark.pg(15)
def test_a_server_that_started_while_the_clock_was_ahead_knows_who_is_gone(own_cluster: Cluster) -> None:
    clock = SteppedClock(own_cluster)
    db = own_cluster.create_database()
    clock.set(2 * HOUR)
    own_cluster.stop()
    own_cluster.start()
    conn = db.connect()
    enqueue(conn)
    session = db.connect()
    call(session, "attach", "worker")
    claimed = claim_one(session)
    clock.set(0)
    assert value(conn, "select pg_postmaster_start_time() > durable._now()")
    tick(conn)
    session.close()
    with background(db) as threads:
        # Long before its lease of two hours and more has run out.
        threads.start(lambda conn: tick(conn) and None, 0.1)
        ready(conn, [claimed.workflow_id])
