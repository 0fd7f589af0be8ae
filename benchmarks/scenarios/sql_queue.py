from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Iterator

import psycopg

from benchmarks.bench import Bench, Scenario
from benchmarks.measurement import Measurement, Target
from benchmarks.scenarios import _batches
from benchmarks.systems import System, _node
from benchmarks.workload import ORDER, charge

BATCH = 500
WARM_UP = 5
REPEATS = 3
TARGET = Target(None, {"pg_boss": 1})


def run(bench: Bench) -> Iterator[Measurement]:
    """Both send their batches from one process, on one connection, and keep what was done."""
    batches = 40 if bench.quick else 200
    repeats = 1 if bench.quick else REPEATS
    settings = {"batch": BATCH, "batches": batches}
    for system in bench.chosen("durable"):
        rates = [_durable(bench, system, batches) for _ in range(repeats)]
        yield Measurement.of(
            "sql-queue", "durable", "workflows", "1/s", "higher", rates, settings=settings, target=TARGET
        )
    if "pg_boss" in bench.systems:
        rates = [_pg_boss(bench, batches) for _ in range(repeats)]
        yield Measurement.of("sql-queue", "pg_boss", "workflows", "1/s", "higher", rates, settings=settings)


def _durable(bench: Bench, system: System, batches: int) -> float:
    with psycopg.connect(bench.prepare(system), autocommit=True) as conn:
        _work(conn, WARM_UP)
        started = time.perf_counter()
        _work(conn, batches)
        rate = batches * BATCH / (time.perf_counter() - started)
        assert _batches.completed(conn) == (WARM_UP + batches) * BATCH
        return rate


def _work(conn: psycopg.Connection[tuple[object, ...]], batches: int) -> None:
    for _ in range(batches):
        _batches.enqueue(conn, BATCH)
        _batches.complete(conn, _batches.claim(conn, BATCH))


def _pg_boss(bench: Bench, batches: int) -> float:
    dsn = bench.cluster.create_database("bench_pg_boss")
    command = _node.command(
        "pg_boss.mjs", dsn, str(WARM_UP), str(batches), str(BATCH), json.dumps(ORDER), json.dumps(charge(ORDER))
    )
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    found = json.loads(done.stdout)
    assert found["completed"] == (WARM_UP + batches) * BATCH
    return batches * BATCH / float(found["seconds"])


SCENARIO = Scenario(
    "sql-queue", "Workflows without a step by SQL alone, one connection, batches of 500: enqueue, claim, complete", run
)
