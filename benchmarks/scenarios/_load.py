"""Throughput: a backlog is worked off by one worker process."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from benchmarks.bench import Bench, run_load
from benchmarks.measurement import Measurement, Target
from benchmarks.workload import STEPS


@dataclass(frozen=True, slots=True)
class Backlog:
    """How many workflows a system is given: enough for several seconds of work, at its own speed."""

    full: int
    quick: int


REPEATS = 3


def throughput(
    bench: Bench,
    scenario: str,
    workflow: str,
    backlogs: Mapping[str, Backlog],
    *,
    workflows_target: Target | None = None,
    steps_target: Target | None = None,
) -> Iterator[Measurement]:
    for system in bench.chosen(*backlogs):
        backlog = backlogs[system.name]
        count = backlog.quick if bench.quick else backlog.full
        loads = [run_load(bench, system, workflow, count) for _ in range(1 if bench.quick else REPEATS)]
        settings = {"backlog": count, **system.throughput_settings}
        rates = [count / load.drain.seconds for load in loads]
        yield Measurement.of(
            scenario, system.name, "workflows", "1/s", "higher", rates, settings=settings, target=workflows_target
        )
        if STEPS[workflow] > 1:
            yield Measurement.of(
                scenario, system.name, "steps", "1/s", "higher", [rate * STEPS[workflow] for rate in rates],
                settings=settings, target=steps_target,
            )  # fmt: skip
        costs: dict[str, tuple[str, list[float]]] = {
            "worker CPU per workflow": ("µs", [load.worker_cpu / count * 1e6 for load in loads]),
            "server CPU per workflow": ("µs", [load.server_cpu / count * 1e6 for load in loads]),
            "WAL per workflow": ("B", [load.wal_bytes / count for load in loads]),
            "commits per workflow": ("", [load.commits / count for load in loads]),
        }
        for metric, (unit, samples) in costs.items():
            yield Measurement.of(scenario, system.name, metric, unit, "lower", samples, settings=settings)
