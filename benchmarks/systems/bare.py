"""No system: what a row, a notification and one UPDATE cost by themselves."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
from psycopg.types.json import Jsonb

from benchmarks.processes import WorkerOptions
from benchmarks.systems._protocol import Producer

TABLE = """
create table jobs (
  job_id bigint generated always as identity primary key,
  name text not null,
  input jsonb not null,
  taken_at timestamptz
)"""
# One statement is one transaction.
ENQUEUE = """
with job as (insert into jobs (name, input) values (%s, %s) returning job_id)
select pg_notify('jobs', job_id::text) from job"""
TAKE = "update jobs set taken_at = now() where job_id = %s and taken_at is null returning input"


class _Bare:
    name = "bare"

    def install(self, dsn: str) -> None:
        with psycopg.connect(dsn) as conn:
            conn.execute(TABLE)

    @contextmanager
    def producer(self, dsn: str) -> Iterator[Producer]:
        with psycopg.connect(dsn, autocommit=True) as conn:

            def enqueue(workflow: str, value: dict[str, Any]) -> None:
                conn.execute(ENQUEUE, [workflow, Jsonb(value)], prepare=True)

            yield enqueue

    def serve(self, options: WorkerOptions) -> None:
        with (
            psycopg.connect(options.dsn, autocommit=True) as bell,
            psycopg.connect(options.dsn, autocommit=True) as conn,
        ):
            bell.execute("listen jobs")
            for notification in bell.notifies():
                for row in conn.execute(TAKE, [int(notification.payload)], prepare=True):
                    options.mark(row[0]["sample"])


SYSTEM = _Bare()
