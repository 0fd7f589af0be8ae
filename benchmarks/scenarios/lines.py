from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import psycopg

from benchmarks.bench import Bench, Scenario
from benchmarks.measurement import Measurement, Target
from benchmarks.scenarios import _batches
from benchmarks.scenarios._turns import in_turns, medians, rates
from benchmarks.systems import System
from benchmarks.workload import NO_STEP, ONE_STEP, QUEUE, nth

FILL = 1000
BATCH = 100
TEN = 10
ONLY = (ONE_STEP,)
TICK_EVERY = 0.5  # seconds, as all workers together do
PATIENCE = 300.0  # seconds
# Of claims of this size, so many workflows in each turn.
PER_TURN = {1: 20, BATCH: 300}

# Each in a transaction of its own, as claims move the marks; the disk is not waited for, as it would take an hour.
MOVE_MARKS = """
do $$
declare
  v_lines bigint[] := array(select distinct n.line_id from durable.lines n where n.queue = '{queue}');
  v_seq bigint;
begin
  set synchronous_commit = off;
  for n in 1 .. {count} loop
    v_seq := coalesce(pg_sequence_last_value('durable.ready_seq'), 0);
    perform durable._move_marks('{queue}', v_lines, v_seq, pg_current_xact_id(), durable._now());
    commit;
  end loop;
  set synchronous_commit = on;
end
$$"""


def run(bench: Bench) -> Iterator[Measurement]:
    """Claims beside what used to slow them down, in turns with a database in which there is nothing of it."""
    for system in bench.chosen("durable"):
        yield from _beside_others(bench, system)
        yield from _of_many_names(bench, system)
        yield from _after_priorities(bench, system)
        yield from _after_updates(bench, system)


def _beside_others(bench: Bench, system: System) -> Iterator[Measurement]:
    """The worker has code for one name; what is ready in its queue is nearly all of another one."""
    others, turns = (100_000, 60) if bench.quick else (1_000_000, 300)
    with (
        psycopg.connect(bench.prepare(system, "beside"), autocommit=True) as beside,
        psycopg.connect(bench.prepare(system, "alone"), autocommit=True) as alone,
    ):
        for _ in range(others // FILL):
            _batches.enqueue(beside, FILL, workflow=NO_STEP)
        beside.execute("vacuum analyze")
        beside.execute("checkpoint")
        yield from _compared(beside, alone, turns, f"beside {others:,} of a name without code", Target(0.95), {})


def _compared(
    one: psycopg.Connection[Any],
    other: psycopg.Connection[Any],
    turns: int,
    what: str,
    target: Target | None,
    settings: dict[str, Any],
) -> Iterator[Measurement]:
    """Claims of 1 and of 100 in the one database, of those in the other one."""
    for size in PER_TURN:
        # After two turns plans, lines and pages are there.
        found = in_turns(turns, partial(_each, one, size), partial(_each, other, size))[2:]
        yield Measurement.of(
            "lines", "durable", f"claim and complete {size}, {what}", "×", "higher", rates(found),
            settings={**settings, "per turn": PER_TURN[size], "ms of a claim and a completion": medians(found)},
            target=target,
        )  # fmt: skip


def _each(conn: psycopg.Connection[Any], size: int) -> float:
    """Milliseconds of a claim and its completion."""
    count = PER_TURN[size]
    for start in range(0, count, BATCH):
        _batches.enqueue(conn, min(BATCH, count - start))
    started = time.perf_counter()
    for _ in range(count // size):
        _batches.complete(conn, _batches.claim(conn, size, names=ONLY))
    return _milliseconds(started, count // size)


def _milliseconds(started: float, count: int) -> float:
    return 1000 * (time.perf_counter() - started) / count


@dataclass(frozen=True, slots=True)
class _Side:
    """A database with so many names in its queue, all of which have work all the time."""

    dsn: str
    names: Sequence[str]
    conn: psycopg.Connection[Any]

    def enqueue(self, count: int) -> float:
        """Milliseconds. Ten of a name and then ten of the next one, so that no claim finds all in one line."""
        started = time.perf_counter()
        for n in range(count // TEN):
            _batches.enqueue(self.conn, TEN, workflow=self.names[n % len(self.names)])
        return 1000 * (time.perf_counter() - started)

    def work(self, batches: int) -> tuple[float, float]:
        """Milliseconds of enqueueing, and of claiming and completing on the same connection."""
        enqueueing = self.enqueue(batches * BATCH)
        started = time.perf_counter()
        for _ in range(batches):
            _batches.complete(self.conn, _batches.claim(self.conn, BATCH, names=self.names))
        return enqueueing, 1000 * (time.perf_counter() - started)

    async def share(self, conns: Sequence[psycopg.AsyncConnection[Any]], batches: int) -> float:
        """Microseconds per workflow of claiming and completing on several connections.

        A claim may get less than it asks for, as others are about to lock the same.
        """
        self.enqueue(batches * BATCH)
        todo = iter(range(batches))
        done = 0

        async def work(n: int) -> None:
            nonlocal done
            for _ in todo:
                values = [f"worker-{n}", QUEUE, BATCH, _batches.array(self.names)]
                rows = await (await conns[n].execute(_batches.CLAIM_OF, values, prepare=True)).fetchall()
                ids, leases = [row[0] for row in rows], [row[1] for row in rows]
                outputs = _batches.texts(_batches.OUTPUT, len(rows))
                await conns[n].execute(
                    _batches.COMPLETE, [_batches.array(ids), _batches.array(leases), outputs], prepare=True
                )
                done += len(rows)

        started = time.perf_counter()
        await asyncio.gather(*(work(n) for n in range(len(conns))))
        return 1e6 * (time.perf_counter() - started) / done


def _of_many_names(bench: Bench, system: System) -> Iterator[Measurement]:
    turns, batches, connections = (60 if bench.quick else 300), 3, 4
    settings = {"batch": BATCH, "batches per turn": batches}
    many_dsn, one_dsn = bench.prepare(system, "many"), bench.prepare(system, "one")
    with psycopg.connect(many_dsn, autocommit=True) as many_conn, psycopg.connect(one_dsn, autocommit=True) as one_conn:
        many = _Side(many_dsn, [nth(n) for n in range(TEN)], many_conn)
        one = _Side(one_dsn, [nth(0)], one_conn)
        for side in (many, one):
            side.enqueue(20 * BATCH)
        found = in_turns(turns, partial(many.work, batches), partial(one.work, batches))[2:]
        for part, what in ((1, "claim and complete"), (0, "enqueue_many")):
            spent = [(a[part], b[part]) for a, b in found]
            yield Measurement.of(
                "lines", "durable", f"{what}, {TEN} names, one connection, of the rate with one name", "×", "higher",
                rates(spent), settings={**settings, "ms per turn": medians(spent)},
            )  # fmt: skip
        shared = asyncio.run(_shared(many, one, turns, connections, batches * connections))[2:]
        yield Measurement.of(
            "lines", "durable",
            f"claim and complete, {TEN} names, {connections} connections, of the rate with one name", "×", "higher",
            rates(shared), settings={**settings, "µs per workflow": medians(shared)},
        )  # fmt: skip


async def _shared(many: _Side, one: _Side, turns: int, connections: int, batches: int) -> list[tuple[float, float]]:
    opened = {
        side.dsn: [await psycopg.AsyncConnection.connect(side.dsn, autocommit=True) for _ in range(connections)]
        for side in (many, one)
    }
    found = []
    try:
        for turn in range(turns):
            order = (many, one) if turn % 2 else (one, many)
            spent = {side.dsn: await side.share(opened[side.dsn], batches) for side in order}
            found.append((spent[many.dsn], spent[one.dsn]))
    finally:
        for conns in opened.values():
            for conn in conns:
                await conn.close()
    return found


def _after_priorities(bench: Bench, system: System) -> Iterator[Measurement]:
    """Each priority had a line that one workflow stood in."""
    priorities, turns, few = (2_000, 60, 20) if bench.quick else (10_000, 200, 40)
    with (
        psycopg.connect(bench.prepare(system, "used"), autocommit=True) as used,
        psycopg.connect(bench.prepare(system, "fresh"), autocommit=True) as fresh,
    ):
        used.execute(
            "select durable.enqueue(%s, %s, queue => %s, priority => n) from generate_series(1, %s) n",
            [ONE_STEP, _batches.INPUT, QUEUE, priorities],
        )
        started = time.perf_counter()
        for _ in range(priorities // BATCH):
            _batches.complete(used, _batches.claim(used, BATCH, names=ONLY))
        settings = {"priorities": priorities, "ms of 100 meanwhile": _milliseconds(started, priorities // BATCH)}
        yield Measurement.of(
            "lines", "durable",
            f"{priorities:,} priorities used once: from the last completion until their lines have left", "s", "lower",
            [_until(used, "select count(*) <= 2 from durable.lines")], settings=settings,
        )  # fmt: skip
        left_at = time.monotonic()
        what = f"after {priorities:,} priorities and their lines"
        # The marks of a line leave with it, or, where a claim moved them at that moment, with the next sweep.
        yield from _compared(used, fresh, few, what, None, {**settings, "marks": _marks(used)})
        settings["marks at the end of these"] = _marks(used)
        forgotten = f"select max(cardinality(m.line_ids)) <= 4 from durable.line_marks m where m.queue = '{QUEUE}'"
        # Until then a claim passes over what the index of the lines has of them: some 50 pages.
        vacuumed = "select s.n_dead_tup < 100 from pg_stat_user_tables s where s.relid = 'durable.lines'::regclass"
        for end, true in (("no mark is left of them", forgotten), ("autovacuum has come", vacuumed)):
            yield Measurement.of(
                "lines", "durable", f"{priorities:,} priorities used once: from then until {end}", "s", "lower",
                [_until(used, true, fresh, since=left_at)], settings=settings,
            )  # fmt: skip
        yield from _compared(used, fresh, turns, f"{what}, marks and dead entries", Target(0.95), settings)


def _marks(conn: psycopg.Connection[Any]) -> int:
    query = "select max(cardinality(m.line_ids)) from durable.line_marks m where m.queue = %s"
    return int(conn.execute(query, [QUEUE]).fetchall()[0][0])


def _until(
    used: psycopg.Connection[Any], true: str, *others: psycopg.Connection[Any], since: float | None = None
) -> float:
    """Seconds, in which ticks and some work go on in these databases."""
    started = since or time.monotonic()
    while not used.execute(true.encode()).fetchall()[0][0]:
        if time.monotonic() - started > PATIENCE:
            raise SystemExit(f"lines: not within {PATIENCE} s: {true}")
        for conn in (used, *others):
            conn.execute("select durable.tick()")
            _batches.enqueue(conn, 1)
            _batches.complete(conn, _batches.claim(conn, 1, names=ONLY))
        time.sleep(TICK_EVERY)
    return time.monotonic() - started


def _after_updates(bench: Bench, system: System) -> Iterator[Measurement]:
    """What an hour of claims leaves of the marks alone, while a snapshot keeps all of it: ten updates a second."""
    updates, turns = (5_000, 60) if bench.quick else (36_000, 300)
    with (
        psycopg.connect(bench.prepare(system, "held"), autocommit=True) as held,
        psycopg.connect(bench.prepare(system, "free"), autocommit=True) as free,
        psycopg.connect(held.info.dsn, password=held.info.password) as holder,
    ):
        work = partial(_each, held, 1), partial(_each, free, 1)
        before = in_turns(turns, *work)[2:]
        holder.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        holder.execute("select count(*) from pg_class")
        started = time.monotonic()
        held.execute(MOVE_MARKS.format(queue=QUEUE, count=updates).encode())
        spent = time.monotonic() - started
        after = in_turns(turns, *work)
        holder.rollback()
    usual = statistics.median(rates(before))
    yield Measurement.of(
        "lines", "durable",
        f"claim and complete 1, after {updates:,} updates of the marks under a held snapshot, of that before",
        "×", "higher", [rate / usual for rate in rates(after)], target=Target(0.9),
        settings={
            "updates": updates, "seconds of updates": round(spent, 1),
            "ms before": medians(before), "ms after": medians(after),
        },
    )  # fmt: skip


SCENARIO = Scenario("lines", "Claims beside many other lines, of many lines, and after many lines", run)
