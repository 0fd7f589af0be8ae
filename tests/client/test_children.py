"""Children from Python: the same ones after a crash, failures that the parent handles, and no slot held meanwhile."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable
from typing import Any

import pytest
from durable_client import (
    AsyncContext,
    ChildFailed,
    Context,
    Durable,
    Handle,
    InvalidArgument,
    Timer,
    WaitTimedOut,
    WorkflowCancelled,
    WorkflowFailed,
)

from client import programs
from client.journal import Journal
from client.proxy import Proxy
from client.workers import OnceMore, Processes, working
from clusters import Database
from engine import call, rows, steps, value

pytestmark = pytest.mark.pg(15, 18)

EACH = pytest.mark.parametrize("plain", ["", "plain_"], ids=["async", "plain"])


def until(reached: Callable[[], Any], patience: float = 60.0) -> None:
    give_up = time.monotonic() + patience
    while not reached():
        assert time.monotonic() < give_up
        time.sleep(0.01)


def until_status(handle: Handle[Any], *status: str) -> None:
    until(lambda: handle.status() in status)


BRANCHES = ["started", [0, 1, 2, 3]]


def check(branched: list[Any]) -> None:
    started, many, some, index = branched
    assert [started, many, index] == [*BRANCHES, 0]
    assert some[0] == "good"
    assert all("a bad leaf" in failed for failed in some[1:])
    assert len(some) == 3


# What must hold, each across a crash


@EACH
def test_27_a_parent_replays_to_the_same_children_and_waits_without_a_slot(
    db: Database, processes: Processes, journal: Journal, plain: str
) -> None:
    conn = db.connect()
    journal.hold("p-1")
    handle = programs.app.enqueue(plain + "branching", "p")
    # One slot: while the parent waits it is free for the children.
    worker = processes.start(concurrency=1)
    journal.wait("mark", "p", 1)
    children = "select workflow_id, input from durable.workflows where parent_id is not null order by workflow_id"
    before = rows(conn, children)
    assert len(before) == 5
    assert handle.status() == "waiting"
    worker.kill()
    journal.release("p-1")
    processes.start(concurrency=1)
    check(handle.result(timeout=60))
    after = rows(conn, children)
    assert after[:5] == before
    assert len(after) == 8
    assert journal.count("mark", "p", 1) == 2
    assert journal.count("mark", "p") == 9


@EACH
def test_27_the_failure_of_a_child_is_its_parents_to_handle_also_in_a_replay(
    app: Durable, db: Database, plain: str
) -> None:
    caught: list[Any] = []
    ran: list[Any] = []

    @app.workflow
    async def child(ctx: AsyncContext, n: int) -> int:
        ran.append(n)
        if n % 2:
            raise ValueError(f"no {n}")
        return n

    @app.workflow
    async def parent(ctx: AsyncContext) -> list[Any]:
        try:
            await ctx.map(child, range(4))
        except ChildFailed as error:
            caught.append((error.workflow_id, error.status, error.type, error.error["message"], error.detail))
        kept = await ctx.map(child, range(3), return_failures=True)
        if len(caught) == 1:
            raise OnceMore
        return [str(item.error["message"]) if isinstance(item, ChildFailed) else item for item in kept]

    @app.workflow
    def plain_parent(ctx: Context) -> list[Any]:
        try:
            ctx.map(child, range(4))
        except ChildFailed as error:
            caught.append((error.workflow_id, error.status, error.type, error.error["message"], error.detail))
        kept = ctx.map(child, range(3), return_failures=True)
        if len(caught) < 3:
            raise OnceMore
        return [str(item.error["message"]) if isinstance(item, ChildFailed) else item for item in kept]

    handle = app.enqueue(plain + "parent", max_attempts=9)
    with working(app):
        call(db.connect(), "configure", "retry_initial", "10 ms")
        assert handle.result(timeout=30) == [0, "no 1", 2]
    assert len(set(caught)) == 1
    assert caught[0][1:] == ("failed", "ValueError", "no 1", "2 of 4 children failed or were cancelled.")
    assert sorted(ran) == [0, 0, 1, 1, 2, 2, 3]


@EACH
def test_27_a_failure_that_the_parent_does_not_handle_fails_it(app: Durable, plain: str) -> None:
    @app.workflow
    async def child(ctx: AsyncContext) -> None:
        raise ValueError("no")

    @app.workflow
    async def parent(ctx: AsyncContext) -> None:
        await ctx.run(child)

    @app.workflow
    def plain_parent(ctx: Context) -> None:
        ctx.run(child)

    handle = app.enqueue(plain + "parent")
    with working(app), pytest.raises(WorkflowFailed, match="no") as failed:
        handle.result(timeout=30)
    assert failed.value.type.endswith("ChildFailed")


@EACH
def test_27_a_parent_that_is_retried_runs_the_children_that_failed_it_again(app: Durable, plain: str) -> None:
    ran: list[int] = []

    @app.workflow
    async def child(ctx: AsyncContext, n: int) -> int:
        ran.append(n)
        if n == 1 and ran.count(1) < 3:
            raise ValueError("not yet")
        return n

    @app.workflow
    async def parent(ctx: AsyncContext) -> list[int]:
        return await ctx.map(child, range(3))

    @app.workflow
    def plain_parent(ctx: Context) -> list[int]:
        return ctx.map(child, range(3))

    handle = app.enqueue(plain + "parent")
    with working(app):
        for _ in range(2):
            with pytest.raises(WorkflowFailed, match="not yet"):
                handle.result(timeout=30)
            assert handle.retry()
        assert handle.result(timeout=30) == [0, 1, 2]
    assert sorted(ran) == [0, 1, 1, 1, 2]


@EACH
def test_28_cancel_reaches_a_family_whose_workers_were_killed_and_is_final(
    db: Database, processes: Processes, journal: Journal, plain: str
) -> None:
    conn = db.connect()
    journal.hold("r-leaf")
    handle = programs.app.enqueue(plain + "root", "r")
    worker = processes.start()
    journal.wait("mark", "r", "leaf")
    until(lambda: value(conn, "select count(*) from durable.live_workflows where status = 'waiting'") == 2)
    worker.kill()
    assert handle.cancel("enough")
    journal.release("r-leaf")
    processes.start()
    with pytest.raises(WorkflowCancelled, match="enough"):
        handle.result(timeout=30)
    other = programs.app.enqueue(plain + "chain", {"name": "meanwhile", "steps": 2})
    assert other.result(timeout=30) == 1
    statuses = rows(conn, "select distinct status::text from durable.workflows where name <> %s", plain + "chain")
    assert statuses == [("cancelled",)]
    assert journal.count("mark", "r") == 1


def test_28_cancel_interrupts_the_running_step_of_a_child_at_once(
    db: Database, processes: Processes, journal: Journal
) -> None:
    journal.hold("r-leaf")
    handle = programs.app.enqueue("root", "r")
    processes.start(concurrency=1)
    journal.wait("mark", "r", "leaf")
    assert handle.cancel()
    # The only slot is free, though the step would still be held.
    assert programs.app.enqueue("chain", {"name": "next", "steps": 2}).result(timeout=30) == 1
    assert journal.count("mark", "r") == 1


def test_28_a_cancelled_child_is_told_to_its_parent_and_takes_nobody_else_along(app: Durable, db: Database) -> None:
    @app.workflow
    async def child(ctx: AsyncContext, n: int) -> int:
        if n == 1:
            await ctx.sleep("1 hour")
        return n

    @app.workflow
    async def parent(ctx: AsyncContext) -> list[Any]:
        results = await ctx.map(child, range(3), return_failures=True)
        return [item.status if isinstance(item, ChildFailed) else item for item in results]

    handle = app.enqueue(parent)
    conn = db.connect()
    with working(app):
        until(lambda: value(conn, "select count(*) from durable.workflows where status = 'sleeping'"))
        sleeping = value(conn, "select workflow_id from durable.workflows where status = 'sleeping'")
        assert app.handle(sleeping).cancel("not this one")
        assert handle.result(timeout=30) == [0, "cancelled", 2]


# Answers that are lost


@EACH
@pytest.mark.parametrize("statement", ["durable.start_children(", "durable.wait_many(", "durable.child_results("])
def test_06_after_a_lost_answer_there_are_no_more_children_than_were_started(
    app: Durable, db: Database, proxy: Proxy, statement: str, plain: str
) -> None:
    lossy = Durable(proxy.dsn(db.dsn))

    @lossy.workflow
    async def child(ctx: AsyncContext, n: int) -> str:
        # Not to be compressed: five of them are too much to be stored once more.
        return random.Random(n).randbytes(30_000).hex()

    @lossy.workflow
    async def parent(ctx: AsyncContext) -> list[int]:
        return [len(item) for item in await ctx.map(child, range(5))]

    @lossy.workflow
    def plain_parent(ctx: Context) -> list[int]:
        return [len(item) for item in ctx.map(child, range(5))]

    proxy.lose(statement)
    handle = app.enqueue(plain + "parent")
    with working(lossy):
        assert handle.result(timeout=30) == [60_000] * 5
    assert proxy.lost == [statement]
    assert value(db.connect(), "select count(*) from durable.workflows") == 6


# What they are


@EACH
def test_children_that_are_started_side_by_side_are_joined_in_any_order(app: Durable, db: Database, plain: str) -> None:
    @app.workflow
    async def child(ctx: AsyncContext, n: int) -> int:
        return n * n

    @app.workflow
    async def parent(ctx: AsyncContext) -> list[int]:
        children = [await ctx.start(child, n) for n in range(5)]
        back = [await each.result() for each in reversed(children)]
        again = await asyncio.gather(*[each.result() for each in children])
        return back + again + await asyncio.gather(*[ctx.run(child, n) for n in range(5)])

    @app.workflow
    def plain_parent(ctx: Context) -> list[int]:
        children = [ctx.start(child, n) for n in range(5)]
        back = [each.result() for each in reversed(children)]
        again = [each.result() for each in children]
        return back + again + [ctx.run(child, n) for n in range(5)]

    handle = app.enqueue(plain + "parent")
    squares = [0, 1, 4, 9, 16]
    with working(app):
        assert handle.result(timeout=30) == [*reversed(squares), *squares, *squares]
    names = steps(db.connect(), handle.workflow_id).keys()  # type: ignore[arg-type]
    assert {"start:child", "start:child#5", "start:child/result", "start:child/result#2", "run:child/result"} < set(
        names
    )


def test_a_wait_for_a_child_can_time_out_and_be_one_of_several(app: Durable) -> None:
    @app.workflow
    async def child(ctx: AsyncContext) -> None:
        await ctx.sleep("1 hour")

    @app.workflow
    async def quick(ctx: AsyncContext) -> str:
        return "done"

    @app.workflow
    async def parent(ctx: AsyncContext) -> list[Any]:
        slow = await ctx.start(child)
        fast = await ctx.start(quick)
        met = await ctx.wait_any(slow, fast)
        both = await ctx.wait_all(fast, Timer("10ms"))
        try:
            await slow.result(timeout="10ms")
        except WaitTimedOut:
            return [met.condition is fast, met.value, both, await fast.result()]
        return []

    handle = app.enqueue(parent)
    with working(app):
        assert handle.result(timeout=30) == [True, None, [None, None], "done"]


def test_inputs_and_outputs_are_as_annotated_and_options_are_those_of_the_child(app: Durable, db: Database) -> None:
    @app.workflow(queue="their own", priority=7, max_attempts=3, timeout="1 hour")
    async def child(ctx: AsyncContext, at: tuple[int, bytes]) -> tuple[int, bytes]:
        assert isinstance(at, tuple)
        return at

    @app.workflow
    async def parent(ctx: AsyncContext) -> str:
        got = await ctx.map(child, [(1, b"one")])
        await ctx.run(child, (2, b"two"), queue="another", priority=-1, max_attempts=1, timeout="5s", tags={"a": "b"})
        await ctx.run("child", [3, "dGhyZWU="])
        return repr(got)

    handle = app.enqueue(parent, queue="mine", priority=5)
    with working(app, queues=["mine", "their own", "another"]):
        assert handle.result(timeout=30) == repr([(1, b"one")])
    children = rows(
        db.connect(),
        """select queue, priority, max_attempts, extract(epoch from timeout)::int, tags from durable.workflows
           where parent_id is not null order by workflow_id""",
    )
    assert [tuple(row) for row in children] == [
        ("their own", 7, 3, 3600, {}), ("another", -1, 1, 5, {"a": "b"}), ("mine", 5, 1, None, {}),
    ]  # fmt: skip


def test_no_items_are_no_children_and_a_child_without_input_takes_none(app: Durable, db: Database) -> None:
    @app.workflow
    async def child(ctx: AsyncContext) -> int:
        return 1

    @app.workflow
    async def parent(ctx: AsyncContext) -> list[Any]:
        refused = 0
        for attempt in (lambda: ctx.run(child, "input"), lambda: ctx.map(child, [None], max_parallel=0)):
            try:
                await attempt()
            except InvalidArgument:
                refused += 1
        return [await ctx.map(child, []), await ctx.map(child, [None] * 2), refused]

    handle = app.enqueue(parent)
    with working(app):
        assert handle.result(timeout=30) == [[], [1, 1], 2]
    assert value(db.connect(), "select count(*) from durable.workflows where name = 'child'") == 2


def test_ten_thousand_children_are_joined_in_order_and_their_parent_is_woken_once(app: Durable, db: Database) -> None:
    runs: list[int] = []

    @app.workflow
    async def child(ctx: AsyncContext, n: int) -> int:
        return n * 2

    @app.workflow
    async def parent(ctx: AsyncContext, count: int) -> bool:
        runs.append(1)
        return await ctx.map(child, range(count)) == [n * 2 for n in range(count)]

    handle = app.enqueue(parent, 10_000)
    with working(app, concurrency=200):
        assert handle.result(timeout=120)
    assert len(runs) == 2
