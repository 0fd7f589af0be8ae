"""Throughput: a backlog is worked off by worker processes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from benchmarks.bench import ONE_PROCESS, Bench, run_load
from benchmarks.measurement import Better, Measurement, Target
from benchmarks.systems import Engine, Queue, Shape
from benchmarks.workload import STEPS


@dataclass(frozen=True, slots=True)
class Backlog:
    """How many workflows a system is given: enough for several seconds of work, at its own speed."""

    full: int
    quick: int


REPEATS = 3
# Each is run once, with half of the backlog, beside the repeats of one process with 200 in flight.
SHAPES = tuple(
    shape
    for shape in (Shape(processes, in_flight) for processes in (1, 2) for in_flight in (50, 200, 1000))
    if shape != ONE_PROCESS
)
QUICK_SHAPES = {"durable": (Shape(2, 200),)}
BEST = "best of all shapes"


@dataclass(frozen=True, slots=True)
class _Figures:
    """Makes measurements of the loads of one system."""

    scenario: str
    system: Queue | Engine
    backlog: int
    targets: Mapping[str, Target]

    def rate(self, metric: str, samples: Sequence[float], shape: Shape) -> Measurement:
        return self._of(metric, "1/s", "higher", samples, shape)

    def cost(self, metric: str, unit: str, samples: Sequence[float]) -> Measurement:
        return self._of(metric, unit, "lower", samples, ONE_PROCESS)

    def _of(self, metric: str, unit: str, better: Better, samples: Sequence[float], shape: Shape) -> Measurement:
        settings = {"backlog": self.backlog, "processes": shape.processes}
        settings |= self.system.throughput_settings(shape.in_flight)
        return Measurement.of(
            self.scenario, self.system.name, metric, unit, better, samples,
            settings=settings, target=self.targets.get(metric),
        )  # fmt: skip


def throughput(
    bench: Bench,
    scenario: str,
    workflow: str,
    backlogs: Mapping[str, Backlog],
    *,
    all_shapes: bool = False,
    targets: Mapping[str, Target] | None = None,
) -> Iterator[Measurement]:
    """The rate in each shape, and what a workflow costs in the first one. The targets are by metric."""
    what, parts = ("steps", STEPS[workflow]) if STEPS[workflow] > 1 else ("workflows", 1)
    for system in bench.chosen_for_load(*backlogs):
        backlog = backlogs[system.name]
        count, half = (backlog.quick, backlog.quick) if bench.quick else (backlog.full, backlog.full // 2)
        figures = _Figures(scenario, system, count, targets or {})

        loads = [run_load(bench, system, workflow, count) for _ in range(1 if bench.quick else REPEATS)]
        repeated = [count * parts / load.drain.seconds for load in loads]
        yield figures.rate(what, repeated, ONE_PROCESS)
        if all_shapes:
            rates = {ONE_PROCESS: max(repeated)}
            for shape in QUICK_SHAPES.get(system.name, ()) if bench.quick else SHAPES:
                rates[shape] = half * parts / run_load(bench, system, workflow, half, shape).drain.seconds
                yield figures.rate(f"{what}, {shape}", [rates[shape]], shape)
            best = max(rates, key=lambda shape: rates[shape])
            yield figures.rate(f"{what}, {BEST}", [rates[best]], best)

        yield figures.cost("worker CPU per workflow", "µs", [load.worker_cpu / count * 1e6 for load in loads])
        yield figures.cost("server CPU per workflow", "µs", [load.server_cpu / count * 1e6 for load in loads])
        if isinstance(system, Engine):
            continue
        yield figures.cost("WAL per workflow", "B", [load.wal_bytes / count for load in loads])
        yield figures.cost("commits per workflow", "", [load.commits / count for load in loads])
        if not bench.quick and bench.cluster.count_statements(True):
            # Counting takes time, so it has a run of its own.
            counted = run_load(bench, system, workflow, backlog.quick)
            bench.cluster.count_statements(False)
            yield figures.cost("statements per workflow", "", [counted.statements / backlog.quick])
