from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack

import psycopg

from benchmarks.bench import Bench, Scenario
from benchmarks.measurement import Measurement, Target
from benchmarks.processes import Marks, WorkerProcess
from benchmarks.systems import System
from benchmarks.workload import MARK

PATIENCE = 60.0
SETTLE = 5.0
MANY = 20  # workers of an idle cluster

IDLE = "select 'durable_worker_' || worker_id from durable.idle_workers group by worker_id"


def run(bench: Bench) -> Iterator[Measurement]:
    if not bench.cluster.count_statements(True):
        bench.log("left out: this Postgres has no pg_stat_statements")
        return
    window = 5.0 if bench.quick else 20.0
    for system in bench.chosen("durable", "absurd", "dbos"):
        rate = _statements_per_second(bench, system, window)
        yield Measurement.of(
            "idle-load", system.name, "statements", "1/s", "lower", [rate],
            settings={"window_s": window}, target=Target(2),
        )  # fmt: skip
    for system in bench.chosen("durable"):
        statements, notifications = _of_many(bench, system, window)
        settings = {"window_s": window, "workers": MANY}
        yield Measurement.of(
            "idle-load", system.name, f"{MANY} workers: statements", "1/s", "lower", [statements],
            settings=settings, target=Target(20),
        )  # fmt: skip
        yield Measurement.of(
            "idle-load", system.name, f"{MANY} workers: notifications", "", "lower", [notifications],
            settings=settings, target=Target(0),
        )  # fmt: skip
    bench.cluster.count_statements(False)


def _statements_per_second(bench: Bench, system: System, window: float) -> float:
    """What one worker sends that has run a workflow and then has nothing to do."""
    dsn = bench.prepare(system)
    marks = Marks()
    try:
        with WorkerProcess(system.name, "default", dsn, marks) as worker:
            with system.producer(dsn) as enqueue:
                enqueue(MARK, {"sample": 0})
            if marks.next(PATIENCE) is None:
                raise SystemExit(f"{system.name}: nothing ran within {PATIENCE} s:\n{worker.output()}")
            time.sleep(SETTLE)
            before = bench.cluster.statements(dsn)
            time.sleep(window)
            worker.require_alive()
            return (bench.cluster.statements(dsn) - before) / window
    finally:
        marks.close()


def _of_many(bench: Bench, system: System, window: float) -> tuple[float, int]:
    """Statements per second of many workers that have nothing to do, and how often one is notified meanwhile."""
    dsn = bench.prepare(system)
    with ExitStack() as opened:
        workers = [opened.enter_context(WorkerProcess(system.name, "default", dsn)) for _ in range(MANY)]
        conn = opened.enter_context(psycopg.connect(dsn, autocommit=True))
        deadline = time.monotonic() + PATIENCE
        while len(found := conn.execute(IDLE).fetchall()) < MANY:
            if time.monotonic() > deadline:
                raise SystemExit(f"{system.name}: {len(found)} of {MANY} workers became idle:\n{workers[0].output()}")
            time.sleep(0.5)
        for (channel,) in found:
            conn.execute(f'listen "{channel}"')
        time.sleep(SETTLE)
        before = bench.cluster.statements(dsn)
        time.sleep(window)
        rate = (bench.cluster.statements(dsn) - before) / window
        for worker in workers:
            worker.require_alive()
        return rate, len(list(conn.notifies(timeout=0)))


SCENARIO = Scenario("idle-load", "Idle workers: statements per second", run)
