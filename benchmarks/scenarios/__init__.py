"""The scenarios, in the order in which they run and are shown."""

from benchmarks.bench import Scenario
from benchmarks.scenarios import (
    crash_recovery,
    deep_backlog,
    enqueue,
    half_load,
    held_snapshot,
    idle_latency,
    idle_load,
    large_history,
    many_workers,
    one_step,
    plain_def,
    plain_queue,
    retention,
    schedules,
    sleepers,
    sql_batches,
    sql_queue,
    ten_steps,
)

SCENARIOS: tuple[Scenario, ...] = (
    one_step.SCENARIO,
    ten_steps.SCENARIO,
    plain_def.SCENARIO,
    plain_queue.SCENARIO,
    sql_queue.SCENARIO,
    sql_batches.SCENARIO,
    deep_backlog.SCENARIO,
    held_snapshot.SCENARIO,
    sleepers.SCENARIO,
    half_load.SCENARIO,
    large_history.SCENARIO,
    retention.SCENARIO,
    enqueue.SCENARIO,
    idle_latency.SCENARIO,
    crash_recovery.SCENARIO,
    idle_load.SCENARIO,
    many_workers.SCENARIO,
    schedules.SCENARIO,
)
