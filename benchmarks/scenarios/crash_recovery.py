from __future__ import annotations

import random
import time
from collections.abc import Iterator

from benchmarks.bench import Bench, Scenario
from benchmarks.measurement import Measurement, Target
from benchmarks.processes import Mark, Marks, WorkerProcess
from benchmarks.systems import Producer
from benchmarks.workload import HOLD, MARK

PATIENCE = 60.0
SEED = 1
HELD = 0  # the sample number of the workflow that is handed on


def run(bench: Bench) -> Iterator[Measurement]:
    """One workflow is handed from worker to worker: the one that runs it is killed, the other one takes it over."""
    samples = 5 if bench.quick else 20
    for system in bench.chosen("durable"):
        dsn = bench.prepare(system)
        marks = Marks()
        workers = {w.pid: w for w in (WorkerProcess(system.name, "default", dsn, marks) for _ in range(2))}
        try:
            with system.producer(dsn) as enqueue:
                gaps = _relay(dsn, marks, workers, enqueue, samples)
        finally:
            for worker in workers.values():
                worker.kill()
            marks.close()
        settings = {"samples": samples}
        target = Target(1.5)
        yield Measurement.of(
            "crash-recovery", system.name, "median", "s", "lower", gaps, settings=settings, target=target
        )
        yield Measurement.of(
            "crash-recovery", system.name, "max", "s", "lower", gaps, value=max(gaps), settings=settings, target=target
        )


def _relay(dsn: str, marks: Marks, workers: dict[int, WorkerProcess], enqueue: Producer, samples: int) -> list[float]:
    """Seconds from SIGKILL to the first line of the body in the other worker."""
    pauses = random.Random(SEED)
    gaps: list[float] = []
    enqueue(HOLD, {"sample": HELD})
    holder = _wait(marks, HELD).pid
    while len(gaps) < samples:
        (standby,) = workers.keys() - {holder}
        _wait_until_ready(standby, marks, enqueue)
        # Anywhere in the rhythm of heartbeats.
        time.sleep(pauses.uniform(0.5, 2.5))
        killed_at = time.monotonic()
        workers.pop(holder).kill()
        mark = _wait(marks, HELD)
        gaps.append(mark.at - killed_at)
        holder = mark.pid
        successor = WorkerProcess("durable", "default", dsn, marks)
        workers[successor.pid] = successor
    return gaps


def _wait_until_ready(pid: int, marks: Marks, enqueue: Producer) -> None:
    """A worker is ready when it has run something; which of the two runs it is left to chance."""
    deadline = time.monotonic() + PATIENCE
    sample = HELD
    while time.monotonic() < deadline:
        sample += 1
        enqueue(MARK, {"sample": sample})
        if _wait(marks, sample).pid == pid:
            return
        time.sleep(0.05)
    raise SystemExit(f"Worker {pid} ran nothing within {PATIENCE} s.")


def _wait(marks: Marks, sample: int) -> Mark:
    mark = marks.next(PATIENCE)
    if mark is None or mark.sample != sample:
        raise SystemExit(f"Expected sample {sample} within {PATIENCE} s, got {mark}.")
    return mark


SCENARIO = Scenario("crash-recovery", "SIGKILL of a worker until another one runs its workflow, default settings", run)
