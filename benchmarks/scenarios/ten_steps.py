from __future__ import annotations

from collections.abc import Iterator

from benchmarks.bench import Bench, Scenario
from benchmarks.measurement import Measurement, Target
from benchmarks.scenarios._load import Backlog, throughput
from benchmarks.workload import TEN_STEPS

BACKLOGS = {"durable": Backlog(20_000, 4_000), "absurd": Backlog(1_500, 500), "dbos": Backlog(300, 100)}


def run(bench: Bench) -> Iterator[Measurement]:
    return throughput(
        bench, "ten-steps", TEN_STEPS, BACKLOGS,
        steps_target=Target(20_000, {"absurd": 15, "dbos": 50}),
    )  # fmt: skip


SCENARIO = Scenario("ten-steps", "Ten-step workflows, one async worker process, 200 in flight", run)
