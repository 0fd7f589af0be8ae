"""How the public API types; read by mypy, never run."""

from __future__ import annotations

import asyncio
import concurrent.futures
from collections.abc import Awaitable
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

import psycopg
from durable_client import (
    ApprovalRecord,
    ApprovalRequest,
    AsyncApprovalRequest,
    AsyncChild,
    AsyncContext,
    AsyncHandle,
    Child,
    ChildFailed,
    Context,
    Decision,
    Durable,
    Event,
    Handle,
    Message,
    Met,
    Retry,
    StepFailed,
    StepRecord,
    Timer,
)
from typing_extensions import assert_type

app = Durable()


@dataclass
class Order:
    id: int


@app.step
def pack(order: Order, fragile: bool = False) -> str:
    return f"{order.id} {fragile}"


@app.step(name="send", retry=Retry(max_attempts=3, initial="1s", non_retryable=(ValueError,)), timeout="30s")
async def ship(parcel: str) -> int:
    return len(parcel)


@app.step(at_most_once=True)
def launch() -> None: ...


def look(order: Order) -> int | None:
    return order.id


def book(conn: psycopg.Connection[Any], parcel: str) -> int:
    return len(parcel)


async def book_async(conn: psycopg.AsyncConnection[Any], parcel: str) -> int:
    return len(parcel)


@app.workflow
async def child(ctx: AsyncContext, number: int) -> str:
    return str(number)


@app.workflow(queue="orders", max_attempts=3, timeout="1 day", priority=-1)
def fulfil(ctx: Context, order: Order) -> int:
    parcel = ctx.step(pack, order, fragile=True)
    assert_type(parcel, str)
    assert_type(ctx.step(ship, parcel), int)
    assert_type(ctx.transaction(book, parcel), int)
    assert_type(ctx.transaction(book_async, parcel), int)
    assert_type(ctx.submit(ship, parcel), concurrent.futures.Future[Any])
    assert_type(ctx.now(), datetime)
    ctx.sleep("1 s")
    assert_type(ctx.receive("topic", timeout="1 day"), Any)
    assert_type(ctx.receive("topic", type=Order), Order)
    assert_type(ctx.wait_event("event", type=Order), Order)
    assert_type(ctx.wait_any(Message("topic"), Timer("1 day")), Met)
    assert_type(ctx.wait_all(Event("event"), timeout=5), list[Any])
    started = ctx.start(child, 1, queue="others")
    assert_type(started, Child[str])
    assert_type(started.result(timeout="1 day"), str)
    assert_type(ctx.wait_any(started), Met)
    assert_type(ctx.approval("may I?", assignee="ada", form=Order(1), expires="2 days"), Decision)
    request = ctx.request_approval("may I?")
    assert_type(request, ApprovalRequest)
    assert_type(request.decision(), Decision)
    assert_type(ctx.wait_any(request, Timer("1 day")), Met)
    assert_type(ctx.run(child, 1), str)
    assert_type(ctx.map(child, [1, 2], max_parallel=5), list[str])
    assert_type(ctx.map(child, [1, 2], return_failures=True), list[str | ChildFailed])
    assert_type(ctx.map(ship, ["parcel"], max_parallel=5), list[int])
    assert_type(ctx.map(pack, [Order(1)], return_failures=True), list[str | StepFailed])
    assert_type(ctx.map(len, [["parcel"]]), list[int])
    ctx.map(ship, [1])  # type: ignore[arg-type]
    ctx.map(ship, ["parcel"], queue="other")  # type: ignore[call-overload]
    assert_type(ctx.uuid(), UUID)
    assert_type(ctx.random(), float)
    assert_type(ctx.attempt, int)
    ctx.step(pack)  # type: ignore[call-overload]
    ctx.step(pack, 5)  # type: ignore[call-overload]
    ctx.transaction(book)  # type: ignore[call-overload]
    ctx.set("parcel", parcel)
    if ctx.queue != "orders" or (found := look(order)) is None:
        ctx.continue_as_new(Order(1))
    # It does not return.
    assert_type(found, int)
    return ctx.step(ship.options(timeout=5), parcel)


@app.workflow
async def fulfil_async(ctx: AsyncContext, order: Order) -> int:
    parcel = await ctx.step(pack, order)
    assert_type(parcel, str)
    assert_type(ctx.step(ship, parcel), Awaitable[int])
    assert_type(await ctx.transaction(book, parcel), int)
    assert_type(await ctx.transaction(book_async, parcel), int)
    assert_type(ctx.submit(ship, parcel), asyncio.Future[Any])
    assert_type(await ctx.now(), datetime)
    await ctx.sleep("1 s")
    assert_type(await ctx.receive("topic", type=Order), Order)
    assert_type(await ctx.wait_any(Message("topic"), Timer("1 day")), Met)
    assert_type(await ctx.wait_all(Event("event")), list[Any])
    started = await ctx.start(child, 1)
    assert_type(started, AsyncChild[str])
    assert_type(await started.result(), str)
    assert_type(await ctx.approval("may I?"), Decision)
    request = await ctx.request_approval("may I?", expires=3600)
    assert_type(request, AsyncApprovalRequest)
    assert_type(await request.decision(), Decision)
    assert_type(await ctx.run(child, 1), str)
    assert_type(await ctx.map(child, [1, 2]), list[str])
    assert_type(await ctx.map(child, [1, 2], return_failures=True), list[str | ChildFailed])
    assert_type(await ctx.map(pack, [Order(1)]), list[str])
    assert_type(await ctx.map(ship, ["parcel"], return_failures=True), list[int | StepFailed])
    assert_type(ctx.uuid(), UUID)
    await ctx.step(pack, "parcel")  # type: ignore[call-overload]
    await ctx.set("parcel", parcel)
    if ctx.queue != "orders" or (found := look(order)) is None:
        await ctx.continue_as_new(Order(1))
    assert_type(found, int)
    return await ctx.step(ship, parcel)


def ask() -> None:
    handle = app.enqueue(fulfil, Order(1), key="order-1", tags={"tenant": "acme"})
    assert_type(handle, Handle[int])
    assert_type(handle.result(timeout="30s"), int)
    assert_type(handle.status(), str)
    assert_type(handle.steps(), list[StepRecord])
    assert_type(handle.cancel("no need"), bool)
    assert_type(handle.pause("not yet"), bool)
    assert_type(handle.resume(), bool)
    assert_type(handle.state(), dict[str, Any])
    assert_type(handle.fork("ship", input=Order(2), outputs={"pack": "1 True"}), Handle[int])
    assert_type(handle.send("topic", Order(1), key="k"), bool)
    assert_type(app.emit("event"), bool)
    assert_type(app.approvals(assignee="ada", state=None, limit=5), list[ApprovalRecord])
    assert_type(app.decide("id", "approved", by="ada", comment="fine", data={"cents": 1}), bool)
    assert_type(app.enqueue_many(fulfil, [Order(1)]), list[Handle[int]])
    assert_type(app.handle(handle.workflow_id, fulfil), Handle[int])
    assert_type(pack(Order(1)), str)


async def ask_async() -> None:
    # The workflow is a coroutine function; its result is not a coroutine.
    handle = await app.aio.enqueue(fulfil, Order(1))
    assert_type(handle, AsyncHandle[int])
    assert_type(await handle.result(), int)
    assert_type(await handle.fork(), AsyncHandle[int])
    assert_type(app.enqueue(fulfil_async, Order(1)).result(), int)
    assert_type((await app.aio.enqueue(fulfil_async, Order(1))), AsyncHandle[int])
    assert_type(await (await app.aio.enqueue(fulfil_async, Order(1))).result(), int)
