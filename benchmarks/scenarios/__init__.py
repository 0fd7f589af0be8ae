"""The scenarios, in the order in which they run and are shown."""

from benchmarks.bench import Scenario
from benchmarks.scenarios import (
    crash_recovery,
    enqueue,
    idle_latency,
    idle_load,
    large_history,
    many_workers,
    one_step,
    plain_def,
    retention,
    sql_batches,
    ten_steps,
)

SCENARIOS: tuple[Scenario, ...] = (
    one_step.SCENARIO,
    ten_steps.SCENARIO,
    plain_def.SCENARIO,
    sql_batches.SCENARIO,
    large_history.SCENARIO,
    retention.SCENARIO,
    enqueue.SCENARIO,
    idle_latency.SCENARIO,
    crash_recovery.SCENARIO,
    idle_load.SCENARIO,
    many_workers.SCENARIO,
)
