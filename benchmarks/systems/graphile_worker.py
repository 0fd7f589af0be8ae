"""graphile-worker: a job queue for Node, which deletes its jobs when they are done."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
from psycopg import Connection

from benchmarks.processes import IN_FLIGHT, WorkerOptions
from benchmarks.systems import _node
from benchmarks.systems._protocol import Drain, Producer
from benchmarks.workload import ORDER

SCRIPT = "graphile_worker.mjs"


class _GraphileWorker:
    name = "graphile_worker"

    def throughput_settings(self, in_flight: int = IN_FLIGHT) -> dict[str, Any]:
        # More jobs at once, a larger local queue, and a delay before jobs are deleted made no difference.
        return {
            "concurrentJobs": min(in_flight, 96),
            "maxPoolSize": 10,
            "localQueue.size": 500,
            "completeJobBatchDelay": 0,
        }

    def install(self, dsn: str) -> None:
        subprocess.run(_node.command(SCRIPT, "install", dsn), check=True)
        with psycopg.connect(dsn) as conn:
            # It deletes its jobs, so the worker writes here what it saw.
            conn.execute("create table drained (completed integer not null, seconds float8 not null)")

    def enqueue_backlog(self, dsn: str, workflow: str, count: int) -> None:
        with psycopg.connect(dsn) as conn:
            conn.execute(
                "select graphile_worker.add_jobs(array(select row(%s, %s, null, null, null, null, null, null)"
                "::graphile_worker.job_spec from generate_series(1, %s)))",
                [workflow, json.dumps(ORDER), count],
            )

    @contextmanager
    def producer(self, dsn: str) -> Iterator[Producer]:
        with psycopg.connect(dsn, autocommit=True) as conn:

            def enqueue(workflow: str, value: dict[str, Any]) -> None:
                conn.execute("select graphile_worker.add_job(%s, %s::json)", [workflow, json.dumps(value)])

            yield enqueue

    def serve(self, options: WorkerOptions) -> None:
        if options.profile == "default":
            command = _node.command(SCRIPT, "mark", options.dsn, str(options.mark_fd))
        else:
            settings = json.dumps(self.throughput_settings(options.in_flight))
            command = _node.command(SCRIPT, "work", options.dsn, settings)
        os.execv(command[0], command)

    def unfinished(self, conn: Connection[Any]) -> bool:
        return not conn.execute("select from drained").fetchall()

    def drained(self, conn: Connection[Any]) -> Drain:
        sql = """
          select completed - (select count(*) from graphile_worker._private_jobs), null::int, 0, seconds
          from drained"""
        return Drain(*conn.execute(sql).fetchall()[0])


SYSTEM = _GraphileWorker()
