"""Procrastinate: a task queue for Python. A worker fetches one job at a time, and runs many."""

from __future__ import annotations

import asyncio
from typing import Any

import uvloop
from procrastinate import App, PsycopgConnector
from psycopg import Connection

from benchmarks.processes import IN_FLIGHT, WorkerOptions
from benchmarks.systems._protocol import Drain
from benchmarks.workload import NO_STEP, ORDER, QUEUE, charge

BACKLOG_BATCH = 1000
POOL = 20


class _Procrastinate:
    name = "procrastinate"

    def throughput_settings(self, in_flight: int = IN_FLIGHT) -> dict[str, Any]:
        # More at once made it slower.
        return {"concurrency": min(in_flight, 50), "pool": POOL}

    def install(self, dsn: str) -> None:
        asyncio.run(self._install(dsn))

    async def _install(self, dsn: str) -> None:
        async with _app(dsn).open_async() as app:
            await app.schema_manager.apply_schema_async()

    def enqueue_backlog(self, dsn: str, workflow: str, count: int) -> None:
        asyncio.run(self._enqueue(dsn, workflow, count))

    async def _enqueue(self, dsn: str, workflow: str, count: int) -> None:
        async with _app(dsn).open_async() as app:
            deferrer = app.configure_task(workflow, queue=QUEUE)
            for start in range(0, count, BACKLOG_BATCH):
                orders: list[Any] = [{"order": ORDER}] * min(BACKLOG_BATCH, count - start)
                await deferrer.batch_defer_async(*orders)

    def serve(self, options: WorkerOptions) -> None:
        uvloop.run(self._serve(options))

    async def _serve(self, options: WorkerOptions) -> None:
        app = _app(options.dsn)

        @app.task(name=NO_STEP, queue=QUEUE)
        async def no_step(order: dict[str, Any]) -> dict[str, Any]:
            return charge(order)

        concurrency = self.throughput_settings(options.in_flight)["concurrency"]
        async with app.open_async():
            await app.run_worker_async(queues=[QUEUE], concurrency=concurrency)

    def unfinished(self, conn: Connection[Any]) -> bool:
        sql = "select exists(select from procrastinate_jobs where status in ('todo', 'doing'))"
        return bool(conn.execute(sql).fetchall()[0][0])

    def drained(self, conn: Connection[Any]) -> Drain:
        sql = """
          select count(*) filter (where type = 'succeeded'), null::int, 0,
            extract(epoch from max(at) filter (where type = 'succeeded')
              - min(at) filter (where type = 'started'))::float8
          from procrastinate_events"""
        return Drain(*conn.execute(sql).fetchall()[0])


def _app(dsn: str) -> App:
    return App(connector=PsycopgConnector(conninfo=dsn, max_size=POOL))


SYSTEM = _Procrastinate()
