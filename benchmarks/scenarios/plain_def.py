from __future__ import annotations

from collections.abc import Iterator

from benchmarks.bench import Bench, Scenario
from benchmarks.measurement import Measurement, Target
from benchmarks.scenarios._load import Backlog, throughput
from benchmarks.workload import ONE_STEP_DEF, TEN_STEPS_DEF


def run(bench: Bench) -> Iterator[Measurement]:
    yield from throughput(
        bench, "one-step def", ONE_STEP_DEF, {"durable": Backlog(30_000, 8_000)}, targets={"workflows": Target(3_000)}
    )
    yield from throughput(bench, "ten-steps def", TEN_STEPS_DEF, {"durable": Backlog(6_000, 1_500)})


SCENARIO = Scenario("plain-def", "The same with plain def workflows and steps, one worker process, 200 in flight", run)
