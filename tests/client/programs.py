"""The program that the worker processes of the tests run.

The environment has DURABLE_DSN, and JOURNAL, the file where the steps note what they do.
"""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path
from typing import Any

import psycopg
from durable_client import (
    AsyncContext,
    ChildFailed,
    Context,
    Durable,
    Event,
    Retry,
    StepInterrupted,
    WaitTimedOut,
    current_step,
)  # fmt: skip

from client.journal import Journal

app = Durable()


def journal() -> Journal:
    return Journal(os.environ["JOURNAL"])


# A chain of steps that can be held at any of them; its result is the sum of the squares.


@app.step
async def square(workflow: str, n: int) -> int:
    journal().note("square", workflow, n, os.getpid())
    await journal().pass_by_async(f"{workflow}-{n}")
    return n * n


@app.step(name="square")
def square_plain(workflow: str, n: int) -> int:
    journal().note("square", workflow, n, os.getpid())
    journal().pass_by(f"{workflow}-{n}")
    return n * n


@app.workflow
async def chain(ctx: AsyncContext, given: dict[str, Any]) -> int:
    total = 0
    for n in range(given["steps"]):
        total += await ctx.step(square, given["name"], n)
    await journal().pass_by_async(f"{given['name']}-end")
    return total


@app.workflow
def plain_chain(ctx: Context, given: dict[str, Any]) -> int:
    total = 0
    for n in range(given["steps"]):
        total += ctx.step(square_plain, given["name"], n)
    journal().pass_by(f"{given['name']}-end")
    return total


# Steps that end in another order than they were started.


@app.step
async def late(n: int) -> int:
    journal().note("late", n)
    await journal().pass_by_async(f"late-{n}")
    return n * 10


@app.step
def late_plain(n: int) -> int:
    journal().note("late", n)
    journal().pass_by(f"late-{n}")
    return n * 10


@app.workflow
async def fan_out(ctx: AsyncContext, width: int) -> list[int]:
    return await asyncio.gather(*(ctx.step(late, n) for n in range(width)))


@app.workflow
def plain_fan_out(ctx: Context, width: int) -> list[int]:
    futures = [ctx.submit(late_plain, n) for n in range(width)]
    return [future.result() for future in futures]


# Retries.


class Refused(Exception):
    """What a service that is asked too early says."""


@app.step(retry=Retry(max_attempts=4, initial="1500ms", backoff=1, max_delay="1500ms"))
async def knock() -> int:
    step = current_step()
    journal().note("knock", step.attempt, time.time())
    if step.attempt < 3:
        raise Refused(f"attempt {step.attempt}")
    return step.attempt


@app.workflow
async def knocking(ctx: AsyncContext) -> int:
    return await ctx.step(knock)


# At most once.


@app.step(at_most_once=True)
async def launch(name: str) -> str:
    journal().note("launch", name, current_step().idempotency_key)
    await journal().pass_by_async(f"launch-{name}")
    return "launched"


@app.step(name="launch", at_most_once=True)
def launch_plain(name: str) -> str:
    journal().note("launch", name, current_step().idempotency_key)
    journal().pass_by(f"launch-{name}")
    return "launched"


@app.workflow
async def launching(ctx: AsyncContext, name: str) -> str:
    try:
        return await ctx.step(launch, name)
    except StepInterrupted as interrupted:
        return f"{interrupted.step} was interrupted"


@app.workflow
def plain_launching(ctx: Context, name: str) -> str:
    return ctx.step(launch_plain, name)


@app.workflow
async def launching_all(ctx: AsyncContext, names: list[str]) -> list[str]:
    results = await ctx.map(launch, names, return_failures=True)
    return [f"{item.step} was interrupted" if isinstance(item, StepInterrupted) else str(item) for item in results]


@app.workflow
def plain_launching_all(ctx: Context, names: list[str]) -> list[str]:
    results = ctx.map(launch_plain, names, return_failures=True)
    return [f"{item.step} was interrupted" if isinstance(item, StepInterrupted) else str(item) for item in results]


# What must be the same in every replay.


@app.workflow
async def dice(ctx: AsyncContext) -> list[str]:
    drawn = [str(await ctx.now()), str(ctx.uuid()), str(ctx.uuid()), str(ctx.random()), str(await ctx.now())]
    journal().note("drawn", drawn)
    await ctx.step(late, 0)
    return [*drawn, str(ctx.random())]


# Transactions. The table is made by the test.


async def transfer(conn: psycopg.AsyncConnection[Any], name: str) -> str:
    await conn.execute("insert into transfers (name) values (%s)", [name])
    journal().note("transfer", name)
    await journal().pass_by_async(f"transfer-{name}")
    return name


def transfer_plain(conn: psycopg.Connection[Any], name: str) -> str:
    conn.execute("insert into transfers (name) values (%s)", [name])
    journal().note("transfer", name)
    journal().pass_by(f"transfer-{name}")
    return name


@app.workflow
async def transferring(ctx: AsyncContext, names: list[str]) -> list[str]:
    return [await ctx.transaction(transfer, name) for name in names]


@app.workflow
def plain_transferring(ctx: Context, names: list[str]) -> list[str]:
    return [ctx.transaction(transfer_plain, name) for name in names]


# Waiting.


@app.step
async def mark(*what: Any) -> None:
    journal().note("mark", *what)
    await journal().pass_by_async("-".join(map(str, what)))


@app.step(name="mark")
def mark_plain(*what: Any) -> None:
    journal().note("mark", *what)
    journal().pass_by("-".join(map(str, what)))


@app.workflow
async def sleeping(ctx: AsyncContext, given: list[Any]) -> None:
    name, length = given
    await ctx.step(mark, name, "before")
    await ctx.sleep(length)
    await ctx.step(mark, name, "after")


@app.workflow
def plain_sleeping(ctx: Context, given: list[Any]) -> None:
    name, length = given
    ctx.step(mark_plain, name, "before")
    ctx.sleep(length)
    ctx.step(mark_plain, name, "after")


@app.workflow
async def receiving(ctx: AsyncContext, given: list[Any]) -> list[Any]:
    name, count = given
    received = []
    for _ in range(count):
        received.append(await ctx.receive("mail"))
        await ctx.step(mark, name, *received)
    return received


@app.workflow
def plain_receiving(ctx: Context, given: list[Any]) -> list[Any]:
    name, count = given
    received = []
    for _ in range(count):
        received.append(ctx.receive("mail"))
        ctx.step(mark_plain, name, *received)
    return received


@app.workflow
async def hearing(ctx: AsyncContext, name: str) -> list[Any]:
    heard = await ctx.wait_event("news")
    await ctx.step(mark, name, heard)
    return [name, heard]


@app.workflow
def plain_hearing(ctx: Context, name: str) -> list[Any]:
    heard = ctx.wait_event("news")
    ctx.step(mark_plain, name, heard)
    return [name, heard]


@app.workflow
async def patient(ctx: AsyncContext, limit: str) -> str:
    try:
        await ctx.receive("mail", timeout=limit)
    except WaitTimedOut:
        await ctx.step(mark, "timed out")
        return "timed out"
    return "received"


@app.workflow
def plain_patient(ctx: Context, limit: str) -> str:
    try:
        ctx.receive("mail", timeout=limit)
    except WaitTimedOut:
        ctx.step(mark_plain, "timed out")
        return "timed out"
    return "received"


@app.workflow
async def approving(ctx: AsyncContext, name: str) -> list[Any]:
    await ctx.step(mark, name, "before")
    first = await ctx.approval(name, assignee="finance", form={"cents": 12000}, expires="1 day")
    await ctx.step(mark, name, "between")
    request = await ctx.request_approval("and this?", assignee="finance")
    met = await ctx.wait_any(Event("never"), request)
    await ctx.step(mark, name, "after")
    return [first.decision, first.by, first.data, met.index, met.value.decision]


@app.workflow
def plain_approving(ctx: Context, name: str) -> list[Any]:
    ctx.step(mark_plain, name, "before")
    first = ctx.approval(name, assignee="finance", form={"cents": 12000}, expires="1 day")
    ctx.step(mark_plain, name, "between")
    request = ctx.request_approval("and this?", assignee="finance")
    met = ctx.wait_any(Event("never"), request)
    ctx.step(mark_plain, name, "after")
    return [first.decision, first.by, first.data, met.index, met.value.decision]


# Children.


@app.workflow
async def leaf(ctx: AsyncContext, given: list[Any]) -> Any:
    name, value = given
    await ctx.step(mark, name, value)
    if value == "bad":
        raise ValueError("a bad leaf")
    return value


@app.workflow
async def branching(ctx: AsyncContext, name: str) -> list[Any]:
    """Every way to have children, one after the other."""
    started = await ctx.start(leaf, [name, "started"])
    many = await ctx.map(leaf, [[name, n] for n in range(4)], max_parallel=2)
    some = await ctx.map(leaf, [[name, "good"], [name, "bad"]], return_failures=True)
    met = await ctx.wait_any(started)
    try:
        await ctx.run(leaf, [name, "bad"])
    except ChildFailed as error:
        some.append(error)
    return [await started.result(), many, [str(getattr(item, "error", item)) for item in some], met.index]


@app.workflow
def plain_branching(ctx: Context, name: str) -> list[Any]:
    started = ctx.start(leaf, [name, "started"])
    many = ctx.map(leaf, [[name, n] for n in range(4)], max_parallel=2)
    some = ctx.map(leaf, [[name, "good"], [name, "bad"]], return_failures=True)
    met = ctx.wait_any(started)
    try:
        ctx.run(leaf, [name, "bad"])
    except ChildFailed as error:
        some.append(error)
    return [started.result(), many, [str(getattr(item, "error", item)) for item in some], met.index]


@app.workflow
async def joining(ctx: AsyncContext, name: str) -> Any:
    """Has a child, of which it has a child: both wait."""
    return await ctx.run(leaf, [name, "leaf"])


@app.workflow
async def root(ctx: AsyncContext, name: str) -> Any:
    return [await ctx.run(joining, name), await ctx.step(mark, name, "end")]


@app.workflow
def plain_root(ctx: Context, name: str) -> Any:
    return [ctx.run(joining, name), ctx.step(mark_plain, name, "end")]


# Steps over items.


@app.step
async def read(item: list[Any]) -> int:
    name, n = item
    journal().note("read", name, n)
    await journal().pass_by_async(f"{name}-{n}")
    return n * 10


@app.step(name="read")
def read_plain(item: list[Any]) -> int:
    name, n = item
    journal().note("read", name, n)
    journal().pass_by(f"{name}-{n}")
    return n * 10


@app.workflow
async def reading(ctx: AsyncContext, given: list[Any]) -> list[int]:
    name, count, width = given
    return await ctx.map(read, [[name, n] for n in range(count)], max_parallel=width)


@app.workflow
def plain_reading(ctx: Context, given: list[Any]) -> list[int]:
    name, count, width = given
    return ctx.map(read_plain, [[name, n] for n in range(count)], max_parallel=width)


# Misbehaviour.


@app.step
def crash() -> None:
    journal().note("crash")
    os.kill(os.getpid(), 9)


@app.workflow
async def crashing(ctx: AsyncContext) -> None:
    await ctx.step(crash)


@app.step
async def block(seconds: float) -> int:
    journal().note("block")
    time.sleep(seconds)  # noqa: ASYNC251 - it is what this step is for
    return os.getpid()


@app.workflow
async def blocking(ctx: AsyncContext, seconds: float) -> int:
    return await ctx.step(block, seconds)


# Many small ones of every kind, for runs in which much is killed.


@app.step
async def add(a: int, b: int) -> int:
    await asyncio.sleep(0.001)
    return a + b


@app.step(name="add")
def add_plain(a: int, b: int) -> int:
    return a + b


async def book(conn: psycopg.AsyncConnection[Any], n: int) -> int:
    await conn.execute("insert into bookings (n) values (%s)", [n])
    return n


def book_plain(conn: psycopg.Connection[Any], n: int) -> int:
    conn.execute("insert into bookings (n) values (%s)", [n])
    return n


@app.workflow
async def mixed(ctx: AsyncContext, n: int) -> int:
    first = await ctx.step(add, n, 1)
    booked = await ctx.transaction(book, n)
    both = await asyncio.gather(ctx.step(add, first, booked), ctx.step(add_plain, first, 1))
    return sum(both)


@app.workflow
def plain_mixed(ctx: Context, n: int) -> int:
    first = ctx.step(add_plain, n, 1)
    booked = ctx.transaction(book_plain, n)
    both = [ctx.submit(add_plain, first, booked), ctx.submit(add_plain, first, 1)]
    return sum(future.result() for future in both)


# A little of everything, with text that not every encoding has.

TEXT = "größer als 5 € — 価格"


@app.step(retry=Retry(max_attempts=3, initial="20ms", backoff=1))
def stumble(text: str) -> str:
    if current_step().attempt < 3:
        raise Refused(f"{text}: attempt {current_step().attempt}")
    return text


@app.step
def refuse(text: str) -> None:
    raise Refused(text)


@app.workflow
async def share(ctx: AsyncContext, n: int) -> Any:
    return await ctx.step(refuse, TEXT) if n == 2 else n


@app.workflow
async def with_text(ctx: AsyncContext, n: int) -> list[Any]:
    began = await ctx.now()
    text = await ctx.step(stumble, TEXT)
    booked = await ctx.transaction(book, n)
    booked += await ctx.transaction(book_plain, n + 1)
    await ctx.sleep("20ms")
    mail = await ctx.receive("mail", timeout="1 minute")
    news = await ctx.wait_event("news")
    shares = await ctx.map(share, [0, 1, 2, 3], return_failures=True)
    results = [str(each.error) if isinstance(each, ChildFailed) else each for each in shares]
    return [text, booked, mail, news, results, await ctx.now() > began]


@app.workflow
def failing_with_text(ctx: Context, n: int) -> None:
    ctx.step(refuse, f"{TEXT} {n}")


# One of everything, for runs in which somebody is in the way.


@app.step(retry=Retry(max_attempts=2, initial="10ms"))
async def at_second_try() -> int:
    if current_step().attempt == 1:
        raise Refused
    return current_step().attempt


@app.workflow(max_attempts=2)
async def everything(ctx: AsyncContext, name: str) -> list[Any]:
    done = [await ctx.step(add, 1, 2), await ctx.step(at_second_try), await ctx.step(launch, name)]
    await ctx.sleep("20ms")
    done += [await ctx.transaction(book, 3), *await ctx.map(leaf, [[name, 4], [name, 5]], max_parallel=1)]
    await ctx.set("done", len(done))
    done += [await ctx.receive("mail"), await ctx.wait_event(f"event of {name}")]
    if ctx.attempt == 1:
        raise Refused
    return done


# Everything that brings a workflow a value from elsewhere, where another program may have stored it.


@app.step(name="given")
async def give() -> str:
    return "by this worker"


@app.step(name="given")
def give_plain() -> str:
    return "by this worker"


@app.workflow
async def meeting(ctx: AsyncContext, way: Any) -> str:
    if way == "message":
        await ctx.receive("topic")
    elif way == "event":
        await ctx.wait_event(f"event of {ctx.workflow_id}")
    elif way == "approval":
        await ctx.approval("May I?")
    elif way == "child":
        await ctx.run("elsewhere", queue="elsewhere")
    elif way == "children":
        await ctx.map("elsewhere", range(2), queue="elsewhere", return_failures=True)
    elif way == "step":
        await ctx.step(give)
    return "done"


@app.workflow
def plain_meeting(ctx: Context, way: Any) -> str:
    if way == "message":
        ctx.receive("topic")
    elif way == "event":
        ctx.wait_event(f"event of {ctx.workflow_id}")
    elif way == "approval":
        ctx.approval("May I?")
    elif way == "child":
        ctx.run("elsewhere", queue="elsewhere")
    elif way == "children":
        ctx.map("elsewhere", range(2), queue="elsewhere", return_failures=True)
    elif way == "step":
        ctx.step(give_plain)
    return "done"


# What a worker process does


def work(environment: dict[str, str], log: Path, options: dict[str, Any]) -> None:
    os.environ.clear()
    os.environ.update(environment)
    output = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    for stream in (1, 2):
        os.dup2(output, stream)
    app.run_worker(**options)
