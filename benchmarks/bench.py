"""What a scenario works with, and the load runs that several scenarios share."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import psycopg

from benchmarks import systems
from benchmarks.cluster import Cluster
from benchmarks.measurement import Measurement
from benchmarks.processes import IN_FLIGHT, WorkerProcess
from benchmarks.systems import Drain, Engine, Load, Queue, Shape, System
from benchmarks.workload import STEPS

RUN_LIMIT = 600  # seconds after which a load run has failed
ONE_PROCESS = Shape(1, IN_FLIGHT)


@dataclass(frozen=True, slots=True)
class Bench:
    cluster: Cluster
    systems: Sequence[str]
    quick: bool

    def chosen(self, *names: str) -> list[System]:
        """The adapters of the systems that are both asked for and named here."""
        return [systems.load(name) for name in names if name in self.systems]

    def chosen_for_load(self, *names: str) -> list[Queue | Engine]:
        """The same for those that may do nothing but work off a backlog."""
        return [systems.load(name) for name in names if name in self.systems]

    def log(self, text: str) -> None:
        print(f"  {text}", file=sys.stderr, flush=True)

    def prepare(self, system: Queue, purpose: str = "bench") -> str:
        """A fresh database with the schema of a system, in the place of the last one for that purpose."""
        dsn = self.cluster.create_database(f"{purpose}_{system.name}")
        system.install(dsn)
        return dsn


@dataclass(frozen=True, slots=True)
class Scenario:
    name: str
    title: str
    run: Callable[[Bench], Iterator[Measurement]]


def run_load(bench: Bench, system: Queue | Engine, workflow: str, count: int, shape: Shape = ONE_PROCESS) -> Load:
    """Has a backlog worked off, and requires that nothing of it is missing at the end."""
    if isinstance(system, Engine):
        load = system.run_load(workflow, count, shape)
    else:
        load = _run_on_postgres(bench, system, workflow, count, shape)
    drain = load.drain
    with_output = None if drain.with_output is None else count
    if drain != Drain(count, with_output, count * STEPS[workflow], drain.seconds):
        raise SystemExit(f"{system.name}: of {count} × {workflow} there is only {drain}.")
    return load


def _run_on_postgres(bench: Bench, system: Queue, workflow: str, count: int, shape: Shape) -> Load:
    dsn = bench.prepare(system)
    with psycopg.connect(dsn, autocommit=True) as conn, ExitStack() as running:
        wal_before = wal_position(conn)
        system.enqueue_backlog(dsn, workflow, count)
        # As an autovacuum after the enqueueing would: the planner knows of the backlog when the worker starts.
        conn.execute("analyze")
        commits_before = _commits(conn)
        statements_before = bench.cluster.statements(dsn)
        cpu_before = bench.cluster.cpu_seconds()
        workers = [
            running.enter_context(WorkerProcess(system.name, "throughput", dsn, in_flight=shape.in_flight))
            for _ in range(shape.processes)
        ]
        deadline = time.monotonic() + RUN_LIMIT
        while system.unfinished(conn):
            for worker in workers:
                worker.require_alive()
            if time.monotonic() > deadline:
                output = workers[0].output()
                raise SystemExit(f"{system.name}: {workflow} did not end within {RUN_LIMIT} s:\n{output}")
            time.sleep(0.25)
        worker_cpu = sum(worker.cpu_seconds() for worker in workers)
        wal_bytes = wal_position(conn) - wal_before
        running.close()
        # A session reports its commits when it ends.
        time.sleep(1)
        commits = _commits(conn) - commits_before
        statements = bench.cluster.statements(dsn) - statements_before
        server_cpu = bench.cluster.cpu_seconds() - cpu_before
        return Load(system.drained(conn), worker_cpu, server_cpu, wal_bytes, commits, statements)


def wal_position(conn: psycopg.Connection[Any]) -> int:
    return int(conn.execute("select pg_wal_lsn_diff(pg_current_wal_insert_lsn(), '0/0')::bigint").fetchall()[0][0])


def _commits(conn: psycopg.Connection[Any]) -> int:
    sql = "select xact_commit from pg_stat_database where datname = current_database()"
    return int(conn.execute(sql).fetchall()[0][0])
