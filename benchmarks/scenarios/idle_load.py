from __future__ import annotations

import time
from collections.abc import Iterator

from benchmarks.bench import Bench, Scenario
from benchmarks.measurement import Measurement, Target
from benchmarks.processes import Marks, WorkerProcess
from benchmarks.systems import System
from benchmarks.workload import MARK

PATIENCE = 60.0
SETTLE = 5.0


def run(bench: Bench) -> Iterator[Measurement]:
    if not bench.cluster.count_statements(True):
        bench.log("left out: this Postgres has no pg_stat_statements")
        return
    window = 5.0 if bench.quick else 20.0
    for system in bench.chosen("durable", "absurd", "dbos"):
        rate = _statements_per_second(bench, system, window)
        yield Measurement.of(
            "idle-load", system.name, "statements", "1/s", "lower", [rate],
            settings={"window_s": window}, target=Target(2),
        )  # fmt: skip
    bench.cluster.count_statements(False)


def _statements_per_second(bench: Bench, system: System, window: float) -> float:
    """What one worker sends that has run a workflow and then has nothing to do."""
    dsn = bench.prepare(system)
    marks = Marks()
    try:
        with WorkerProcess(system.name, "default", dsn, marks) as worker:
            with system.producer(dsn) as enqueue:
                enqueue(MARK, {"sample": 0})
            if marks.next(PATIENCE) is None:
                raise SystemExit(f"{system.name}: nothing ran within {PATIENCE} s:\n{worker.output()}")
            time.sleep(SETTLE)
            before = bench.cluster.statements(dsn)
            time.sleep(window)
            worker.require_alive()
            return (bench.cluster.statements(dsn) - before) / window
    finally:
        marks.close()


SCENARIO = Scenario("idle-load", "An idle worker: statements per second", run)
