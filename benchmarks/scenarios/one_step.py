from __future__ import annotations

from collections.abc import Iterator

from benchmarks.bench import Bench, Scenario
from benchmarks.measurement import Measurement, Target
from benchmarks.scenarios._load import BEST, Backlog, throughput
from benchmarks.workload import ONE_STEP

BACKLOGS = {
    "durable": Backlog(60_000, 15_000),
    "absurd": Backlog(4_000, 2_000),
    "dbos": Backlog(1_200, 800),
    "restate": Backlog(4_000, 2_000),
}
RATIOS = {"absurd": 12, "dbos": 30}
TARGETS = {
    "workflows": Target(None, RATIOS),
    f"workflows, {BEST}": Target(14_000, RATIOS),
    "WAL per workflow": Target(3_000),
    "commits per workflow": Target(0.1),
}


def run(bench: Bench) -> Iterator[Measurement]:
    return throughput(bench, "one-step", ONE_STEP, BACKLOGS, all_shapes=True, targets=TARGETS)


SCENARIO = Scenario("one-step", "One-step workflows, async worker processes", run)
