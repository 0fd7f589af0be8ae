"""DBOS Transact: a library that checkpoints steps in Postgres, with queues that are polled."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import sqlalchemy
from dbos import DBOS, DBOSClient, DBOSConfig, EnqueueOptions
from psycopg import Connection

from benchmarks.processes import IN_FLIGHT, WorkerOptions
from benchmarks.systems._protocol import Drain, Producer
from benchmarks.workload import MARK, ONE_STEP, ORDER, QUEUE, STEPS, TEN_STEPS, charge

# Workflows are dequeued only by workers of the version that enqueued them.
VERSION = "benchmark"


class _Dbos:
    name = "dbos"

    def throughput_settings(self, in_flight: int = IN_FLIGHT) -> dict[str, Any]:
        return {"worker_concurrency": in_flight, "polling_interval_s": 0.005, "sys_db_pool_size": 20}

    def install(self, dsn: str) -> None:
        DBOS(config=_config(dsn))
        DBOS.launch()
        DBOS.destroy()

    def enqueue_backlog(self, dsn: str, workflow: str, count: int) -> None:
        client = DBOSClient(system_database_url=dsn)
        engine = sqlalchemy.create_engine(_sqlalchemy_url(dsn))
        try:
            with engine.begin() as conn:
                for _ in range(count):
                    client.enqueue_in_transaction(conn, _options(workflow), ORDER)
        finally:
            engine.dispose()
            client.destroy()

    @contextmanager
    def producer(self, dsn: str) -> Iterator[Producer]:
        client = DBOSClient(system_database_url=dsn)

        def enqueue(workflow: str, value: dict[str, Any]) -> None:
            client.enqueue(_options(workflow), value)

        try:
            yield enqueue
        finally:
            client.destroy()

    def serve(self, options: WorkerOptions) -> None:
        chosen = self.throughput_settings(options.in_flight)
        config = _config(options.dsn)
        if options.profile == "throughput":
            config["sys_db_pool_size"] = chosen["sys_db_pool_size"]
        DBOS(config=config)

        @DBOS.step(name="charge")
        async def step(order: dict[str, Any]) -> dict[str, Any]:
            return charge(order)

        @DBOS.workflow(name=ONE_STEP)
        async def one_step(order: dict[str, Any]) -> dict[str, Any]:
            return await step(order)

        @DBOS.workflow(name=TEN_STEPS)
        async def ten_steps(order: dict[str, Any]) -> dict[str, Any]:
            for _ in range(STEPS[TEN_STEPS]):
                result = await step(order)
            return result

        @DBOS.workflow(name=MARK)
        async def report(value: dict[str, Any]) -> None:
            options.mark(value["sample"])

        DBOS.launch()
        if options.profile == "throughput":
            DBOS.register_queue(
                QUEUE,
                worker_concurrency=chosen["worker_concurrency"],
                polling_interval_sec=chosen["polling_interval_s"],
            )
        else:
            DBOS.register_queue(QUEUE)
        signal.sigwait([signal.SIGTERM])
        DBOS.destroy()

    def unfinished(self, conn: Connection[Any]) -> bool:
        sql = "select exists(select from dbos.workflow_status where status in ('ENQUEUED', 'PENDING'))"
        return bool(conn.execute(sql).fetchall()[0][0])

    def drained(self, conn: Connection[Any]) -> Drain:
        sql = """
          select count(*), (select count(*) from dbos.workflow_output where output is not null),
            (select count(*) from dbos.operation_outputs where output is not null),
            (max(completed_at) - min(started_at_epoch_ms))::float8 / 1000
          from dbos.workflow_status where status = 'SUCCESS'"""
        return Drain(*conn.execute(sql).fetchall()[0])


def _config(dsn: str) -> DBOSConfig:
    return {"name": "benchmark", "system_database_url": dsn, "application_version": VERSION, "log_level": "WARNING"}


def _options(workflow: str) -> EnqueueOptions:
    return {"workflow_name": workflow, "queue_name": QUEUE, "app_version": VERSION}


def _sqlalchemy_url(dsn: str) -> str:
    return dsn.replace("postgresql://", "postgresql+psycopg://", 1)


SYSTEM = _Dbos()
