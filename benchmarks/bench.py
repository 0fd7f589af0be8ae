"""What a scenario works with, and the load runs that several scenarios share."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import psycopg

from benchmarks import systems
from benchmarks.cluster import Cluster
from benchmarks.measurement import Measurement
from benchmarks.processes import WorkerProcess
from benchmarks.systems import Drain, System
from benchmarks.workload import STEPS

RUN_LIMIT = 600  # seconds after which a load run has failed


@dataclass(frozen=True, slots=True)
class Bench:
    cluster: Cluster
    systems: Sequence[str]
    quick: bool

    def chosen(self, *names: str) -> list[System]:
        """The adapters of the systems that are both asked for and named here."""
        return [systems.load(name) for name in names if name in self.systems]

    def log(self, text: str) -> None:
        print(f"  {text}", file=sys.stderr, flush=True)

    def prepare(self, system: System) -> str:
        """A fresh database with the schema of a system."""
        dsn = self.cluster.create_database(f"bench_{system.name}")
        system.install(dsn)
        return dsn


@dataclass(frozen=True, slots=True)
class Scenario:
    name: str
    title: str
    run: Callable[[Bench], Iterator[Measurement]]


@dataclass(frozen=True, slots=True)
class Load:
    """A backlog that one worker process worked off."""

    drain: Drain
    wal_bytes: int  # of enqueueing and running
    commits: int  # of running
    worker_cpu: float  # seconds, the start of the process included
    server_cpu: float  # seconds, of running


def run_load(bench: Bench, system: System, workflow: str, count: int) -> Load:
    dsn = bench.prepare(system)
    with psycopg.connect(dsn, autocommit=True) as conn:
        wal_before = _wal_position(conn)
        system.enqueue_backlog(dsn, workflow, count)
        # As an autovacuum after the enqueueing would: the planner knows of the backlog when the worker starts.
        conn.execute("analyze")
        commits_before = _commits(conn)
        cpu_before = bench.cluster.cpu_seconds()
        with WorkerProcess(system.name, "throughput", dsn) as worker:
            deadline = time.monotonic() + RUN_LIMIT
            while system.unfinished(conn):
                worker.require_alive()
                if time.monotonic() > deadline:
                    raise SystemExit(f"{system.name}: {workflow} did not end within {RUN_LIMIT} s:\n{worker.output()}")
                time.sleep(0.25)
            worker_cpu = worker.cpu_seconds()
            wal_bytes = _wal_position(conn) - wal_before
        # A session reports its commits when it ends.
        time.sleep(1)
        drain = system.drained(conn)
        commits = _commits(conn) - commits_before
    expected = Drain(count, count, count * STEPS[workflow], drain.seconds)
    if drain != expected:
        raise SystemExit(f"{system.name}: {workflow} stored {drain}, not {expected}.")
    return Load(drain, wal_bytes, commits, worker_cpu, bench.cluster.cpu_seconds() - cpu_before)


def _wal_position(conn: psycopg.Connection[Any]) -> int:
    return int(conn.execute("select pg_wal_lsn_diff(pg_current_wal_insert_lsn(), '0/0')::bigint").fetchall()[0][0])


def _commits(conn: psycopg.Connection[Any]) -> int:
    sql = "select xact_commit from pg_stat_database where datname = current_database()"
    return int(conn.execute(sql).fetchall()[0][0])
