"""durable itself, through its Python client."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import durable_client
import psycopg
from durable_client import AsyncContext, Context, Durable
from psycopg import Connection

from benchmarks.processes import IN_FLIGHT, WorkerOptions
from benchmarks.systems._protocol import Drain, Producer
from benchmarks.workload import (
    AWAIT_EVENT,
    EVENT,
    FAN_OUT,
    HOLD,
    LONG,
    MARK,
    NAP,
    NO_STEP,
    ONE_STEP,
    ONE_STEP_DEF,
    ORDER,
    POISON,
    QUEUE,
    RECEIVE,
    STEADY,
    STEPS,
    TEN_STEPS,
    TEN_STEPS_DEF,
    TOPIC,
    charge,
    nth,
)

BACKLOG_BATCH = 1000


class _Durable:
    name = "durable"

    def throughput_settings(self, in_flight: int = IN_FLIGHT) -> dict[str, Any]:
        return {"concurrency": in_flight}

    def install(self, dsn: str) -> None:
        with psycopg.connect(dsn) as conn:
            durable_client.install(conn)

    def enqueue_backlog(self, dsn: str, workflow: str, count: int) -> None:
        app = Durable(dsn)
        try:
            for start in range(0, count, BACKLOG_BATCH):
                app.enqueue_many(workflow, [ORDER] * min(BACKLOG_BATCH, count - start), queue=QUEUE)
        finally:
            app.close()

    @contextmanager
    def producer(self, dsn: str) -> Iterator[Producer]:
        app = Durable(dsn)

        def enqueue(workflow: str, value: dict[str, Any]) -> None:
            app.enqueue(workflow, value, queue=QUEUE)

        try:
            yield enqueue
        finally:
            app.close()

    def serve(self, options: WorkerOptions) -> None:
        app = Durable(options.dsn)
        if options.names is None:
            _register(app, options)
        else:
            _register_names(app, options.names)
        if options.profile == "throughput":
            app.run_worker(queues=[QUEUE], **self.throughput_settings(options.in_flight))
        else:
            app.run_worker(queues=[QUEUE])

    def unfinished(self, conn: Connection[Any]) -> bool:
        return bool(conn.execute("select exists(select from durable.live_workflows)").fetchall()[0][0])

    def drained(self, conn: Connection[Any]) -> Drain:
        sql = """
          select count(*), count(output), (select count(*) from durable.checkpoints where output is not null),
            extract(epoch from max(completed_at) - min(started_at))::float8
          from durable.finished_workflows where status = 'completed'"""
        return Drain(*conn.execute(sql).fetchall()[0])


def _register(app: Durable, options: WorkerOptions) -> None:
    @app.step(name="charge")
    async def step(order: dict[str, Any]) -> dict[str, Any]:
        return charge(order)

    @app.step(name="charge_def")
    def step_def(order: dict[str, Any]) -> dict[str, Any]:
        return charge(order)

    @app.workflow(name=NO_STEP, queue=QUEUE)
    async def no_step(ctx: AsyncContext, order: dict[str, Any]) -> dict[str, Any]:
        return charge(order)

    @app.workflow(name=ONE_STEP, queue=QUEUE)
    async def one_step(ctx: AsyncContext, order: dict[str, Any]) -> dict[str, Any]:
        return await ctx.step(step, order)

    @app.workflow(name=TEN_STEPS, queue=QUEUE)
    async def ten_steps(ctx: AsyncContext, order: dict[str, Any]) -> dict[str, Any]:
        for _ in range(STEPS[TEN_STEPS]):
            result = await ctx.step(step, order)
        return result

    @app.workflow(name=ONE_STEP_DEF, queue=QUEUE)
    def one_step_def(ctx: Context, order: dict[str, Any]) -> dict[str, Any]:
        return ctx.step(step_def, order)

    @app.workflow(name=TEN_STEPS_DEF, queue=QUEUE)
    def ten_steps_def(ctx: Context, order: dict[str, Any]) -> dict[str, Any]:
        for _ in range(STEPS[TEN_STEPS_DEF]):
            result = ctx.step(step_def, order)
        return result

    @app.workflow(name=MARK, queue=QUEUE)
    async def report(ctx: AsyncContext, value: dict[str, Any]) -> None:
        options.mark(value["sample"])

    @app.workflow(name=HOLD, queue=QUEUE)
    async def hold(ctx: AsyncContext, value: dict[str, Any]) -> None:
        options.mark(value["sample"])
        await asyncio.sleep(3600)

    @app.workflow(name=RECEIVE, queue=QUEUE)
    async def receive(ctx: AsyncContext) -> None:
        options.mark(await ctx.receive(TOPIC))

    @app.workflow(name=AWAIT_EVENT, queue=QUEUE)
    async def await_event(ctx: AsyncContext) -> None:
        await ctx.wait_event(EVENT)

    @app.workflow(name=FAN_OUT, queue=QUEUE)
    async def fan_out(ctx: AsyncContext, children: int) -> int:
        return len(await ctx.map(no_step, [ORDER] * children))

    @app.workflow(name=LONG, queue=QUEUE)
    async def long(ctx: AsyncContext, steps: int) -> None:
        for _ in range(steps):
            await ctx.step(step, ORDER)
        while True:
            options.mark(await ctx.receive(TOPIC))

    @app.workflow(name=NAP, queue=QUEUE)
    async def nap(ctx: AsyncContext, value: dict[str, float]) -> None:
        if value:
            await asyncio.sleep(value["seconds"])
            return
        while True:
            due = await ctx.now() + timedelta(seconds=1 + ctx.random())
            await ctx.sleep_until(due)
            options.mark(round(due.timestamp() * 1_000_000))

    @app.step
    async def moment(seconds: float) -> None:
        await asyncio.sleep(seconds)

    @app.workflow(name=STEADY, queue=QUEUE)
    async def steady(ctx: AsyncContext, moments: list[float]) -> None:
        for seconds in moments:
            await ctx.step(moment, seconds)

    @app.workflow(name=POISON, queue=QUEUE)
    async def poison(ctx: AsyncContext) -> None:
        os.kill(os.getpid(), signal.SIGKILL)


def _register_names(app: Durable, names: int) -> None:
    @app.step(name="charge")
    async def step(order: dict[str, Any]) -> dict[str, Any]:
        return charge(order)

    for n in range(names):

        @app.workflow(name=nth(n), queue=QUEUE)
        async def one_step(ctx: AsyncContext, order: dict[str, Any]) -> dict[str, Any]:
            return await ctx.step(step, order)


SYSTEM = _Durable()
