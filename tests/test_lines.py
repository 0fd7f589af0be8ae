"""Lines: each kind of work stands in one of its own, what is started goes first, and empty ones disappear."""

from __future__ import annotations

import hashlib
import random
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import accumulate
from typing import Any, ClassVar, NamedTuple
from uuid import UUID

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from clusters import Database
from engine import Connection, advance, call, claim, claim_one, enqueue, kill_worker, rows, value, wait_until

pytestmark = pytest.mark.pg(15, 18)


def chance_of(seed: int | None = None) -> random.Random:
    """Chance that can be had again: a test that fails shows the seed."""
    seed = random.randrange(2**32) if seed is None else seed
    print(f"seed: {seed}")
    return random.Random(seed)


def claim_names(
    conn: Connection,
    names: Sequence[str] | None,
    max_workflows: int = 1,
    worker: str = "worker",
    queues: Sequence[str] = ("default",),
) -> list[Any]:
    wanted = None if names is None else list(names)
    return call(conn, "claim", worker, list(queues), max_workflows, wanted)


def enqueue_many(conn: Connection, name: str, count: int, **named: Any) -> list[UUID]:
    return [row[0] for row in call(conn, "enqueue_many", name, [{}] * count, **named)]


def complete(conn: Connection, claimed: Sequence[Any]) -> None:
    def ask(left: list[Any]) -> list[Any]:
        done = call(conn, "complete_many", ids(left), [c.lease for c in left], [{}] * len(left))
        assert {row.outcome for row in done} <= {"ok", "busy"}
        return [left[row.item - 1] for row in done if row.outcome == "busy"]

    again_while_locked(ask, claimed)


def release(conn: Connection, claimed: Sequence[Any]) -> None:
    def ask(left: list[Any]) -> list[Any]:
        call(conn, "release_many", ids(left), [c.lease for c in left])
        held = rows(conn, "select lease from durable.live_workflows where lease = any(%s)", [c.lease for c in left])
        return [c for c in left if (c.lease,) in held]

    again_while_locked(ask, claimed)


def again_while_locked(ask: Callable[[list[Any]], list[Any]], claimed: Sequence[Any]) -> None:
    """A claim that saw them in line, before they were claimed, may have locked them for a moment."""
    left = list(claimed)
    for _ in range(100):
        left = ask(left)
        if not left:
            return
        time.sleep(0.01)
    raise AssertionError(f"{len(left)} workflows stay locked")


def ids(claimed: Sequence[Any]) -> list[UUID]:
    return [c.workflow_id for c in claimed]


def keep_workers(conn: Connection) -> None:
    """So that a clock that is put forward does not kill them."""
    call(conn, "configure", "lease", "10 years")


def lines(conn: Connection, name: str = "w") -> list[Any]:
    """The registered lines of what is new, of a name."""
    return rows(conn, "select * from durable.lines where name = %s and line_id & 3 = 0 order by queue, priority", name)


# Collisions, and the order


class Ready(NamedTuple):
    """What can be claimed, as the rules see it."""

    workflow_id: UUID
    queue: str
    priority: int
    name: str
    ready_seq: int


READY = (
    "select workflow_id, queue, priority, name, ready_seq from durable.live_workflows where ready_seq is not null"
    " order by ready_seq"
)


def ready(conn: Connection) -> list[Ready]:
    return [Ready(*row) for row in rows(conn, READY)]


def use_three_bits(conn: Connection) -> None:
    """Eight hashes for everything there is."""
    conn.execute(
        """create or replace function durable._line_hash(queue text, priority integer, name text)
           returns bigint language sql stable as $$ select (hashtext(queue || priority || name) & 7)::bigint $$"""
    )


class Crowd:
    """Workflows of many kinds that are claimed, and then end or come back in every way there is."""

    NAMES = tuple(f"n{n}" for n in range(12))
    QUEUES = ("q0", "q1", "q2", "q3")

    def __init__(self, conn: Connection, chance: random.Random) -> None:
        self._conn, self._chance = conn, chance
        self._started: set[UUID] = set()
        self._held: dict[UUID, Any] = {}
        self._steps = 0
        self.ended: Counter[UUID] = Counter()
        self.all: set[UUID] = set()

    def add(self, most: int) -> None:
        new = enqueue_many(
            self._conn,
            self._chance.choice(self.NAMES),
            self._chance.randint(1, most),
            queue=self._chance.choice(self.QUEUES),
            priority=self._chance.choice([-1, 0, 0, 7]),
            max_attempts=100,
        )
        self.all.update(new)

    def claim_some(self) -> None:
        queues = self._chance.sample(self.QUEUES, self._chance.randint(1, 4))
        names = self._chance.choice([None, self._chance.sample(self.NAMES, self._chance.randint(1, 12))])
        self.claim(queues, names, self._chance.choice([1, 2, 3, 7, 100]))

    def claim(self, queues: Sequence[str], names: Sequence[str] | None, most: int) -> int:
        there = [r for r in ready(self._conn) if r.queue in queues and (names is None or r.name in names)]
        got = claim_names(self._conn, names, most, queues=queues)
        # It gets what it asked for, all that there is of it, and nothing twice.
        assert len(got) == min(most, len(there))
        assert len(set(ids(got))) == len(got)
        assert set(ids(got)) <= {r.workflow_id for r in there}
        assert not set(ids(got)) & set(self._held)
        by_id = {r.workflow_id: r for r in there}
        assert all((c.queue, c.name) == (by_id[c.workflow_id].queue, by_id[c.workflow_id].name) for c in got)
        taken = {c.workflow_id for c in got}
        left = [r for r in there if r.workflow_id not in taken]
        # Queues one after the other; in each of them by priority; and of one priority first in, first out.
        queues_taken, queues_left = {by_id[i].queue for i in taken}, {r.queue for r in left}
        assert len(queues_taken & queues_left) <= 1
        for queue in queues_taken & queues_left:
            last = max(by_id[i].priority for i in taken if by_id[i].queue == queue)
            assert all(r.priority >= last for r in left if r.queue == queue)
            for started in (True, False):
                line = [
                    r.workflow_id
                    for r in there
                    if (r.queue, r.priority, r.workflow_id in self._started) == (queue, last, started)
                ]
                flags = [workflow_id in taken for workflow_id in line]
                assert flags == sorted(flags, reverse=True), "somebody was passed over"
        self._held.update({c.workflow_id: c for c in got})
        self._started.update(taken)
        return len(got)

    def go_on(self, *, end: bool = False) -> None:
        """Does something with what is held."""
        held = list(self._held.values())
        self._chance.shuffle(held)
        for c in held[: self._chance.randint(0, len(held)) if not end else None]:
            what = "complete" if end else self._chance.choice(["complete"] * 4 + list(self.FATES))
            self._held.pop(c.workflow_id)
            self._steps += 1
            if what == "complete":
                call(self._conn, "complete", c.workflow_id, c.lease, {})
                self.ended[c.workflow_id] += 1
            else:
                self.FATES[what](self, c)
        if not end and self._chance.random() < 0.2:
            # With all that it holds.
            kill_worker(self._conn, "worker")
            call(self._conn, "recover")
            self._held.clear()
            # What was there twice is a suspect, which is another matter.
            self._conn.execute("update durable.live_workflows set suspicions = 0 where suspicions > 0")
        call(self._conn, "tick")

    def _cancel(self, c: Any) -> None:
        call(self._conn, "cancel", c.workflow_id)
        self.ended[c.workflow_id] += 1

    def _cancel_and_retry(self, c: Any) -> None:
        call(self._conn, "cancel", c.workflow_id)
        call(self._conn, "retry", c.workflow_id)
        self._started.discard(c.workflow_id)

    def _pause(self, c: Any) -> None:
        call(self._conn, "pause", c.workflow_id)
        call(self._conn, "resume", c.workflow_id)

    def _wait(self, c: Any) -> None:
        # Nobody receives what was sent before.
        wait(self._conn, c, f'[{{"message": "m{self._steps}"}}]', step=f"s{self._steps}")
        call(self._conn, "send", c.workflow_id, f"m{self._steps}")

    FATES: ClassVar[dict[str, Callable[[Crowd, Any], Any]]] = {
        "release": lambda self, c: release(self._conn, [c]),
        "fail": lambda self, c: call(self._conn, "fail", c.workflow_id, c.lease, {"message": "no"}, "0"),
        "sleep": lambda self, c: wait(self._conn, c, "[]", timeout="1 microsecond", step=f"s{self._steps}"),
        "wait": _wait,
        "pause": _pause,
        "cancel": _cancel,
        "cancel and retry": _cancel_and_retry,
    }

    def finish(self) -> None:
        for _ in range(1000):
            self.go_on(end=True)
            if not self.claim(self.QUEUES, None, 100) and not value(
                self._conn, "select exists (select from durable.live_workflows)"
            ):
                return
        raise AssertionError("not all was claimed")


def wait(conn: Connection, claimed: Any, conditions: str, step: str = "wait", timeout: str | None = None) -> None:
    """Parks a workflow."""
    rows(
        conn,
        "select * from durable.wait(%s, %s, %s, %s::jsonb, %s::interval)",
        claimed.workflow_id, claimed.lease, step, conditions, timeout,
    )  # fmt: skip


@pytest.mark.parametrize("run", range(3))
@pytest.mark.parametrize("bits", ["three bits", "all bits"])
def test_a_collision_of_hashes_mixes_nothing_up(db: Database, bits: str, run: int) -> None:
    conn = db.connect()
    keep_workers(conn)
    if bits == "three bits":
        use_three_bits(conn)
    crowd = Crowd(conn, chance := chance_of())
    for turn in range(25):
        for _ in range(chance.randint(1, 10)):
            crowd.add(most=12)
        for _ in range(chance.randint(1, 3)):
            crowd.claim_some()
        crowd.go_on()
        if turn % 8 == 7:
            advance(conn, f"{turn} minutes")
    if bits == "three bits":
        assert value(conn, "select count(distinct line_id >> 2) from durable.lines") <= 8
    crowd.finish()
    assert claim_names(conn, None, 1000, queues=Crowd.QUEUES) == []
    # Each ended, and once.
    assert crowd.ended == Counter(crowd.all)
    assert value(conn, "select count(*) from durable.finished_workflows") == len(crowd.all)


@contextmanager
def locked(db: Database, workflow_ids: Sequence[UUID]) -> Iterator[None]:
    """Rows that another transaction has locked."""
    other = db.connect(autocommit=False)
    other.execute("select from durable.live_workflows where workflow_id = any(%s) for update", [list(workflow_ids)])
    yield
    other.rollback()
    other.close()


def first_of(there: Sequence[Ready], names: Sequence[str] | None, most: int) -> list[UUID]:
    wanted = [r for r in there if names is None or r.name in names]
    return [r.workflow_id for r in sorted(wanted, key=lambda r: (r.priority, r.ready_seq))][:most]


@pytest.mark.parametrize("count", [1, 2, 10, 200])
@pytest.mark.parametrize("most", [1, 7, 100])
def test_claims_across_names_are_first_in_first_out(db: Database, count: int, most: int) -> None:
    conn, chance = db.connect(), chance_of()
    all_names = [f"n{n}" for n in range(count)]
    priorities = chance.choice([[0], [0, 0, 0, 5], [-3, 2, 4]])
    # Evenly mixed, or in long runs; some stand in line much more than others.
    longest = chance.choice([1, 5, 60])
    weights = [chance.random() ** 3 + 0.01 for _ in all_names]
    while (there := len(ready(conn))) < 500:
        (name,) = chance.choices(all_names, weights)
        enqueue_many(conn, name, chance.randint(1, min(longest, 600 - there)), priority=chance.choice(priorities))
    claimed = 0
    for _ in range(12):
        names = chance.choice([None, all_names, chance.sample(all_names, chance.randint(1, count))])
        there_now = ready(conn)
        everything = [r.workflow_id for r in there_now]
        of_front = first_of(there_now, names, chance.choice([1, 3, most, 3 * most, 300]))
        held = chance.choice([[], of_front, chance.sample(everything, chance.randint(0, len(everything)))])
        with locked(db, held):
            expected = first_of([r for r in there_now if r.workflow_id not in held], names, most)
            got = claim_names(conn, names, most)
        assert ids(got) == expected
        claimed += len(got)
    # Nothing of what was locked is lost.
    rest = ready(conn)
    assert len(rest) + claimed == value(conn, "select count(*) from durable.live_workflows")
    while rest:
        got = claim_names(conn, None, most if len(rest) < 100 else 100)
        assert ids(got) == first_of(rest, None, len(got))
        assert got
        rest = rest_after(rest, got)
    assert claim_names(conn, None, 10) == []


# Who asks for which names, and for how many.
ASKED = st.lists(
    st.tuples(st.none() | st.sets(st.integers(0, 11), min_size=1), st.sampled_from([1, 2, 7, 100])), max_size=12
)


@settings(
    max_examples=40,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(
    runs=st.lists(st.tuples(st.integers(0, 11), st.integers(1, 25), st.sampled_from([0, 0, 0, 5])), max_size=30),
    asked=ASKED,
    held=st.sets(st.integers(0, 15) | st.integers(0, 150)),
)
def test_whatever_is_asked_for_comes_first_in_first_out(
    db: Database, runs: list[tuple[int, int, int]], asked: list[tuple[set[int] | None, int]], held: set[int]
) -> None:
    conn = db.connect()
    conn.execute("delete from durable.live_workflows")
    for name, count, priority in runs:
        enqueue_many(conn, f"n{name}", count, priority=priority)
    there = ready(conn)
    with locked(db, [r.workflow_id for n, r in enumerate(there) if n in held]):
        free = [r for n, r in enumerate(there) if n not in held]
        for numbers, most in asked:
            names = None if numbers is None else [f"n{n}" for n in numbers]
            got = claim_names(conn, names, most)
            assert ids(got) == first_of(free, names, most)
            free = rest_after(free, got)
    left = [r for r in there if r in free or there.index(r) in held]
    assert ids(claim_names(conn, None, 1000)) == first_of(left, None, 1000)
    conn.close()


def rest_after(there: Sequence[Ready], got: Sequence[Any]) -> list[Ready]:
    gone = set(ids(got))
    return [r for r in there if r.workflow_id not in gone]


def test_behind_a_locked_row_a_claim_of_one_goes_on_with_what_comes_next(db: Database) -> None:
    conn = db.connect()
    first, second, third = enqueue(conn, "a"), enqueue(conn, "b"), enqueue(conn, "a")
    with locked(db, [first]):
        assert ids(claim(conn)) == [second]
        assert ids(claim(conn)) == [third]
    assert ids(claim(conn)) == [first]


def test_where_one_more_is_started_because_new_ones_run_short_it_is_the_next_one(db: Database) -> None:
    conn = db.connect()
    order = [enqueue(conn, name) for name in "abbbbbba"]
    held = {c.workflow_id: c for c in claim(conn, max_workflows=8)}
    for workflow_id in order:
        release(conn, [held[workflow_id]])
    new = enqueue(conn, "a")
    # Two of eight would be new.
    assert set(ids(claim(conn, max_workflows=8))) == {*order[:7], new}
    assert ids(claim(conn)) == order[7:]


def test_two_claims_that_are_open_at_once_share_what_comes_first(db: Database) -> None:
    conn, chance = db.connect(), chance_of()
    for _ in range(200):
        enqueue(conn, f"n{chance.randrange(10)}")
    order = [r.workflow_id for r in ready(conn)]
    one, two = db.connect(autocommit=False), db.connect(autocommit=False)
    assert ids(claim_names(one, None, 30, "one")) == order[:30]
    assert ids(claim_names(two, None, 30, "two")) == order[30:60]
    one.rollback()
    assert ids(claim_names(conn, None, 50, "three")) == order[:30] + order[60:80]
    two.commit()
    assert ids(claim_names(conn, None, 200, "three")) == order[80:]


def test_lines_that_begin_far_apart_are_merged_in_order(db: Database) -> None:
    conn = db.connect()
    for name in ("a", "b", "c"):
        enqueue_many(conn, name, 3)
        # A gap in the numbers, as much work of others leaves it.
        conn.execute("select setval('durable.ready_seq', nextval('durable.ready_seq') + 1000000)")
    enqueue_many(conn, "a", 200)
    order = [r.workflow_id for r in ready(conn)]
    assert ids(claim_names(conn, None, 5)) == order[:5]
    assert ids(claim_names(conn, ["a", "b", "c"], 100)) == order[5:105]
    assert ids(claim_names(conn, None, 1000)) == order[105:]


# What is started goes first


def slept(conn: Connection, claimed: Any) -> None:
    wait(conn, claimed, "[]", timeout="1 microsecond")
    call(conn, "tick")


def messaged(conn: Connection, claimed: Any) -> None:
    wait(conn, claimed, '[{"message": "topic"}]')
    call(conn, "send", claimed.workflow_id, "topic")


def paused(conn: Connection, claimed: Any) -> None:
    call(conn, "pause", claimed.workflow_id)
    call(conn, "resume", claimed.workflow_id)


def tried_again(conn: Connection, claimed: Any) -> None:
    call(conn, "fail", claimed.workflow_id, claimed.lease, {"message": "no"}, "0")
    call(conn, "tick")


def bereaved(conn: Connection, claimed: Any) -> None:
    kill_worker(conn, "worker")
    assert call(conn, "recover") == [(1,)]


def left(conn: Connection, claimed: Any) -> None:
    assert call(conn, "leave", "worker") == [(1,)]


def released(conn: Connection, claimed: Any) -> None:
    release(conn, [claimed])


def continued(conn: Connection, claimed: Any) -> None:
    call(conn, "continue_as_new", claimed.workflow_id, claimed.lease, {})


@pytest.mark.parametrize("how", [slept, messaged, paused, tried_again, bereaved, left, released, continued])
def test_what_is_started_is_claimed_before_a_backlog(db: Database, how: Callable[[Connection, Any], None]) -> None:
    conn = db.connect()
    first = enqueue(conn, max_attempts=2)
    claimed = claim_one(conn)
    backlog = enqueue_many(conn, "w", 50)
    how(conn, claimed)
    got = claim_one(conn, "next")
    assert got.workflow_id not in backlog
    assert got.workflow_id == first or how is continued
    assert ids(claim(conn, "next", 100)) == backlog


@pytest.mark.parametrize("how", ["fork", "retry", "retry of a cancelled one"])
def test_what_begins_anew_stands_behind_a_backlog(db: Database, how: str) -> None:
    conn = db.connect()
    first = enqueue(conn)
    claimed = claim_one(conn)
    call(conn, "checkpoint", first, claimed.lease, "step", {})
    if how == "retry of a cancelled one":
        call(conn, "cancel", first)
    else:
        call(conn, "fail", first, claimed.lease, {"message": "no"})
    backlog = enqueue_many(conn, "w", 20)
    again = call(conn, "fork", first)[0][0] if how == "fork" else first
    if how != "fork":
        assert call(conn, "retry", first) == [(True,)]
    assert [claim_one(conn).workflow_id for _ in range(20)] == backlog
    assert claim_one(conn).workflow_id == again


def fill(conn: Connection, count: int, name: str = "w") -> set[UUID]:
    """As many started ones as new ones; returns the new ones."""
    enqueue_many(conn, name, count)
    release(conn, claim_names(conn, [name], count, "filler"))
    return set(enqueue_many(conn, name, count))


def assert_every_fourth_is_new(batches: Sequence[Sequence[Any]], new: set[UUID]) -> None:
    """Counted from the first claim on, at the end of each claim."""
    sizes = list(accumulate(len(batch) for batch in batches))
    new_ones = list(accumulate(sum(c.workflow_id in new for c in batch) for batch in batches))
    assert new_ones == [size // 4 for size in sizes]


@pytest.mark.parametrize("most", [1, 2, 3, 4, 5, 7, 100])
def test_of_every_four_that_are_claimed_one_is_new(db: Database, most: int) -> None:
    conn = db.connect()
    new = fill(conn, 300)
    batches = [claim(conn, max_workflows=most) for _ in range(min(40, 300 // most))]
    assert all(len(batch) == most for batch in batches)
    assert_every_fourth_is_new(batches, new)


def test_of_every_four_that_several_workers_claim_in_turns_one_is_new(db: Database) -> None:
    conn, chance = db.connect(), chance_of()
    new = fill(conn, 300)
    batches = [claim(db.connect() if n < 3 else conn, f"w{n % 3}", chance.choice([1, 2, 3, 5, 6])) for n in range(60)]
    assert_every_fourth_is_new(batches, new)


@pytest.mark.parametrize("most", [1, 2, 3, 5])
def test_of_every_four_that_are_claimed_of_each_name_in_turns_one_is_new(db: Database, most: int) -> None:
    conn = db.connect()
    new = {name: fill(conn, 100, name) for name in ("a", "b", "c")}
    batches = defaultdict(list)
    for _ in range(20):
        for name in new:
            batches[name].append(claim_names(conn, [name], most))
    for name, ones in new.items():
        assert_every_fourth_is_new(batches[name], ones)


@pytest.mark.parametrize("most", [1, 2, 3, 5, 7])
def test_of_every_four_that_are_claimed_of_many_names_together_one_is_new(db: Database, most: int) -> None:
    conn = db.connect()
    enqueue_many(conn, "a", 300)
    release(conn, claim(conn, "filler", 300))
    new = {enqueue(conn, f"n{n % 40}") for n in range(200)}
    claimed = claimed_new = 0
    # As long as there are some of each.
    for _ in range(min(60, 200 // most)):
        batch = claim(conn, max_workflows=most)
        claimed += len(batch)
        claimed_new += len(new & set(ids(batch)))
        assert claimed_new >= claimed // 4
    assert claimed_new <= claimed // 4 + 1


def test_where_nothing_is_new_or_nothing_is_started_claims_are_full_all_the_same(db: Database) -> None:
    conn = db.connect()
    new = fill(conn, 10)
    got = claim(conn, max_workflows=19)
    assert len(got) == 19
    assert sum(c.workflow_id in new for c in got) == 9
    (last,) = claim(conn, max_workflows=5)
    assert last.workflow_id in new
    release(conn, [*got, last])
    assert len(claim(conn, max_workflows=30)) == 20


@pytest.mark.parametrize("before", ["after other claims", "as the first one"])
def test_a_claim_that_is_open_makes_nobody_wait(db: Database, before: str) -> None:
    conn, slow, other = db.connect(), db.connect(autocommit=False), db.connect()
    other.execute("set lock_timeout = '1s'")
    fill(conn, 40)
    if before == "after other claims":
        claim(conn, max_workflows=1)
    assert len(claim(slow, "slow", 1)) == 1
    got = [c for _ in range(20) for c in claim(other, "other", 1)]
    assert len(got) == 20
    slow.rollback()
    assert len(claim(other, "other", 100)) == 80 - 20 - (before == "after other claims")


def test_a_claim_waits_for_nobody_else_to_say_whose_turn_it_is(db: Database) -> None:
    conn, slow = db.connect(), db.connect(autocommit=False)
    conn.execute("set lock_timeout = '1s'")
    new = fill(conn, 100)
    claim(conn, max_workflows=1)
    claim(slow, "slow", 1)
    # Left to chance, one in four is new; with no chance at all, none would be in most runs.
    got = [c for _ in range(80) for c in claim(conn, max_workflows=1)]
    assert 0 < sum(c.workflow_id in new for c in got) < 80
    slow.rollback()


def test_a_lower_priority_number_goes_before_all_that_is_started(db: Database) -> None:
    conn = db.connect()
    fill(conn, 20)
    urgent = enqueue_many(conn, "w", 6, priority=-1) + enqueue_many(conn, "other", 2, priority=-1)
    assert ids(claim(conn, max_workflows=4)) == urgent[:4]
    assert [claim_one(conn).workflow_id for _ in range(4)] == urgent[4:]
    later = enqueue_many(conn, "w", 2, priority=1)
    release(conn, claim_names(conn, ["w"], 3, "other"))
    assert not set(later) & set(ids(claim(conn, max_workflows=40)))
    assert ids(claim(conn, max_workflows=9)) == later


# Empty lines disappear


class Clock:
    """Goes forward, with a tick at each stop."""

    def __init__(self, conn: Connection) -> None:
        self._conn = conn
        self._seconds = 0
        keep_workers(conn)

    def forward(self, seconds: int) -> None:
        self._seconds += seconds
        advance(self._conn, f"{self._seconds} seconds")

    def tick(self, seconds: int = 0) -> None:
        self.forward(seconds)
        report = value(self._conn, "select durable.tick()")
        assert not any(isinstance(part, dict) for part in report.values()), report

    def tick_until(self, gone: Callable[[], bool], most: int = 20) -> None:
        for _ in range(most):
            if gone():
                return
            self.tick(10)
        raise AssertionError("the line does not go")


def test_a_line_that_is_empty_disappears_and_its_queue_stays(db: Database) -> None:
    conn = db.connect()
    clock = Clock(conn)
    fill(conn, 4)
    enqueue(conn, "elsewhere", queue="another one")
    enqueue(conn, "stays")
    complete(conn, claim_names(conn, ["w", "elsewhere"], 100, queues=["default", "another one"]))
    assert value(conn, "select count(*) from durable.lines") == 4
    clock.tick_until(lambda: lines(conn) == [])
    clock.tick_until(lambda: value(conn, "select count(*) from durable.lines") == 1)
    assert [(line.name, line.leaving) for line in lines(conn, "stays")] == [("stays", False)]
    assert {row.queue for row in rows(conn, "select queue from durable.queues")} == {"default", "another one"}
    # It comes back with the next one.
    workflow_id = enqueue(conn)
    assert ids(claim_names(conn, ["w"])) == [workflow_id]


def test_whose_turn_it_is_is_forgotten_after_an_hour(db: Database) -> None:
    conn = db.connect()
    fill(conn, 4)
    claim(conn, max_workflows=1)
    assert value(conn, "select count(*) from durable.claim_turns") == 1
    advance(conn, "2 hours")
    # One tick in a hundred looks.
    for _ in range(3000):
        call(conn, "tick")
        if value(conn, "select count(*) from durable.claim_turns") == 0:
            break
    assert value(conn, "select count(*) from durable.claim_turns") == 0


def test_a_line_that_is_there_several_times_becomes_one(db: Database) -> None:
    conn = db.connect()
    clock = Clock(conn)
    clock.forward(0)
    others = [db.connect(autocommit=False) for _ in range(5)]
    for other in others:
        enqueue(other)
    for other in others:
        other.commit()
    assert len(lines(conn)) == 5
    assert len(claim(conn, max_workflows=3)) == 3
    clock.tick(10)
    assert len(lines(conn)) == 1
    assert len(claim(conn, max_workflows=10)) == 2


def test_a_line_that_is_in_use_stays_and_is_looked_at_less_and_less_often(db: Database) -> None:
    conn = db.connect()
    clock = Clock(conn)
    enqueue(conn)

    def patience() -> float:
        (line,) = lines(conn)
        assert not line.leaving
        return float(line.patience.total_seconds())

    seen = [patience()]
    for _ in range(9):
        clock.tick(1 + int(seen[-1]))
        seen.append(patience())
        # It is not looked at before its time.
        clock.tick()
        assert patience() == seen[-1]
    assert seen == [5, 10, 20, 40, 80, 160, 320, 600, 600, 600]


def test_a_line_that_is_used_again_while_it_leaves_stays(db: Database) -> None:
    conn = db.connect()
    clock = Clock(conn)
    enqueue(conn)
    complete(conn, claim(conn))
    clock.tick(10)
    assert [line.leaving for line in lines(conn)] == [True]
    workflow_id = enqueue(conn)
    for _ in range(10):
        clock.tick(20)
    assert [line.leaving for line in lines(conn)] == [False]
    assert claim_one(conn).workflow_id == workflow_id


def test_a_tick_waits_for_nothing_that_another_one_has_changed(db: Database) -> None:
    conn, holder = db.connect(), db.connect(autocommit=False)
    call(conn, "tick")
    # Of today and tomorrow, whenever this runs: who makes a partition does lock out who needs the same.
    conn.execute("select durable._provision_partitions(d, d + 3) from (select (now() at time zone 'UTC')::date) t (d)")
    # Lines that are empty, used, double and about to leave.
    for each in ("empty", "used", "double", "leaving"):
        enqueue(conn, each)
    complete(conn, claim_names(conn, ["empty", "leaving"], 2))
    conn.execute("insert into durable.lines select * from durable.lines where name = 'double'")
    conn.execute("update durable.lines set leaving = true where name = 'leaving'")
    call(conn, "schedule", "each second", "1 second", "w", "{}")
    enqueue(conn, run_at="tomorrow")
    conn.execute("update durable.live_workflows set wake_at = now() where wake_at is not null")
    enqueue(conn, timeout="1 second")
    claim(conn, "dead")
    kill_worker(conn, "dead")
    call(conn, "send", enqueue(conn), "mail", "1")
    advance(conn, "2 minutes")
    first = call(holder, "tick")[0].tick
    assert "passed_over" not in first
    assert first["lines"] > 0
    # Longer than a tick is left alone with its work.
    advance(conn, "2 minutes 2 seconds")
    second = call(conn, "tick")[0].tick
    assert "busy" not in second
    assert "passed_over" not in second
    holder.rollback()


def test_thousands_of_priorities_that_are_used_once_are_forgotten(db: Database) -> None:
    conn = db.connect()
    clock = Clock(conn)
    conn.execute("select durable.enqueue('w', priority => n) from generate_series(-1000, 999) n")
    assert len(lines(conn)) == 2000
    got = claim(conn, max_workflows=2000)
    order = dict(rows(conn, "select workflow_id, priority from durable.live_workflows"))
    assert [order[c.workflow_id] for c in got] == list(range(-1000, 1000))
    complete(conn, got)
    clock.tick_until(lambda: value(conn, "select count(*) from durable.lines") == 0, most=30)
    assert value(conn, "select count(*) from durable.queues where queue = 'default'") == 1


# The race between an enqueue and the end of its line


class Empty(NamedTuple):
    conn: Connection
    clock: Clock


@pytest.fixture
def empty(db: Database) -> Empty:
    """A database with one line, which is empty and may leave at the next tick."""
    conn = db.connect()
    clock = Clock(conn)
    enqueue(conn)
    complete(conn, claim(conn))
    clock.forward(10)
    assert [line.leaving for line in lines(conn)] == [False]
    return Empty(conn, clock)


@pytest.mark.parametrize("when", ["before the mark", "before the mark is committed"])
@pytest.mark.parametrize("how", ["commit", "rollback"])
def test_a_line_waits_for_an_enqueue_that_saw_it(db: Database, empty: Empty, when: str, how: str) -> None:
    conn, clock = empty
    slow, ticking = db.connect(autocommit=False), db.connect(autocommit=False)
    if when == "before the mark":
        workflow_id = enqueue(slow)
        call(ticking, "tick")
    else:
        call(ticking, "tick")
        workflow_id = enqueue(slow)
    ticking.commit()
    (line,) = lines(conn)
    assert (line.leaving, line.leaving_xid) == (True, None)
    for _ in range(10):
        clock.tick(20)
    (line,) = lines(conn)
    assert line.leaving
    assert line.leaving_xid is not None
    if how == "rollback":
        slow.rollback()
        clock.tick_until(lambda: lines(conn) == [], most=3)
        return
    slow.commit()
    assert ids(claim(conn)) == [workflow_id]
    release(conn, call(conn, "reclaim", "worker"))
    for _ in range(5):
        clock.tick(20)
    assert claim_one(conn).workflow_id == workflow_id


def test_a_line_stays_when_what_it_waited_for_is_in_it(db: Database, empty: Empty) -> None:
    conn, clock = empty
    slow = db.connect(autocommit=False)
    workflow_id = enqueue(slow)
    clock.tick()
    clock.tick(10)
    slow.commit()
    for _ in range(5):
        clock.tick(20)
    assert [line.leaving for line in lines(conn)] == [False]
    assert claim_one(conn).workflow_id == workflow_id


@pytest.mark.parametrize("ticks", [1, 2])
def test_an_enqueue_that_sees_a_leaving_line_adds_it_again(db: Database, empty: Empty, ticks: int) -> None:
    conn, clock = empty
    for _ in range(ticks):
        clock.tick()
    assert [line.leaving_xid is not None for line in lines(conn)] == [ticks == 2]
    slow = db.connect(autocommit=False)
    late = enqueue(slow)
    assert [line.leaving for line in lines(slow)].count(False) == 1
    # The old one may go, for this one does not need it.
    clock.tick(20)
    clock.tick(20)
    slow.commit()
    assert ids(claim(conn)) == [late]


@pytest.mark.parametrize("double", [False, True])
@pytest.mark.parametrize("ticks", range(6))
def test_whenever_an_enqueue_comes_it_is_in_line_at_its_commit(
    db: Database, empty: Empty, ticks: int, double: bool
) -> None:
    conn, clock = empty
    if double:
        # One line leaves, and another one of the same kind is new.
        clock.tick()
        enqueue(conn)
        complete(conn, claim(conn))
        assert [line.leaving for line in lines(conn)] == [True, False]
    for _ in range(ticks):
        clock.tick(10)
    slow = db.connect(autocommit=False)
    late = enqueue(slow)
    for _ in range(6):
        clock.tick(10)
    slow.commit()
    assert ids(claim(conn)) == [late]


@pytest.mark.parametrize("ticks", range(6))
def test_whenever_one_comes_back_it_is_in_line_at_its_commit(db: Database, ticks: int) -> None:
    conn, slow = db.connect(), db.connect(autocommit=False)
    clock = Clock(conn)
    enqueue(conn)
    release(conn, claim(conn))
    (held,) = claim(conn)
    for _ in range(ticks):
        clock.tick(10)
    release(slow, [held])
    for _ in range(6):
        clock.tick(10)
    slow.commit()
    assert ids(claim(conn)) == [held.workflow_id]


def test_what_an_old_snapshot_put_into_a_line_that_is_gone_is_registered_by_a_tick(db: Database, empty: Empty) -> None:
    conn, clock = empty
    slow = db.connect(autocommit=False)
    slow.execute("set transaction isolation level repeatable read")
    assert [line.leaving for line in lines(slow)] == [False]
    clock.tick_until(lambda: lines(conn) == [])
    workflow_id = enqueue(slow)
    slow.commit()
    # So the race took place.
    assert lines(conn) == []
    conn.execute("delete from durable.line_sweeps")
    clock.tick()
    assert ids(claim(conn)) == [workflow_id]


@pytest.mark.parametrize("count", [1, 40])
def test_a_tick_registers_lines_that_are_missing(db: Database, count: int) -> None:
    conn, chance = db.connect(), chance_of()
    all_ids = {enqueue(conn, f"n{n}", queue=f"q{n % 3}", priority=n) for n in range(count) for _ in range(3)}
    for _ in range(3):
        lost = chance.sample(range(count), chance.randint(1, count))
        conn.execute("delete from durable.lines where priority = any(%s)", [lost])
        conn.execute("delete from durable.line_sweeps")
        assert value(conn, "select durable.tick()")["registered"] == len(lost)
        assert value(conn, "select count(distinct line_id) from durable.lines") == count
    assert set(ids(claim_names(conn, None, 1000, queues=["q0", "q1", "q2"]))) == all_ids


@pytest.mark.parametrize("missing", ["the first ones", "the last ones", "some"])
def test_where_there_are_more_lines_than_a_tick_reads_all_are_registered_in_the_end(db: Database, missing: str) -> None:
    conn, chance = db.connect(), chance_of()
    for n in range(30):
        enqueue(conn, priority=n)
    in_order = [row.priority for row in rows(conn, "select priority from durable.lines order by line_id")]
    lost = {"the first ones": in_order[:3], "the last ones": in_order[-3:], "some": chance.sample(in_order[1:-1], 15)}
    conn.execute("delete from durable.lines where priority = any(%s)", [lost[missing]])
    for _ in range(1000):
        # One look of many reads at most three lines, from anywhere on.
        conn.execute("delete from durable.line_sweeps")
        conn.execute("select durable._register_lines(3)")
        if len(lines(conn)) == 30:
            break
    assert {line.priority for line in lines(conn)} == set(in_order)
    assert len(claim(conn, max_workflows=100)) == 30


def test_nothing_is_lost_or_claimed_twice_while_lines_come_and_go(db: Database) -> None:
    conn, chance = db.connect(), chance_of()
    # Lines that begin to leave as soon as they are empty.
    conn.execute(
        "alter table durable.lines alter look_at set default now(), alter patience set default interval '1 millisecond'"
    )
    seeds = [chance.randrange(2**32) for _ in range(6)]
    stop = threading.Event()
    wanted = [f"n{n}" for n in range(6)]

    def produce(seed: int) -> list[UUID]:
        own, mine, made = db.connect(autocommit=False), random.Random(seed), []
        for _ in range(120):
            for _ in range(mine.randint(1, 3)):
                made.append(enqueue(own, mine.choice(wanted), queue=mine.choice("pq"), priority=mine.choice([0, 1])))
                own.execute("select pg_sleep(%s)", [mine.choice([0, 0, 0.005])])
            own.commit()
        return made

    def consume(seed: int) -> list[UUID]:
        own, mine, done = db.connect(), random.Random(seed), []
        while not stop.is_set():
            names = mine.choice([None, mine.sample(wanted, 3)])
            got = claim_names(own, names, mine.choice([1, 3, 20]), f"w{seed}", mine.choice(["p", "q", "pq"]))
            again = [c for c in got if mine.random() < 0.3]
            release(own, again)
            ended = [c for c in got if c not in again]
            complete(own, ended)
            done += ids(ended)
            own.execute("select pg_sleep(0.002)")
        return done

    def tick() -> int:
        own, gone = db.connect(), 0
        while not stop.is_set():
            gone += value(own, "select durable.tick()")["lines"]
        return gone

    with ThreadPoolExecutor(6) as pool:
        consumers = [pool.submit(consume, seed) for seed in seeds[3:5]]
        ticker = pool.submit(tick)
        try:
            made = [workflow_id for ids_ in pool.map(produce, seeds[:3]) for workflow_id in ids_]
            wait_until(conn, "select not exists (select from durable.live_workflows)")
        finally:
            stop.set()
        done = [workflow_id for consumer in consumers for workflow_id in consumer.result()]
        assert Counter(done) == Counter(made)
        assert ticker.result() > 100


# Whatever puts a workflow in line registers the line


def forget_lines(conn: Connection) -> None:
    """What the ticks do with lines that are empty."""
    assert ready(conn) == []
    conn.execute("delete from durable.lines")


def by_timer(conn: Connection, claimed: Any) -> None:
    wait(conn, claimed, "[]", timeout="1 microsecond")
    forget_lines(conn)
    assert value(conn, "select durable._wake_due(10)") == 1


def by_start(conn: Connection, claimed: Any) -> None:
    call(conn, "complete", claimed.workflow_id, claimed.lease)
    call(conn, "enqueue", "w", run_at=value(conn, "select durable._now() + interval '1 minute'"))
    forget_lines(conn)
    advance(conn, "2 minutes")
    assert value(conn, "select durable._wake_due(10)") == 1


def by_enqueue(conn: Connection, claimed: Any) -> None:
    forget_lines(conn)
    enqueue(conn)


def by_message(conn: Connection, claimed: Any) -> None:
    wait(conn, claimed, '[{"message": "topic"}]')
    forget_lines(conn)
    call(conn, "send", claimed.workflow_id, "topic")


def by_event(conn: Connection, claimed: Any) -> None:
    wait(conn, claimed, '[{"event": "news"}]')
    forget_lines(conn)
    call(conn, "emit", "news")


def by_recheck(conn: Connection, claimed: Any) -> None:
    # As if it had come at the moment of the parking.
    wait(conn, claimed, '[{"event": "news"}]')
    conn.execute("alter table durable.events disable trigger user")
    call(conn, "emit", "news")
    forget_lines(conn)
    assert call(conn, "recheck_waits", [claimed.workflow_id]) == [(1,)]


def by_decision(conn: Connection, claimed: Any) -> None:
    ((approval_id,),) = call(conn, "request_approval", claimed.workflow_id, claimed.lease, "ask", "may I?", "ada")
    wait(conn, claimed, '[{"approval": "ask"}]')
    forget_lines(conn)
    call(conn, "decide", approval_id, "approved")


def children(conn: Connection, claimed: Any, **named: Any) -> UUID:
    ((first,),) = call(conn, "start_children", claimed.workflow_id, claimed.lease, "s", "w", [{}, {}], **named)
    wait(conn, claimed, f'[{{"children": "{first}"}}]')
    assert isinstance(first, UUID)
    return first


def by_start_of_children(conn: Connection, claimed: Any) -> None:
    forget_lines(conn)
    children(conn, claimed, max_parallel=1)


def by_let_in(conn: Connection, claimed: Any) -> None:
    children(conn, claimed, max_parallel=1)
    child = claim_one(conn)
    forget_lines(conn)
    call(conn, "complete", child.workflow_id, child.lease)


def by_end_of_children(conn: Connection, claimed: Any) -> None:
    children(conn, claimed)
    got = claim(conn, max_workflows=2)
    forget_lines(conn)
    complete(conn, got)


def by_resume(conn: Connection, claimed: Any) -> None:
    call(conn, "pause", claimed.workflow_id)
    forget_lines(conn)
    call(conn, "resume", claimed.workflow_id)


def by_new_attempt(conn: Connection, claimed: Any) -> None:
    call(conn, "fail", claimed.workflow_id, claimed.lease, {"message": "no"}, "0")
    forget_lines(conn)
    assert value(conn, "select durable._wake_due(10)") == 1


def by_retry(conn: Connection, claimed: Any) -> None:
    call(conn, "cancel", claimed.workflow_id)
    forget_lines(conn)
    call(conn, "retry", claimed.workflow_id)


def by_retry_many(conn: Connection, claimed: Any) -> None:
    call(conn, "cancel", claimed.workflow_id)
    forget_lines(conn)
    call(conn, "retry_many", [claimed.workflow_id])


def by_fork(conn: Connection, claimed: Any) -> None:
    call(conn, "complete", claimed.workflow_id, claimed.lease)
    forget_lines(conn)
    call(conn, "fork", claimed.workflow_id)


def by_release(conn: Connection, claimed: Any) -> None:
    forget_lines(conn)
    release(conn, [claimed])


def by_leave(conn: Connection, claimed: Any) -> None:
    forget_lines(conn)
    call(conn, "leave", "worker")


def by_death(conn: Connection, claimed: Any) -> None:
    kill_worker(conn, "worker")
    forget_lines(conn)
    assert call(conn, "recover") == [(1,)]


def by_second_death(conn: Connection, claimed: Any) -> None:
    kill_worker(conn, "worker")
    call(conn, "recover")
    assert claim_one(conn).workflow_id == claimed.workflow_id
    by_death(conn, claimed)


def by_continuing(conn: Connection, claimed: Any) -> None:
    forget_lines(conn)
    call(conn, "continue_as_new", claimed.workflow_id, claimed.lease, {})


def by_schedule(conn: Connection, claimed: Any) -> None:
    call(conn, "schedule", "often", "1 second", "w")
    conn.execute("update durable.schedules set next_at = next_at - interval '2 seconds'")
    forget_lines(conn)
    assert value(conn, "select durable._fire_due(10)") >= 1


WAYS = (
    by_timer, by_start, by_enqueue, by_message, by_event, by_recheck, by_decision, by_start_of_children, by_let_in,
    by_end_of_children, by_resume, by_new_attempt, by_retry, by_retry_many, by_fork, by_release, by_leave, by_death,
    by_second_death, by_continuing, by_schedule,
)  # fmt: skip


@pytest.mark.parametrize("way", WAYS)
def test_what_gets_in_line_is_claimed_at_once_though_its_line_was_gone(
    db: Database, way: Callable[[Connection, Any], None]
) -> None:
    conn = db.connect()
    enqueue(conn, max_attempts=2)
    way(conn, claim_one(conn))
    there = ready(conn)
    assert there
    assert len(ids(claim(conn, "next", 10))) == len(there)


# The number of a line


def number(queue: str, priority: int, name: str) -> int:
    """The same in another language."""
    data = queue.encode() + b"\0" + name.encode() + b"\0" + priority.to_bytes(4, "big", signed=True)
    shifted = int.from_bytes(hashlib.sha256(data).digest()[:8], "big") << 2 & (2**64 - 1)
    return shifted - 2**64 if shifted >= 2**63 else shifted


NUMBERS = {
    ("default", 0, "w"): -7193252552250235400,
    ("größe", -3, "réserve"): -4955652751167589968,
    ("default", -32768, "'x'"): -510962409445713840,
}


@pytest.mark.pg(15, 16, 17, 18)
def test_lines_have_the_same_numbers_on_every_server(db: Database) -> None:
    conn = db.connect()
    for (queue, priority, workflow), expected in NUMBERS.items():
        assert number(queue, priority, workflow) == expected
        enqueue(conn, workflow, queue=queue, priority=priority)
        assert rows(
            conn,
            "select l.line_id, n.line_id as registered from durable.live_workflows l, durable.lines n"
            " where n.name = %s and l.name = n.name",
            workflow,
        ) == [(expected, expected)]
        (claimed,) = claim_names(conn, [workflow], 9, queues=[queue])
        call(conn, "release_many", [claimed.workflow_id], [claimed.lease])
        assert value(conn, "select line_id from durable.live_workflows where name = %s", workflow) == expected + 1


def test_two_kinds_of_work_are_told_apart_where_their_names_run_together(db: Database) -> None:
    conn = db.connect()
    kinds = [("ab", "c"), ("a", "bc"), ("abc", "x"), ("x", "abc"), ("a", "b0"), ("a", "b")]
    numbers = [value(conn, "select durable._line_id(%s, 0, %s)", *kind) for kind in kinds]
    numbers += [value(conn, "select durable._line_id('a', %s, 'b')", n) for n in (-32768, -1, 1, 256, 32767)]
    assert len(set(numbers)) == len(numbers)
    assert all(n % 4 == 0 for n in numbers)


# What is not for a worker costs it nothing


def index_reads(conn: Connection) -> int:
    conn.execute("select pg_stat_force_next_flush()")
    conn.execute("select pg_stat_clear_snapshot()")
    found = value(
        conn, "select sum(idx_tup_read) from pg_stat_user_indexes where relname in ('live_workflows', 'lines')"
    )
    return int(found)


@pytest.mark.parametrize("most", [1, 5, 100])
@pytest.mark.parametrize("count", [1, 3, 20])
def test_claims_read_nothing_of_names_that_they_do_not_ask_for(db: Database, most: int, count: int) -> None:
    conn = db.connect()
    names = [f"n{n}" for n in range(count)]
    conn.execute("select durable.enqueue_many('other', array_fill('{}'::jsonb, array[10000]))")
    release(conn, claim_names(conn, ["other"], 1000))
    conn.execute("select durable.enqueue_many('other', array_fill('{}'::jsonb, array[10000]))")
    for name in names:
        enqueue_many(conn, name, 1 + most // count)
    before = index_reads(conn)
    got = claim_names(conn, names, most)
    assert len(got) == most
    assert claim_names(conn, ["nothing of this"], most) == []
    assert index_reads(conn) - before <= 200 + 10 * most


# The doorbell


class Idle:
    """A worker that waits for its bell."""

    def __init__(self, db: Database, name: str, workflows: list[str] | None, queues: Sequence[str] = ("default",)):
        self._conn = db.connect()
        self.channel = value(
            self._conn, "select durable.idle(%s, %s::text[], %s::text[])", name, list(queues), workflows
        )
        self._conn.execute(f'listen "{self.channel}"'.encode())

    def rung(self, conn: Connection) -> int:
        """How often it was rung up to now."""
        conn.execute("select pg_notify(%s, 'that was all')", [self.channel])
        for count, notice in enumerate(self._conn.notifies(timeout=30)):
            if notice.payload == "that was all":
                return count
        raise AssertionError("the last one did not come")


def test_an_enqueue_rings_only_who_has_code_for_it(db: Database) -> None:
    conn = db.connect()
    a, ab = Idle(db, "a", ["a"]), Idle(db, "ab", ["a", "b"])
    nothing, other_queue = Idle(db, "nothing", []), Idle(db, "other queue", ["b"], ["elsewhere"])
    enqueue(conn, "c")
    assert [worker.rung(conn) for worker in (a, ab, nothing, other_queue)] == [0, 0, 0, 0]
    enqueue(conn, "b")
    assert [worker.rung(conn) for worker in (a, ab, nothing, other_queue)] == [0, 1, 0, 0]
    enqueue_many(conn, "a", 5)
    assert [worker.rung(conn) for worker in (a, ab, nothing, other_queue)] == [1, 1, 0, 0]
    everything = Idle(db, "everything", None)
    enqueue(conn, "c")
    assert [worker.rung(conn) for worker in (a, ab, nothing, everything)] == [0, 0, 0, 1]
    enqueue(conn, "b", queue="elsewhere")
    assert [worker.rung(conn) for worker in (a, ab, everything, other_queue)] == [0, 0, 0, 1]


def test_one_workflow_rings_one_of_those_who_have_code_for_it(db: Database) -> None:
    conn = db.connect()
    workers = [Idle(db, f"w{n}", ["a"] if n % 2 else ["b", "c"]) for n in range(8)]
    enqueue(conn, "a")
    assert sum(worker.rung(conn) for worker in workers) == 1
    enqueue_many(conn, "a", 3)
    assert [sum(worker.rung(conn) for worker in workers[n::2]) for n in (0, 1)] == [0, 3]


@pytest.mark.parametrize("way", [w for w in WAYS if w not in (by_enqueue, by_start, by_fork, by_schedule)])
def test_what_gets_back_in_line_rings_only_who_has_code_for_it(
    db: Database, way: Callable[[Connection, Any], None]
) -> None:
    conn = db.connect()
    enqueue(conn, max_attempts=2)
    claimed = claim_one(conn)
    mine, foreign = Idle(db, "mine", ["w"]), Idle(db, "foreign", ["v"])
    way(conn, claimed)
    assert mine.rung(conn) >= 1
    assert foreign.rung(conn) == 0


# What the catalogue says


def test_no_public_function_has_two_signatures(db: Database) -> None:
    conn = db.connect()
    names = """select p.proname from pg_proc p
               where p.pronamespace = 'durable'::regnamespace and p.proname not like '\\_%'"""
    public = [row[0] for row in rows(conn, names)]
    assert {"enqueue", "claim", "idle", "tick"} <= set(public)
    assert [name for name, count in Counter(public).items() if count > 1] == []


def test_the_queues_are_a_view(db: Database) -> None:
    conn = db.connect()
    enqueue(conn, queue="mine")
    assert value(conn, "select relkind from pg_class where oid = 'durable.queues'::regclass") in ("v", b"v")
    assert [row.queue for row in rows(conn, "select * from durable.queues order by queue")] == ["default", "mine"]


def test_one_word_is_used_for_lines(db: Database) -> None:
    found = rows(
        db.connect(),
        """select * from (
             select p.oid::regprocedure::text as place, p.proname || ' ' || p.prosrc || ' ' ||
               array_to_string(coalesce(p.proargnames, '{}'), ' ') || ' ' || coalesce(obj_description(p.oid, 'pg_proc'), '') as said
             from pg_proc p where p.pronamespace = 'durable'::regnamespace
             union all
             select c.oid::regclass::text, c.relname || ' ' || coalesce(obj_description(c.oid, 'pg_class'), '')
             from pg_class c where c.relnamespace = 'durable'::regnamespace
             union all
             select c.oid::regclass || '.' || a.attname, a.attname || ' ' || coalesce(col_description(c.oid, a.attnum), '')
             from pg_class c join pg_attribute a on a.attrelid = c.oid and a.attnum > 0
             where c.relnamespace = 'durable'::regnamespace) s
           where said ~* '(^|[^a-z])lanes?([^a-z]|$)'""",
    )
    assert [row.place for row in found] == []
