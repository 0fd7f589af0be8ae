"""Absurd: task execution in SQL functions, with a Python client that polls."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

import absurdctl  # type: ignore[import-untyped]
import psycopg
import uvloop
from absurd_sdk import Absurd, AsyncAbsurd, AsyncTaskContext
from psycopg import Connection

from benchmarks.processes import Profile
from benchmarks.systems._protocol import Drain, Producer
from benchmarks.workload import MARK, ONE_STEP, ORDER, QUEUE, STEPS, TEN_STEPS, charge


class _Absurd:
    name = "absurd"
    # A client has one connection, and claims its next batch when the last one is done. Four of them with batches of 50
    # keep 200 tasks in flight.
    throughput_settings: ClassVar[dict[str, Any]] = {
        "connections": 4,
        "batch_size": 50,
        "concurrency": 50,
        "poll_interval_s": 0.01,
    }

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

    def serve(self, dsn: str, profile: Profile, mark: Callable[[int], None]) -> None:
        uvloop.run(self._serve(dsn, profile, mark))

    async def _serve(self, dsn: str, profile: Profile, mark: Callable[[int], None]) -> None:
        if profile == "default":
            await _client(dsn, mark).start_worker()
            return
        chosen = self.throughput_settings
        await asyncio.gather(
            *(
                _client(dsn, mark).start_worker(
                    worker_id=f"worker-{i}",
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


def _client(dsn: str, mark: Callable[[int], None]) -> AsyncAbsurd:
    client = AsyncAbsurd(dsn, queue_name=QUEUE)

    @client.register_task(MARK)
    async def report(value: Any, ctx: AsyncTaskContext) -> Any:
        mark(value["sample"])

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
