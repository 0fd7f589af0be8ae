from __future__ import annotations

import random
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing

from benchmarks import systems
from benchmarks.bench import Bench, Scenario
from benchmarks.measurement import Measurement, Target, percentile
from benchmarks.processes import Marks, WorkerProcess
from benchmarks.scenarios.idle_latency import GAP, SEED, latency

# The sessions plan anew for some time.
WARM_UP = 15
PERCENTILES = (("p50", 0.5, Target(1.8)), ("p90", 0.9, None), ("p99", 0.99, Target(1.8)))


def run(bench: Bench) -> Iterator[Measurement]:
    """The samples of idle-latency, alternating with those of a table, a notification and one UPDATE."""
    samples = 20 if bench.quick else 200
    gaps = random.Random(SEED)
    for system in bench.chosen("durable"):
        sides = []
        with ExitStack() as opened:
            for each in (system, systems.load("bare")):
                dsn = bench.prepare(each)
                marks = opened.enter_context(closing(Marks()))
                worker = opened.enter_context(WorkerProcess(each.name, "default", dsn, marks))
                enqueue = opened.enter_context(each.producer(dsn))
                sides.append((each.name, worker, marks, enqueue))
            found: dict[str, list[float]] = {name: [] for name, *_ in sides}
            for sample in range(WARM_UP + samples):
                # Each is the first of the two as often as the other.
                for name, worker, marks, enqueue in sides if sample % 2 else reversed(sides):
                    time.sleep(gaps.uniform(*GAP))
                    found[name].append(latency(worker, marks, enqueue, sample))
        found = {name: milliseconds[WARM_UP:] for name, milliseconds in found.items()}
        settings = {"samples": samples, "gap_s": list(GAP)}
        for metric, share, target in PERCENTILES:
            values = {name: percentile(milliseconds, share) for name, milliseconds in found.items()}
            for name, value in values.items():
                yield Measurement.of(
                    "bare-latency", name, metric, "ms", "lower", found[name], value=value, settings=settings
                )
            yield Measurement.of(
                "bare-latency", "durable", f"{metric}, of that of a bare table", "×", "lower",
                [values["durable"] / values["bare"]], settings=settings, target=target,
            )  # fmt: skip


SCENARIO = Scenario("bare-latency", "Idle: from enqueue to the first line of the body, beside a bare table", run)
