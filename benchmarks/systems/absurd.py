"""Absurd: task execution in SQL functions, with a Python client that polls."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any

import absurdctl  # type: ignore[import-untyped]
import psycopg
import uvloop
from absurd_sdk import Absurd, AsyncAbsurd, AsyncTaskContext
from psycopg import Connection

from benchmarks.processes import IN_FLIGHT, WorkerOptions
from benchmarks.systems._protocol import Drain, Producer
from benchmarks.workload import MARK, ONE_STEP, ORDER, QUEUE, STEPS, TEN_STEPS, charge

# A client has one connection, and claims its next batch when the last one is done.
CLIENTS = 4


class _Absurd:
    name = "absurd"

    def throughput_settings(self, in_flight: int = IN_FLIGHT) -> dict[str, Any]:
        batch = -(-in_flight // CLIENTS)
        return {"connections": CLIENTS, "batch_size": batch, "concurrency": batch, "poll_interval_s": 0.01}

    def install(self, dsn: str) -> None:
        with psycopg.connect(dsn, autocommit=True) as conn:
            # The schema as `absurdctl init` applies it.
            conn.execute(absurdctl.BUNDLED_SCHEMA_SQL)
            conn.execute("select absurd.create_queue(%s)", [QUEUE])

    def enqueue_backlog(self, dsn: str, workflow: str, count: int) -> None:
        with psycopg.connect(dsn) as conn:
            conn.execute(
                "select absurd.spawn_task(%s, %s, %s::jsonb) from generate_series(1, %s)",
                [QUEUE, workflow, json.dumps(ORDER), count],
            )

    @contextmanager
    def producer(self, dsn: str) -> Iterator[Producer]:
        client = Absurd(dsn, queue_name=QUEUE)

        def enqueue(workflow: str, value: dict[str, Any]) -> None:
            client.spawn(workflow, value, queue=QUEUE)

        try:
            yield enqueue
        finally:
            client.close()

    def serve(self, options: WorkerOptions) -> None:
        uvloop.run(self._serve(options))

    async def _serve(self, options: WorkerOptions) -> None:
        if options.profile == "default":
            await _client(options).start_worker()
            return
        chosen = self.throughput_settings(options.in_flight)
        await asyncio.gather(
            *(
                _client(options).start_worker(
                    worker_id=f"worker-{os.getpid()}-{i}",
                    batch_size=chosen["batch_size"],
                    concurrency=chosen["concurrency"],
                    poll_interval=chosen["poll_interval_s"],
                )
                for i in range(chosen["connections"])
            )
        )

    def unfinished(self, conn: Connection[Any]) -> bool:
        sql = f"select exists(select from absurd.t_{QUEUE} where state in ('pending', 'running', 'sleeping'))"
        return bool(conn.execute(sql).fetchall()[0][0])

    def drained(self, conn: Connection[Any]) -> Drain:
        sql = f"""
          select count(*), count(result), (select count(*) from absurd.c_{QUEUE}),
            extract(epoch from max(completed_at) - min(started_at))::float8
          from absurd.r_{QUEUE} where state = 'completed'"""
        return Drain(*conn.execute(sql).fetchall()[0])


def _client(options: WorkerOptions) -> AsyncAbsurd:
    client = AsyncAbsurd(options.dsn, queue_name=QUEUE)

    @client.register_task(MARK)
    async def report(value: Any, ctx: AsyncTaskContext) -> Any:
        options.mark(value["sample"])

    client.register_task(ONE_STEP)(_workflow(STEPS[ONE_STEP]))
    client.register_task(TEN_STEPS)(_workflow(STEPS[TEN_STEPS]))
    return client


def _workflow(steps: int) -> Callable[[Any, AsyncTaskContext], Awaitable[Any]]:
    async def workflow(order: Any, ctx: AsyncTaskContext) -> Any:
        async def step() -> dict[str, Any]:
            return charge(order)

        for _ in range(steps):
            result = await ctx.step("charge", step)
        return result

    return workflow


SYSTEM = _Absurd()
