from __future__ import annotations

from collections.abc import Iterator

from benchmarks.bench import Bench, Scenario
from benchmarks.measurement import Measurement, Target
from benchmarks.scenarios._load import BEST, Backlog, throughput
from benchmarks.workload import TEN_STEPS

BACKLOGS = {
    "durable": Backlog(15_000, 4_000),
    "absurd": Backlog(1_200, 400),
    "dbos": Backlog(200, 100),
    "restate": Backlog(1_000, 500),
}
RATIOS = {"absurd": 20, "dbos": 60}
TARGETS = {"steps": Target(None, RATIOS), f"steps, {BEST}": Target(35_000, RATIOS)}


def run(bench: Bench) -> Iterator[Measurement]:
    return throughput(bench, "ten-steps", TEN_STEPS, BACKLOGS, all_shapes=True, targets=TARGETS)


SCENARIO = Scenario("ten-steps", "Ten-step workflows, async worker processes", run)
