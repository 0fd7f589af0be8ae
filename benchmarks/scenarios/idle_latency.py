from __future__ import annotations

import random
import time
from collections.abc import Iterator

from benchmarks.bench import Bench, Scenario
from benchmarks.measurement import Measurement, Target, percentile
from benchmarks.processes import Marks, WorkerProcess
from benchmarks.systems import Producer, System
from benchmarks.workload import MARK

WARM_UP = 5
# The gaps cover whole periods of every system's polling, so that no phase of it is favoured.
GAP = (0.1, 1.1)
PATIENCE = 30.0
SEED = 1


def run(bench: Bench) -> Iterator[Measurement]:
    samples = 10 if bench.quick else 100
    settings = {"samples": samples, "gap_s": list(GAP)}
    for system in bench.chosen("durable", "absurd", "dbos", "graphile_worker"):
        latencies = _latencies(bench, system, samples)
        for metric, share, limit in (("p50", 0.5, 4.0), ("p99", 0.99, 10.0)):
            yield Measurement.of(
                "idle-latency", system.name, metric, "ms", "lower", latencies,
                value=percentile(latencies, share), settings=settings, target=Target(limit),
            )  # fmt: skip


def _latencies(bench: Bench, system: System, samples: int) -> list[float]:
    """Milliseconds from before the call that enqueues to the first line of the body, in another process."""
    dsn = bench.prepare(system)
    gaps = random.Random(SEED)
    marks = Marks()
    found = []
    try:
        with WorkerProcess(system.name, "default", dsn, marks) as worker, system.producer(dsn) as enqueue:
            for sample in range(WARM_UP + samples):
                time.sleep(gaps.uniform(*GAP))
                milliseconds = latency(worker, marks, enqueue, sample)
                if sample >= WARM_UP:
                    found.append(milliseconds)
    finally:
        marks.close()
    return found


def latency(worker: WorkerProcess, marks: Marks, enqueue: Producer, sample: int) -> float:
    """Milliseconds of one sample."""
    called_at = time.monotonic()
    enqueue(MARK, {"sample": sample})
    mark = marks.next(PATIENCE)
    if mark is None or mark.sample != sample:
        worker.require_alive()
        raise SystemExit(f"{worker.system}: sample {sample} did not run within {PATIENCE} s:\n{worker.output()}")
    return (mark.at - called_at) * 1000


SCENARIO = Scenario("idle-latency", "Idle: from enqueue to the first line of the body, default settings", run)
