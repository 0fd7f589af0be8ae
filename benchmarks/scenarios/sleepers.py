from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import psycopg

from benchmarks.bench import Bench, Scenario
from benchmarks.measurement import Measurement, Target
from benchmarks.processes import WorkerProcess
from benchmarks.scenarios._batches import INPUT
from benchmarks.workload import NO_STEP, QUEUE

BATCH = 1000
DUE = 10_000
LEAD = 8.0  # seconds from the enqueueing of what falls due to when it does: the worker is up and idle by then
PATIENCE = 60.0

ENQUEUE = """
select durable.enqueue_many(%s, array_fill(%s::jsonb, array[%s]), queue => %s,
  run_at => now() + make_interval(secs => %s))"""


def run(bench: Bench) -> Iterator[Measurement]:
    """Most sleep for days; ten thousand fall due at one time, and one worker with default settings runs them."""
    sleeping = 50_000 if bench.quick else 1_000_000
    for system in bench.chosen("durable"):
        dsn = bench.prepare(system)
        with psycopg.connect(dsn, autocommit=True) as conn:
            for n in range(sleeping // BATCH):
                _enqueue(conn, BATCH, 86_400 + 60 * n)
            conn.execute("analyze")
            with conn.transaction():
                due_at = conn.execute("select now() + make_interval(secs => %s)", [LEAD]).fetchall()[0][0]
                for _ in range(DUE // BATCH):
                    _enqueue(conn, BATCH, LEAD)
            with WorkerProcess(system.name, "default", dsn) as worker:
                _wait(conn, worker)
            seconds = conn.execute(
                "select extract(epoch from max(started_at) - %s)::float8 from durable.finished_workflows", [due_at]
            ).fetchall()[0][0]
        yield Measurement.of(
            "sleepers", "durable", f"{DUE:,} due at once: until the last one runs", "s", "lower", [seconds],
            settings={"sleeping": sleeping}, target=Target(5),
        )  # fmt: skip


def _enqueue(conn: psycopg.Connection[Any], size: int, seconds: float) -> None:
    conn.execute(ENQUEUE, [NO_STEP, INPUT, size, QUEUE, seconds], prepare=True)


def _wait(conn: psycopg.Connection[Any], worker: WorkerProcess) -> None:
    deadline = time.monotonic() + LEAD + PATIENCE
    done = "select count(*) from durable.finished_workflows where status = 'completed'"
    while conn.execute(done).fetchall()[0][0] < DUE:
        worker.require_alive()
        if time.monotonic() > deadline:
            raise SystemExit(f"Not all of {DUE} ran within {PATIENCE} s:\n{worker.output()}")
        time.sleep(0.5)


SCENARIO = Scenario("sleepers", "Delayed starts that fall due at once, among many that do not", run)
