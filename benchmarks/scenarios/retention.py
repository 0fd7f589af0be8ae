from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import psycopg

from benchmarks.bench import Bench, Scenario
from benchmarks.measurement import Measurement, Target
from benchmarks.processes import WorkerProcess
from benchmarks.scenarios._history import fill_day
from benchmarks.systems import System
from benchmarks.workload import ONE_STEP

DAYS_AGO = 40
WARM_UP = 2.0
PATIENCE = 120.0
IS_GONE = """
  select to_regclass('durable.finished_workflows' || to_char(%s::date, '_YYYYMMDD')) is null
    and to_regclass('durable.checkpoints' || to_char(%s::date, '_YYYYMMDD')) is null"""
ENDED = """
  select count(*)::float8 from durable.finished_workflows
  where completed_at >= %s + make_interval(secs => %s) and completed_at < %s + make_interval(secs => %s)"""


def run(bench: Bench) -> Iterator[Measurement]:
    """A worker at full load, whose own ticks remove an old day: as a whole, or row by row where something pins it."""
    workflows, window, backlog = (50_000, 3.0, 200_000) if bench.quick else (1_000_000, 10.0, 600_000)
    for system in bench.chosen("durable"):
        settings = {"workflows": workflows, "window_s": window, **system.throughput_settings()}
        for what, pinned in (("a day", False), ("a pinned day", True)):
            seconds, removed, share = _remove(bench, system, workflows, window, backlog, pinned=pinned)
            yield Measurement.of(
                "retention", "durable", f"{what}: throughput meanwhile, of that around it", "", "higher", [share],
                settings=settings, target=Target(0.8),
            )  # fmt: skip
            if pinned:
                yield Measurement.of(
                    "retention", "durable", f"{what}: removed meanwhile", "1/s", "higher", [removed / window],
                    settings=settings,
                )  # fmt: skip
            else:
                yield Measurement.of(
                    "retention", "durable", f"{what}: until all is gone", "s", "lower", [seconds],
                    settings=settings, target=Target(10),
                )  # fmt: skip


def _remove(
    bench: Bench, system: System, workflows: int, window: float, backlog: int, *, pinned: bool
) -> tuple[float, int, float]:
    """Seconds until the day is gone, workflows removed within the window, and its throughput over that around it."""
    dsn = bench.prepare(system)
    with psycopg.connect(dsn, autocommit=True) as conn:
        conn.execute("select durable.configure('retention', '100 years')")
        day = fill_day(conn, DAYS_AGO, workflows, 1, keyed=True)
        if pinned:
            conn.execute("select durable.enqueue('nobody runs it', queue => 'nobody')")
            conn.execute(
                "update durable.live_workflows set workflow_id = durable._first_id(durable._start_of(%s))", [day]
            )
        system.enqueue_backlog(dsn, ONE_STEP, backlog)
        conn.execute("vacuum analyze")
        with WorkerProcess(system.name, "throughput", dsn) as worker:
            while not _value(conn, "select exists(select from durable.finished_workflows where name = %s)", ONE_STEP):
                worker.require_alive()
                time.sleep(0.1)
            time.sleep(WARM_UP + window)
            changed_at = _value(conn, "select now() from durable.configure('retention', '30 days')")
            started = time.monotonic()
            seconds = 0.0
            while (elapsed := time.monotonic() - started) < window or not (seconds or pinned):
                if not seconds and _value(conn, IS_GONE, day, day):
                    seconds = elapsed
                if elapsed > PATIENCE:
                    raise SystemExit(f"retention: the day was not gone within {PATIENCE} s:\n{worker.output()}")
                time.sleep(0.05)
            stopped_at = _value(conn, "select now() from durable.configure('retention', '100 years')")
            left = _value(conn, "select count(*) from durable.finished_workflows where name <> %s", ONE_STEP)
            time.sleep(window)
            unfinished = _value(conn, "select count(*) from durable.live_workflows where name = %s", ONE_STEP)
        if not unfinished:
            raise SystemExit("retention: the backlog was worked off before the end of the last window.")
        before = _value(conn, ENDED, changed_at, -window, changed_at, 0)
        during = _value(conn, ENDED, changed_at, 0, changed_at, window)
        after = _value(conn, ENDED, stopped_at, 0, stopped_at, window)
    return seconds, workflows - left, 2 * during / (before + after)


def _value(conn: psycopg.Connection[Any], query: str, *values: object) -> Any:
    return conn.execute(query.encode(), values).fetchall()[0][0]


SCENARIO = Scenario("retention", "Retention: an old day is removed while a worker is under full load", run)
