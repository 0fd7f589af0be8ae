from __future__ import annotations

from collections.abc import Iterator

from benchmarks.bench import Bench, Scenario
from benchmarks.measurement import Measurement, Target
from benchmarks.scenarios._load import Backlog, throughput
from benchmarks.workload import ONE_STEP

BACKLOGS = {"durable": Backlog(80_000, 15_000), "absurd": Backlog(6_000, 2_000), "dbos": Backlog(2_500, 800)}


def run(bench: Bench) -> Iterator[Measurement]:
    return throughput(
        bench, "one-step", ONE_STEP, BACKLOGS,
        workflows_target=Target(8_000, {"absurd": 10, "dbos": 25}),
    )  # fmt: skip


SCENARIO = Scenario("one-step", "One-step workflows, one async worker process, 200 in flight", run)
