from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import psycopg

from benchmarks.bench import Bench, Scenario
from benchmarks.measurement import Measurement, Target
from benchmarks.scenarios import _batches

BATCH = 100
TURN = 20  # batches
TENTHS = 10
# Vacuum and the cursors of the lanes need a moment once the transaction is over.
RECOVERY = 3.0

# What is held open, the statement that does it, and the least per cent of the rate at the beginning.
HOLDS = (
    ("a read-only snapshot", "select count(*) from pg_class", 95),
    ("an open writing transaction", "create table held ()", 60),
)


def run(bench: Bench) -> Iterator[Measurement]:
    """Dead rows that vacuum may not remove pile up behind a transaction that stays open all the while.

    A database on the same server, in which nothing is held, gets the same work in turns. What becomes slower in both
    is the machine, or what any history of that size costs.
    """
    count = 50_000 if bench.quick else 1_000_000
    settings = {"workflows": count, "batch": BATCH}
    for system in bench.chosen("durable"):
        for what, statement, least in HOLDS:
            dsn, free_dsn = bench.prepare(system), bench.prepare(system, "free")
            with (
                psycopg.connect(dsn, autocommit=True) as conn,
                psycopg.connect(free_dsn, autocommit=True) as free,
                psycopg.connect(dsn) as holder,
            ):
                holder.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
                # Lanes, plans and partitions are there before the first tenth.
                _rates((conn, free), 20)
                holder.execute(statement)
                tenths = [_rates((conn, free), count // TENTHS // BATCH) for _ in range(TENTHS)]
                holder.rollback()
                time.sleep(RECOVERY)
                after = _rates((conn, free), count // TENTHS // BATCH)
            held, beside = ([round(rates[n]) for rates in tenths] for n in (0, 1))
            yield Measurement.of(
                "held-snapshot", "durable", f"{what}: first tenth", "1/s", "higher", held[:1],
                settings={**settings, "tenths": held, "tenths with nothing held": beside},
            )  # fmt: skip
            yield Measurement.of(
                "held-snapshot", "durable", f"{what}: last tenth, of the first", "%", "higher",
                [100 * held[-1] / held[0]], settings=settings,
            )  # fmt: skip
            yield Measurement.of(
                "held-snapshot", "durable", f"{what}: the same, of that with nothing held", "%", "higher",
                [100 * (held[-1] / held[0]) / (beside[-1] / beside[0])], settings=settings, target=Target(least),
            )  # fmt: skip
            yield Measurement.of(
                "held-snapshot", "durable", f"{what}: after its end, of that with nothing held", "%", "higher",
                [100 * after[0] / after[1]], settings=settings, target=Target(95),
            )  # fmt: skip


def _rates(conns: tuple[psycopg.Connection[Any], ...], batches: int) -> list[float]:
    """The rate on each connection, in turns of some batches."""
    seconds = [0.0] * len(conns)
    turns = max(1, batches // TURN)
    for turn in range(turns):
        # Each is the first as often as the other.
        for n in range(len(conns)) if turn % 2 else reversed(range(len(conns))):
            started = time.perf_counter()
            for _ in range(batches // turns):
                _batches.one_step_batch(conns[n], BATCH)
            seconds[n] += time.perf_counter() - started
    return [batches // turns * turns * BATCH / spent for spent in seconds]


SCENARIO = Scenario("held-snapshot", "SQL alone in batches of 100 while a transaction is held open", run)
