from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import psycopg

from benchmarks.bench import RUN_LIMIT, Bench, Scenario
from benchmarks.measurement import Measurement, Target, percentile
from benchmarks.processes import WorkerProcess
from benchmarks.scenarios._history import fill_day
from benchmarks.systems import System
from benchmarks.workload import ONE_STEP

DAYS = 30
STEPS_EACH = 2
REPEATS = 3
READS = 40
COLUMNS = "workflow_id, name, status, queue, key, created_at, completed_at, error_message"
# What is asked for differs from read to read: %s is a number from 1 to 900.
PAGES = {
    "failed of the last week": f"""
        select {COLUMNS} from durable.workflows
        where status = 'failed' and completed_at >= now() - interval '7 days' - %s * interval '1 minute'
        order by completed_at desc limit 50""",
    "completed before a time": f"""
        select {COLUMNS} from durable.workflows
        where status = 'completed' and completed_at < now() - %s * interval '30 minutes'
        order by completed_at desc limit 50""",
    "by name": f"""
        select {COLUMNS} from durable.workflows where name = 'workflow ' || (%s::int %% 10)
        order by completed_at desc limit 50""",
    "by queue": f"""
        select {COLUMNS} from durable.workflows where queue = 'queue ' || (%s::int %% 5)
        order by completed_at desc limit 50""",
    "by key": f"""
        select {COLUMNS} from durable.workflows
        where key = (now() at time zone 'UTC')::date - 7 || ' ' || %s::int * 10""",
    "by tag": f"""
        select {COLUMNS} from durable.workflows where tags @> jsonb_build_object('tenant', 'tenant ' || %s)
        order by completed_at desc limit 50""",
    "the newest of all": f"""
        select {COLUMNS} from durable.workflows order by workflow_id desc limit (50 + %s %% 2)""",
}

ONE_OF = """
    select workflow_id from durable.finished_workflows
    where workflow_id >= durable._first_id(now() - interval '1 day' - %s * interval '1 hour')
    order by workflow_id limit 1"""


def run(bench: Bench) -> Iterator[Measurement]:
    """Throughput beside a month of history over that in an empty database, in turns; and pages of that history."""
    workflows, backlog, repeats = (500_000, 20_000, 1) if bench.quick else (10_000_000, 80_000, REPEATS)
    for system in bench.chosen("durable"):
        full = bench.prepare(system)
        with psycopg.connect(full, autocommit=True) as conn:
            for days_ago in range(DAYS):
                fill_day(conn, days_ago, workflows // DAYS, STEPS_EACH, keyed=False)
            conn.execute("vacuum analyze")
            conn.execute("checkpoint")
            settings = {"workflows": workflows, "steps": STEPS_EACH * workflows, "days": DAYS}
            for page, query in PAGES.items():
                yield _reads(conn, f"page: {page}, p99 of {READS}", query, [1 + n * 22 for n in range(READS)], settings)
            chosen = [conn.execute(ONE_OF, [n * 17]).fetchall()[0][0] for n in range(READS)]
            metric = f"one workflow's history, p99 of {READS}"
            yield _reads(conn, metric, "select * from durable.history(%s)", chosen, settings)
        shares, rates = [], []
        for _ in range(repeats):
            empty = bench.cluster.create_database("bench_empty")
            system.install(empty)
            of_empty = _rate(system, empty, backlog)
            rates.append(_rate(system, full, backlog))
            shares.append(rates[-1] / of_empty)
        settings |= {"backlog": backlog, **system.throughput_settings()}
        yield Measurement.of(
            "large-history", "durable", "throughput, of that in an empty database", "", "higher", shares,
            settings=settings, target=Target(0.9),
        )  # fmt: skip
        yield Measurement.of("large-history", "durable", "workflows", "1/s", "higher", rates, settings=settings)
        # Not beside the scenarios to come, for it is large.
        bench.prepare(system)


def _reads(
    conn: psycopg.Connection[Any], metric: str, query: str, arguments: list[Any], settings: dict[str, Any]
) -> Measurement:
    samples = []
    for argument in arguments:
        started = time.perf_counter()
        found = conn.execute(query.encode(), [argument]).fetchall()
        samples.append((time.perf_counter() - started) * 1000)
        assert found
    return Measurement.of(
        "large-history", "durable", metric, "ms", "lower", samples, value=percentile(samples, 0.99),
        settings=settings, target=Target(50),
    )  # fmt: skip


def _rate(system: System, dsn: str, backlog: int) -> float:
    with psycopg.connect(dsn, autocommit=True) as conn:
        since = conn.execute("select now()").fetchall()[0][0]
        system.enqueue_backlog(dsn, ONE_STEP, backlog)
        conn.execute("analyze durable.live_workflows")
        with WorkerProcess(system.name, "throughput", dsn) as worker:
            deadline = time.monotonic() + RUN_LIMIT
            while system.unfinished(conn):
                worker.require_alive()
                if time.monotonic() > deadline:
                    raise SystemExit(f"large-history: the backlog did not end within {RUN_LIMIT} s:\n{worker.output()}")
                time.sleep(0.25)
        count, seconds = conn.execute(
            "select count(*), extract(epoch from max(completed_at) - min(started_at))::float8"
            " from durable.finished_workflows where status = 'completed' and name = %s and completed_at >= %s",
            [ONE_STEP, since],
        ).fetchall()[0]
    if count != backlog:
        raise SystemExit(f"large-history: {count} workflows were completed, not {backlog}.")
    return float(backlog / seconds)


SCENARIO = Scenario("large-history", "Throughput and pages beside a month of history", run)
