from __future__ import annotations

from collections.abc import Iterator

from benchmarks.bench import Bench, Scenario
from benchmarks.measurement import Measurement, Target
from benchmarks.scenarios._load import Backlog, throughput
from benchmarks.workload import NO_STEP

BACKLOGS = {
    "durable": Backlog(100_000, 20_000),
    "procrastinate": Backlog(4_000, 1_500),
    "pgqueuer": Backlog(60_000, 15_000),
    "graphile_worker": Backlog(150_000, 40_000),
}
TARGET = Target(None, {"procrastinate": 10, "pgqueuer": 10, "graphile_worker": 0.4})


def run(bench: Bench) -> Iterator[Measurement]:
    """Of the others, graphile-worker deletes its jobs, and none keeps what they return."""
    return throughput(bench, "plain-queue", NO_STEP, BACKLOGS, targets={"workflows": TARGET})


SCENARIO = Scenario("plain-queue", "Workflows without a step, as a plain queue would run them, one worker process", run)
