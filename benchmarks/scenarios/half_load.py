from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import psycopg

from benchmarks.bench import Bench, Scenario, run_load
from benchmarks.measurement import Measurement, Target
from benchmarks.processes import WorkerProcess
from benchmarks.scenarios._batches import INPUT
from benchmarks.systems import System
from benchmarks.workload import ONE_STEP, QUEUE

BACKLOG = 20_000
ARRIVALS_PER_SECOND = 100  # batches, as of a hundred requests a second that enqueue some workflows each
WARM_UP = 3.0
PATIENCE = 60.0

LATENCIES = """
select percentile_disc(array[0.5, 0.99])
  within group (order by extract(epoch from completed_at - created_at)::float8 * 1000)
from durable.finished_workflows where created_at >= %s"""


def run(bench: Bench) -> Iterator[Measurement]:
    """From the enqueueing transaction to the end of the workflow, by the server's clock, while all keeps up."""
    seconds = 5.0 if bench.quick else 15.0
    for system in bench.chosen("durable"):
        full = BACKLOG / run_load(bench, system, ONE_STEP, BACKLOG).drain.seconds
        size = max(1, round(full / 2 / ARRIVALS_PER_SECOND))
        p50, p99 = _latencies(bench, system, size, seconds)
        settings = {"full_load": round(full), "load": size * ARRIVALS_PER_SECOND, "seconds": seconds}
        for metric, found, target in (("p50", p50, None), ("p99", p99, Target(100))):
            yield Measurement.of(
                "half-load", "durable", f"from enqueue to completion, {metric}", "ms", "lower", [found],
                settings=settings, target=target,
            )  # fmt: skip


def _latencies(bench: Bench, system: System, size: int, seconds: float) -> list[float]:
    dsn = bench.prepare(system)
    with psycopg.connect(dsn, autocommit=True) as conn, WorkerProcess(system.name, "throughput", dsn) as worker:
        _arrive(conn, size, WARM_UP)
        began_at = conn.execute("select clock_timestamp()").fetchall()[0][0]
        _arrive(conn, size, seconds)
        deadline = time.monotonic() + PATIENCE
        while system.unfinished(conn):
            worker.require_alive()
            if time.monotonic() > deadline:
                raise SystemExit(f"Half of the load was too much:\n{worker.output()}")
            time.sleep(0.1)
        return list(conn.execute(LATENCIES, [began_at]).fetchall()[0][0])


def _arrive(conn: psycopg.Connection[Any], size: int, seconds: float) -> None:
    """At an even pace that does not wait for the workers, nor for a call that took longer."""
    started = time.perf_counter()
    for n in range(round(seconds * ARRIVALS_PER_SECOND)):
        time.sleep(max(0.0, started + n / ARRIVALS_PER_SECOND - time.perf_counter()))
        conn.execute(
            "select durable.enqueue_many(%s, %s::jsonb[], queue => %s)", [ONE_STEP, [INPUT] * size, QUEUE], prepare=True
        )


SCENARIO = Scenario("half-load", "Latency at half of the load that one worker process can carry", run)
