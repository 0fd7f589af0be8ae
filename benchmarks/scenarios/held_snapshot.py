from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import psycopg

from benchmarks.bench import Bench, Scenario
from benchmarks.measurement import Measurement, Target
from benchmarks.scenarios import _batches

BATCH = 100
TENTHS = 10
# Vacuum and the cursors of the lanes need a moment once the transaction is over.
RECOVERY = 3.0

# What is held open, the statement that does it, and the least per cent of the rate at the beginning.
HOLDS = (
    ("a read-only snapshot", "select count(*) from pg_class", 95),
    ("an open writing transaction", "create table held ()", 60),
)


def run(bench: Bench) -> Iterator[Measurement]:
    """Dead rows that vacuum may not remove pile up behind a transaction that stays open all the while."""
    count = 50_000 if bench.quick else 1_000_000
    settings = {"workflows": count, "batch": BATCH}
    for system in bench.chosen("durable"):
        for what, statement, least in HOLDS:
            dsn = bench.prepare(system)
            with psycopg.connect(dsn, autocommit=True) as conn, psycopg.connect(dsn) as holder:
                holder.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
                # Lanes, plans and partitions are there before the first tenth.
                _rate(conn, 20)
                holder.execute(statement)
                rates = [_rate(conn, count // TENTHS // BATCH) for _ in range(TENTHS)]
                holder.rollback()
                time.sleep(RECOVERY)
                after = _rate(conn, count // TENTHS // BATCH)
            yield Measurement.of(
                "held-snapshot", "durable", f"{what}: first tenth", "1/s", "higher", rates[:1],
                settings={**settings, "tenths": [round(rate) for rate in rates]},
            )  # fmt: skip
            yield Measurement.of(
                "held-snapshot", "durable", f"{what}: last tenth, of the first", "%", "higher",
                [100 * rates[-1] / rates[0]], settings=settings, target=Target(least),
            )  # fmt: skip
            yield Measurement.of(
                "held-snapshot", "durable", f"{what}: after its end, of the first tenth", "%", "higher",
                [100 * after / rates[0]], settings=settings, target=Target(95),
            )  # fmt: skip


def _rate(conn: psycopg.Connection[Any], batches: int) -> float:
    started = time.perf_counter()
    for _ in range(batches):
        _batches.one_step_batch(conn, BATCH)
    return batches * BATCH / (time.perf_counter() - started)


SCENARIO = Scenario("held-snapshot", "SQL alone in batches of 100 while a transaction is held open", run)
