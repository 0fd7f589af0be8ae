"""A clock that is set back or forward delays what was set before by at most the step, and what is set after it by nothing."""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from typing import Any
from uuid import UUID

import pytest

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

    def start(self, work: Callable[[Connection], object], pause: float) -> None:
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
        self._is_over = False
        self._making = threading.Lock()
        for n in range(2):
            threads.start(self._produce, 0.02)
            threads.start(lambda conn, n=n: self._consume(conn, f"consumer {n}"), 0.01)  # type: ignore[misc]

    def _produce(self, conn: Connection) -> None:
        with self._making:
            if not self._is_over:
                self.made += [row[0] for row in call(conn, "enqueue_many", "loaded", [{}, {}], queue="load")]

    def _consume(self, conn: Connection, worker: str) -> None:
        assert call(conn, "heartbeat", worker) == []
        for claimed in claim(conn, worker, 5, ["load"]):
            assert claimed.attempt == 1
            call(conn, "complete", claimed.workflow_id, claimed.lease)
            self._done.append(claimed.workflow_id)

    def end(self, conn: Connection) -> None:
        with self._making:
            self._is_over = True
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
        for claimed in self._claim(conn):
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

    def _claim(self, conn: Connection) -> list[Any]:
        # A claim does not renew the lease, of which little may be left.
        call(conn, "heartbeat", "waiter")
        return claim(conn, "waiter", 10, [self.queue])

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
        for claimed in self._claim(conn):
            of = (claimed.workflow_id, claimed.lease)
            outcome = "waiting"
            # That is when somebody else looks at the same row; a worker asks again, too.
            while outcome == "waiting":
                outcome = call(conn, "wait", *of, "wait", self.conditions[claimed.workflow_id])[0].outcome
            assert outcome == "ok", claimed.name
            call(conn, "complete", *of)
            del self.conditions[claimed.workflow_id]
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
    wait_until(
        conn, "select count(*) >= 3 from durable.schedule_firings where outcome = 'fired' and due_at > %s", since
    )
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
        threads.start(tick, 0.1)
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
        threads.start(tick, 0.1)
        ready(conn, [claimed.workflow_id])


# All that is stored


def tables_with_times(conn: Connection) -> dict[str, list[str]]:
    found = rows(
        conn,
        """select c.relname, array_agg(a.attname::text order by a.attnum) as times
           from pg_class c join pg_attribute a on a.attrelid = c.oid
           where c.relnamespace = 'durable'::regnamespace and c.relkind in ('r', 'p') and not c.relispartition
             and a.atttypid = 'timestamptz'::regtype and not a.attisdropped and c.relname not like '%_shape'
           group by c.relname""",
    )
    return {row.relname: row.times for row in found}


def put_forward(conn: Connection, table: str, columns: list[str]) -> None:
    """As if what stands in a table had been written while the clock was an hour ahead."""
    changes = ", ".join(f"{column} = {column} + interval '1 hour'" for column in columns)
    conn.execute(f"update durable.{table} set {changes}".encode())


def at_work(db: Database) -> tuple[Connection, UUID]:
    """A database in which all of it is in use."""
    conn = db.connect()
    call(conn, "configure", "lease", "1 second")
    call(conn, "schedule", "each second", "1 second", "fire", queue="fires", overlap="allow")
    enqueue(conn)
    claimed = claim_one(conn)
    Waits(conn, "before")
    call(conn, "complete", claimed.workflow_id, claimed.lease)
    call(conn, "idle", "worker")
    enqueue(conn, "other")
    lost = lose(conn, "lost")
    with background(db) as threads:
        threads.start(tick, 0.1)
        wait_until(conn, "select count(*) > 0 from durable.schedule_firings where outcome = 'fired'")
    return conn, lost


@pytest.mark.pg(15)
def test_nothing_that_is_stored_holds_up_what_comes_after_a_step_back(db: Database) -> None:
    tables = tables_with_times(db.connect())
    assert {"workers", "line_marks", "schedules", "live_workflows", "lines", "wake_marks"} <= set(tables)
    # How far the timers have come is written at each tick while the clock is ahead; the hour is in all of it, too.
    cases = [{name: tables[name], "line_marks": tables["line_marks"]} for name in tables] + [tables]

    def check(case: dict[str, list[str]]) -> None:
        other = db.cluster.create_database()
        conn, lost = at_work(other)
        for table, columns in case.items():
            put_forward(conn, table, columns)
        since = value(conn, "select durable._now()")
        with background(other) as threads:
            threads.start(tick, 0.1)
            load = Load(threads)
            set_after(conn)
            ready(conn, [lost])
            check_firings(conn, since)
            load.end(conn)
        load.check()
        other.drop()

    with ThreadPoolExecutor(4) as pool:
        for case, done in [(case, pool.submit(check, case)) for case in cases]:
            assert done.result() is None, case


@pytest.mark.parametrize("back", ["50 milliseconds", "1 hour", "200 years"])
def test_a_wait_whose_start_is_yet_to_come_ends_as_any_other(db: Database, back: str) -> None:
    conn = db.connect()
    workflow_id = enqueue(conn)
    claimed = claim_one(conn)
    call(conn, "wait", workflow_id, claimed.lease, "wait", '[{"message": "topic"}]')
    conn.execute(f"update durable.open_steps set started_at = started_at + interval '{back}'".encode())
    call(conn, "send", workflow_id, "topic")
    claimed = claim_one(conn)
    ((waited),) = call(conn, "wait", workflow_id, claimed.lease, "wait", '[{"message": "topic"}]')
    assert waited.outcome == "ok"
    step = steps(conn, workflow_id)["wait"]
    assert step.started_at <= step.completed_at


def test_a_wait_that_seems_to_take_centuries_ends_as_any_other(db: Database) -> None:
    conn = db.connect()
    workflow_id = enqueue(conn)
    claimed = claim_one(conn)
    call(conn, "wait", workflow_id, claimed.lease, "wait", '[{"message": "topic"}]')
    advance(conn, "200 years")
    call(conn, "send", workflow_id, "topic")
    claimed = claim_one(conn)
    ((waited),) = call(conn, "wait", workflow_id, claimed.lease, "wait", '[{"message": "topic"}]')
    assert waited.outcome == "ok"


def test_a_step_back_is_noticed_across_a_crash(db: Database) -> None:
    """What ticks note of the time is gone after one."""
    conn = db.connect()
    advance(conn, "1 hour")
    lose(conn, "lost")
    tick(conn)
    conn.execute("delete from durable.line_marks")
    advance(conn, "0")
    assert tick(conn)["set_back"] == 1
    assert tick(conn)["set_back"] == 0
    assert value(conn, "select expires_at < durable._now() + interval '31 seconds' from durable.workers")


def test_due_times_that_a_clock_ahead_passed_fire_when_they_come(db: Database) -> None:
    conn = db.connect()
    now = value(conn, "select durable._now()")
    call(conn, "schedule", "hourly", "1 hour", "w", starts_at=now + timedelta(minutes=10))
    call(conn, "schedule", "many", "1 second", "w", starts_at=now + timedelta(minutes=10), overlap="allow")
    call(
        conn, "schedule", "ends", "1 hour", "w", starts_at=now + timedelta(minutes=10), ends_at=now + timedelta(hours=2)
    )
    dues = {name: rows(conn, "select * from durable.next_firings(%s)", name) for name in ("hourly", "many", "ends")}
    tick(conn)
    advance(conn, "40 days")
    for _ in range(3):
        tick(conn)
    assert value(conn, "select count(*) from durable.schedule_firings where missed_until is not null") > 0
    advance(conn, "0")
    assert tick(conn)["set_back"] == 1
    assert tick(conn)["set_back"] == 0
    assert {name: rows(conn, "select * from durable.next_firings(%s)", name) for name in dues} == dues
    assert value(conn, "select count(*) from durable.schedule_firings where due_at < durable._now() + '39 days'") == 0
    # What had fired then does not fire again, and counts once.
    before = value(conn, "select count(*) from durable.schedule_firings where outcome = 'fired'")
    assert before == value(conn, "select sum(firings) from durable.schedules")
    advance(conn, "10 minutes 30 seconds")
    tick(conn)
    fired = rows(conn, "select schedule, count(*) from durable.schedule_firings where outcome = 'fired' group by 1")
    assert {row.schedule for row in fired} == {"hourly", "many", "ends"}
    assert value(conn, "select sum(firings) from durable.schedules") == sum(row.count for row in fired)


def test_a_due_time_that_has_fired_is_passed_over_when_it_comes_again(db: Database) -> None:
    """Its workflow is not cancelled for it, and it does not count twice."""
    conn = db.connect()
    starts_at = value(conn, "select durable._now() + interval '1 hour'")
    call(conn, "schedule", "s", "1 hour", "w", starts_at=starts_at, overlap="cancel", max_firings=3)
    advance(conn, "1 hour 1 second")
    tick(conn)
    (fired,) = rows(conn, "select * from durable.schedule_firings")
    assert fired.outcome == "fired"
    advance(conn, "0")
    tick(conn)
    assert value(conn, "select next_at from durable.schedules") == starts_at
    advance(conn, "1 hour 1 second")
    tick(conn)
    assert rows(conn, "select * from durable.schedule_firings") == [fired]
    assert workflow(conn, fired.workflow_id).status == "pending"
    assert value(conn, "select firings from durable.schedules") == 1
    assert value(conn, "select next_at > durable._now() from durable.schedules")


def test_a_jump_of_the_clock_takes_nothing_from_a_worker_that_lives(db: Database) -> None:
    conn = db.connect()
    enqueue(conn)
    tick(conn)
    claimed = claim_one(conn)
    advance(conn, "2 hours")
    tick(conn)
    assert call(conn, "heartbeat", "worker", [claimed.workflow_id], [claimed.lease]) == []
    # One that is not heard of again is dead when its lease has run out.
    for seconds in (10, 20, 29):
        advance(conn, f"2 hours {seconds} seconds")
        tick(conn)
        assert workflow(conn, claimed.workflow_id).status == "running"
    advance(conn, "2 hours 31 seconds")
    tick(conn)
    assert workflow(conn, claimed.workflow_id).status == "pending"


def test_a_worker_that_is_gone_has_no_third_lease_however_rarely_anybody_ticks(db: Database) -> None:
    conn = db.connect()
    enqueue(conn)
    tick(conn)
    claimed = claim_one(conn)
    for minutes in (1, 2):
        advance(conn, f"{minutes} minutes")
        tick(conn)
    assert workflow(conn, claimed.workflow_id).status == "pending"


def test_what_may_have_happened_once_does_not_run_again_after_a_step_back(db: Database) -> None:
    """Its error is yet to come by the clock, and so it looks as if it was part of the attempt that fails."""
    conn = db.connect()
    workflow_id = enqueue(conn, max_attempts=3)
    claimed = claim_one(conn)
    advance(conn, "1 hour")
    call(conn, "start_step", workflow_id, claimed.lease, "launch")
    call(conn, "release_many", [workflow_id], [claimed.lease])
    claimed = claim_one(conn)
    interrupted = {"code": "WF008", "type": "StepInterrupted", "message": "interrupted"}
    call(conn, "fail_step", workflow_id, claimed.lease, "launch", interrupted)
    call(conn, "fail_step", workflow_id, claimed.lease, "beside", {"message": "no"})
    advance(conn, "0")
    call(conn, "fail_step", workflow_id, claimed.lease, "last", {"message": "no"})
    call(conn, "fail", workflow_id, claimed.lease, {"message": "no", "step": "last"}, "0")
    assert set(steps(conn, workflow_id)) == {"launch"}


def test_two_lines_are_claimed_after_the_sequence_of_places_began_anew(db: Database) -> None:
    """As a restore or a switch to another server may leave it."""
    conn = db.connect()
    enqueue(conn, "one")
    enqueue(conn, "two")
    conn.execute("alter sequence durable.ready_seq restart")
    assert claim(conn, max_workflows=2) == []
    enqueue(conn, "one")
    assert len(claim(conn, max_workflows=3)) >= 1


# Any steps, in any order


class Walk:
    """One worker, what it does, and a clock that is set to and fro. Nothing passes but the time that the clock shows."""

    def __init__(self, conn: Connection, seed: int) -> None:
        self._conn = conn
        self._chance = random.Random(seed)
        self._offset = self._highest = 0.0
        self._held: dict[UUID, int] = {}
        # By workflow, the step that waits and its arguments.
        self._waits: dict[UUID, tuple[str, str, str | None]] = {}
        self._steps = 0
        self.made: list[UUID] = []
        self.done: list[UUID] = []

    def set_clock(self, offset: float) -> None:
        self._offset, self._highest = offset, max(self._highest, offset)
        advance(self._conn, f"{offset:.3f} seconds")
        tick(self._conn)
        held = list(self._held)
        assert call(self._conn, "heartbeat", "walker", held, [self._held[each] for each in held]) == []

    def step(self) -> None:
        size = self._chance.choice((0.05, 1.0, 20.0, 60.0, 7200.0))
        self.set_clock(self._offset + self._chance.uniform(-size, size))
        for _ in range(6):
            self._chance.choice((self._enqueue, self._claim, self._complete, self._fail, self._sleep, self._receive))()
        self._send(self._chance.random() < 0.5)

    def end(self) -> None:
        """When the clock is where it was at its highest, all that was ever set is due."""
        self.set_clock(self._highest + 20)
        for _ in range(30):
            self._send(True)
            tick(self._conn)
            self._claim()
            while self._held:
                self._complete()
            if not value(self._conn, "select exists (select from durable.live_workflows)"):
                return
        raise AssertionError(rows(self._conn, "select * from durable.live_workflows"))

    def _delay(self) -> str:
        return f"{self._chance.uniform(0, 3):.3f} seconds"

    def _enqueue(self) -> None:
        after = self._chance.choice((None, self._delay()))
        at = value(self._conn, "select durable._now() + %s::interval", after)
        self.made.append(enqueue(self._conn, run_at=at, max_attempts=1000))

    def _claim(self) -> None:
        for claimed in claim(self._conn, "walker", 3):
            assert claimed.workflow_id not in self._held
            self._held[claimed.workflow_id] = claimed.lease
            if claimed.workflow_id in self._waits:
                self._wait(claimed.workflow_id)

    def _any(self) -> UUID | None:
        return self._chance.choice(sorted(self._held)) if self._held else None

    def _complete(self) -> None:
        if (workflow_id := self._any()) is not None:
            call(self._conn, "complete", workflow_id, self._held.pop(workflow_id))
            self.done.append(workflow_id)

    def _fail(self) -> None:
        if (workflow_id := self._any()) is not None:
            call(self._conn, "fail", workflow_id, self._held.pop(workflow_id), {"message": "no"}, self._delay())

    def _sleep(self) -> None:
        self._begin("[]", self._delay())

    def _receive(self) -> None:
        self._begin('[{"message": "topic"}]', None)

    def _begin(self, conditions: str, timeout: str | None) -> None:
        if (workflow_id := self._any()) is not None:
            self._steps += 1
            self._waits[workflow_id] = (f"step {self._steps}", conditions, timeout)
            self._wait(workflow_id)

    def _wait(self, workflow_id: UUID) -> None:
        name, conditions, timeout = self._waits[workflow_id]
        (waited,) = call(self._conn, "wait", workflow_id, self._held[workflow_id], name, conditions, timeout=timeout)
        if waited.outcome == "parked":
            del self._held[workflow_id]
        else:
            assert waited.outcome == "ok"
            del self._waits[workflow_id]

    def _send(self, to_all: bool) -> None:
        for workflow_id, (name, conditions, _) in self._waits.items():
            if conditions != "[]" and (to_all or self._chance.random() < 0.3):
                call(self._conn, "send", workflow_id, "topic", key=name)


@pytest.mark.pg(15, 18)
@pytest.mark.parametrize("seed", range(6))
def test_whatever_steps_the_clock_takes_each_workflow_ends_once(db: Database, seed: int) -> None:
    conn = db.connect()
    walk = Walk(conn, seed)
    walk.set_clock(0)
    for _ in range(30):
        walk.step()
    walk.end()
    assert Counter(walk.done) == Counter(walk.made)
    assert value(conn, "select count(*) from durable.workflows where status = 'completed'") == len(walk.made)
    assert value(conn, "select count(*) from durable.workers") == 1
