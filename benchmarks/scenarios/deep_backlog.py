from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import psycopg

from benchmarks.bench import Bench, Scenario
from benchmarks.measurement import Measurement, Target
from benchmarks.scenarios import _batches

BATCH = 100
FILL = 1000
PRIORITIES = (0, 1, 2)
SHALLOW = 1_000
REPEATS = 3


def run(bench: Bench) -> Iterator[Measurement]:
    """The same number of workflows is claimed and completed; how many more are pending must make no difference."""
    deep = 60_000 if bench.quick else 1_000_000
    drained = 10_000 if bench.quick else 50_000
    repeats = 1 if bench.quick else REPEATS
    for system in bench.chosen("durable"):
        with (
            psycopg.connect(bench.prepare(system, "shallow"), autocommit=True) as few,
            psycopg.connect(bench.prepare(system, "deep"), autocommit=True) as many,
        ):
            _fill(many, deep)
            many.execute("analyze")
            # In turns, for the machine is quicker at some times than at others.
            rates = [(_shallow(few, drained), _rate(many, drained)) for _ in range(repeats)]
        settings = {"batch": BATCH, "priorities": list(PRIORITIES), "drained": drained}
        for depth, found in zip((SHALLOW, deep), zip(*rates, strict=True), strict=True):
            yield Measurement.of(
                "deep-backlog", "durable", f"claim and complete, {depth:,} pending", "1/s", "higher", found,
                settings=settings,
            )  # fmt: skip
        yield Measurement.of(
            "deep-backlog", "durable", f"{deep:,} pending, of the rate at {SHALLOW:,}", "%", "higher",
            [100 * rate / shallow for shallow, rate in rates],
            settings=settings, target=Target(90),
        )  # fmt: skip


def _shallow(conn: psycopg.Connection[Any], count: int) -> float:
    """Filled up again each time that it is drained; only draining is timed."""
    seconds = 0.0
    for _ in range(count // SHALLOW):
        _fill(conn, SHALLOW)
        seconds += SHALLOW / _rate(conn, SHALLOW)
    return count / seconds


def _fill(conn: psycopg.Connection[Any], count: int) -> None:
    """A third in each priority."""
    per_priority = -(-count // len(PRIORITIES))
    for start in range(0, per_priority, FILL):
        for priority in PRIORITIES:
            size = min(FILL, per_priority - start)
            _batches.enqueue(conn, size, priority=priority)


def _rate(conn: psycopg.Connection[Any], count: int) -> float:
    started = time.perf_counter()
    for _ in range(count // BATCH):
        _batches.complete(conn, _batches.claim(conn, BATCH))
    return count / (time.perf_counter() - started)


SCENARIO = Scenario("deep-backlog", "A deep backlog in three priorities, SQL alone in batches of 100", run)
