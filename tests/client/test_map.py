"""Steps over items: each once, in the order of the items, so many at a time, and what becomes of failures."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from durable_client import (
    AsyncContext,
    Context,
    Durable,
    Handle,
    InvalidArgument,
    StepFailed,
    WorkflowCancelled,
    WorkflowFailed,
    current_step,
)

from client import programs
from client.journal import Journal
from client.proxy import Proxy
from client.workers import OnceMore, Processes, working
from clusters import Database
from engine import call

pytestmark = pytest.mark.pg(15, 18)

EACH = pytest.mark.parametrize("plain", ["", "plain_"], ids=["async", "plain"])


def until(reached: Callable[[], Any], patience: float = 60.0) -> None:
    give_up = time.monotonic() + patience
    while not reached():
        assert time.monotonic() < give_up
        time.sleep(0.01)


def completed(handle: Handle[Any]) -> int:
    return sum(step.status == "completed" for step in handle.steps())


# Crashes


@EACH
def test_03_after_kill_9_amid_a_map_no_item_that_was_completed_runs_again(
    processes: Processes, journal: Journal, plain: str
) -> None:
    count, width = 12, 4
    for n in range(count):
        journal.hold(f"m-{n}")
    handle = programs.app.enqueue(plain + "reading", ["m", count, width])
    worker = processes.start()
    done = [2, 0, 4, 5]
    for n in done:
        journal.wait("read", "m", n)
        journal.release(f"m-{n}")
    until(lambda: completed(handle) == len(done))
    # Four are under way in the places of those that ended.
    for n in (1, 3, 6, 7):
        journal.wait("read", "m", n)
    worker.kill()
    for n in set(range(count)) - set(done):
        journal.release(f"m-{n}")
    processes.start()
    assert handle.result(timeout=60) == [n * 10 for n in range(count)]
    twice = [n for n in range(count) if journal.count("read", "m", n) == 2]
    assert twice == [1, 3, 6, 7]
    assert journal.count("read", "m") == count + 4
    assert {step.name for step in handle.steps()} == {"read", *(f"read#{n}" for n in range(2, count + 1))}


@EACH
def test_04_an_item_that_runs_at_most_once_is_not_run_again_after_a_crash(
    processes: Processes, journal: Journal, plain: str
) -> None:
    journal.hold("launch-b")
    handle = programs.app.enqueue(plain + "launching_all", ["a", "b", "c"])
    worker = processes.start()
    journal.wait("launch", "b")
    until(lambda: completed(handle) == 2)
    worker.kill()
    journal.release("launch-b")
    processes.start()
    assert handle.result(timeout=60) == ["launched", "launch#2 was interrupted", "launched"]
    assert journal.count("launch") == 3


# How many, and in how many calls


@EACH
def test_a_thousand_items_run_side_by_side_are_stored_together_and_replayed_from_one_read(
    db: Database, proxy: Proxy, plain: str
) -> None:
    count, width = 1000, 100
    app = Durable(proxy.dsn(db.dsn))
    ran: list[int] = []
    begun = threading.Barrier(width)

    @app.step
    async def square(n: int) -> int:
        ran.append(n)
        # All of a kind at once: what they store goes into the same flush.
        while len(ran) % 1000:
            await asyncio.sleep(0)
        return n * n

    @app.step
    def plain_square(n: int) -> int:
        ran.append(n)
        begun.wait(30)
        return n * n

    @app.workflow
    async def run(ctx: AsyncContext) -> list[int]:
        found = await ctx.map(square, range(count))
        if ctx.attempt == 1:
            raise OnceMore
        return found

    @app.workflow
    def plain_run(ctx: Context) -> list[int]:
        found = ctx.map(plain_square, range(count), max_parallel=width)
        if ctx.attempt == 1:
            raise OnceMore
        return found

    handle = app.enqueue(plain + "run", max_attempts=2)
    with working(app, concurrency=50):
        assert handle.result(timeout=60) == [n * n for n in range(count)]
    app.close()
    assert sorted(ran) == list(range(count))
    assert proxy.calls.count("flush") <= (10 if plain == "" else 500)
    assert "step_result" not in proxy.calls


@EACH
def test_no_more_than_max_parallel_are_under_way_and_in_the_order_of_the_items(app: Durable, plain: str) -> None:
    lock = threading.Lock()
    full = threading.Event()
    under_way: list[int] = []
    most = [0]
    begun: list[int] = []

    def enter(n: int) -> None:
        with lock:
            begun.append(n)
            under_way.append(n)
            most[0] = max(most[0], len(under_way))
            if len(under_way) == 3:
                full.set()

    def leave(n: int) -> None:
        with lock:
            under_way.remove(n)

    @app.step
    async def visit(n: int) -> int:
        enter(n)
        while not full.is_set():
            await asyncio.sleep(0.001)
        await asyncio.sleep(0.001 * (n % 3))
        leave(n)
        return n

    @app.step
    def plain_visit(n: int) -> int:
        enter(n)
        assert full.wait(30)
        time.sleep(0.001 * (n % 3))
        leave(n)
        return n

    @app.workflow
    async def run(ctx: AsyncContext) -> list[int]:
        return await ctx.map(visit, range(30), max_parallel=3)

    @app.workflow
    def plain_run(ctx: Context) -> list[int]:
        return ctx.map(plain_visit, range(30), max_parallel=3)

    with working(app):
        assert app.enqueue(plain + "run").result(timeout=30) == list(range(30))
    assert most == [3]
    assert sorted(begun[:3]) == [0, 1, 2]
    assert all(abs(place - n) <= 3 for place, n in enumerate(begun))


def test_a_worker_with_one_slot_maps_plain_steps_from_both_faces(app: Durable) -> None:
    def double(n: int) -> int:
        return n * 2

    async def triple(n: int) -> int:
        return n * 3

    @app.workflow
    async def run(ctx: AsyncContext) -> list[int]:
        return await ctx.map(app.step(double), range(20)) + await ctx.map(app.step(triple), range(20))

    @app.workflow
    def plain_run(ctx: Context) -> list[int]:
        return ctx.map(app.step(double), range(20)) + ctx.map(app.step(triple), range(20))

    with working(app, concurrency=1):
        handles = [app.enqueue(workflow) for _ in range(3) for workflow in (run, plain_run)]
        expected = [n * 2 for n in range(20)] + [n * 3 for n in range(20)]
        assert [handle.result(timeout=30) for handle in handles] == [expected] * 6


@EACH
def test_no_items_are_no_steps_and_a_generator_will_do(app: Durable, plain: str) -> None:
    def double(n: int) -> int:
        return n * 2

    @app.workflow
    async def run(ctx: AsyncContext) -> list[Any]:
        return [await ctx.map(double, []), await ctx.map(double, (n for n in (1, 2)))]

    @app.workflow
    def plain_run(ctx: Context) -> list[Any]:
        return [ctx.map(double, []), ctx.map(double, (n for n in (1, 2)))]

    handle = app.enqueue(plain + "run")
    with working(app):
        assert handle.result(timeout=30) == [[], [2, 4]]
    assert {step.name for step in handle.steps()} == {"double", "double#2"}


# Failures


@EACH
def test_the_first_failure_lets_nothing_begin_and_those_under_way_end(app: Durable, plain: str) -> None:
    ended: list[int] = []
    begun: list[int] = []
    seen: list[Any] = []
    failed = threading.Event()
    both_again = threading.Barrier(2)

    def read(n: int) -> int:
        begun.append(n)
        if begun.count(n) == 2:
            both_again.wait(30)
        if n == 3:
            raise ValueError("three")
        assert failed.wait(30)
        if n == 1:
            raise ValueError("one")
        ended.append(n)
        return n

    def is_stored() -> bool:
        return any(step.status == "error" for step in handle.steps())

    async def run(ctx: AsyncContext) -> None:
        try:
            await ctx.map(read, range(20), max_parallel=4)
        except StepFailed as failure:
            seen.append((failure.step, failure.error["message"], sorted(begun), sorted(ended)))
            raise

    def plain_run(ctx: Context) -> None:
        try:
            ctx.map(read, range(20), max_parallel=4)
        except StepFailed as failure:
            seen.append((failure.step, failure.error["message"], sorted(begun), sorted(ended)))
            raise

    app.workflow(run)
    app.workflow(plain_run)
    handle = app.enqueue(plain + "run")
    with working(app):
        until(is_stored)
        failed.set()
        with pytest.raises(WorkflowFailed, match="three"):
            handle.result(timeout=30)
        assert seen == [("read#4", "three", [0, 1, 2, 3], [0, 2])]
        # What goes on is what failed, not only the failure that was told of, and what was not begun.
        assert handle.retry()
        with pytest.raises(WorkflowFailed, match=r"one|three"):
            handle.result(timeout=30)
    assert begun.count(0) == begun.count(2) == 1
    assert begun.count(1) == begun.count(3) == 2


@EACH
def test_a_replay_raises_the_failure_that_was_first_and_begins_nothing(app: Durable, db: Database, plain: str) -> None:
    begun: list[int] = []
    caught: list[str] = []
    both = threading.Barrier(2)

    def read(n: int) -> int:
        begun.append(n)
        both.wait(30)
        raise ValueError(str(n))

    @app.workflow
    async def run(ctx: AsyncContext) -> str:
        try:
            await ctx.map(read, range(6), max_parallel=2)
        except StepFailed as failure:
            caught.append(failure.step)
        if ctx.attempt < 4:
            raise OnceMore
        return caught[0]

    @app.workflow
    def plain_run(ctx: Context) -> str:
        try:
            ctx.map(read, range(6), max_parallel=2)
        except StepFailed as failure:
            caught.append(failure.step)
        if ctx.attempt < 4:
            raise OnceMore
        return caught[0]

    handle = app.enqueue(plain + "run", max_attempts=4)
    with working(app):
        call(db.connect(), "configure", "retry_initial", "10 ms")
        first = handle.result(timeout=30)
    assert caught == [first] * 4
    assert sorted(begun) == [0, 1]
    assert next(step.name for step in handle.steps()) == first


@EACH
def test_failures_are_returned_in_their_places_and_all_items_run(app: Durable, plain: str) -> None:
    ran: list[int] = []

    @app.step
    def halve(n: int) -> int:
        ran.append(n)
        if n % 2:
            raise ValueError(f"{n} is odd")
        return n // 2

    def told(results: list[Any]) -> list[Any]:
        return [item.error["message"] if isinstance(item, StepFailed) else item for item in results]

    @app.workflow
    async def run(ctx: AsyncContext) -> list[Any]:
        results = told(await ctx.map(halve, range(5), max_parallel=2, return_failures=True))
        if ctx.attempt == 1:
            raise OnceMore
        return results

    @app.workflow
    def plain_run(ctx: Context) -> list[Any]:
        results = told(ctx.map(halve, range(5), max_parallel=2, return_failures=True))
        if ctx.attempt == 1:
            raise OnceMore
        return results

    handle = app.enqueue(plain + "run", max_attempts=2)
    with working(app):
        assert handle.result(timeout=30) == [0, "1 is odd", 1, "3 is odd", 2]
    assert sorted(ran) == [0, 1, 2, 3, 4]


# Ends from outside


@pytest.mark.parametrize("body", ["async", "plain"])
@EACH
def test_28_cancel_reaches_all_items_under_way_and_begins_no_other(app: Durable, plain: str, body: str) -> None:
    begun: list[int] = []
    told: list[int] = []

    @app.step
    async def wait(n: int) -> None:
        begun.append(n)
        try:
            await asyncio.sleep(600)
        finally:
            told.append(n)

    @app.step
    def plain_wait(n: int) -> None:
        begun.append(n)
        until(lambda: current_step().interrupted)
        told.append(n)

    step: Any = wait if body == "async" else plain_wait

    @app.workflow
    async def run(ctx: AsyncContext) -> None:
        await ctx.map(step, range(20), max_parallel=4)

    @app.workflow
    def plain_run(ctx: Context) -> None:
        ctx.map(step, range(20), max_parallel=4)

    @app.workflow
    async def other(ctx: AsyncContext) -> str:
        return "done"

    handle = app.enqueue(plain + "run")
    with working(app, concurrency=4):
        until(lambda: len(begun) == 4)
        assert handle.cancel("enough")
        with pytest.raises(WorkflowCancelled, match="enough"):
            handle.result(timeout=30)
        until(lambda: len(told) == 4)
        assert app.enqueue(other).result(timeout=30) == "done"
    assert sorted(begun) == sorted(told) == [0, 1, 2, 3]


def test_a_map_that_the_code_gives_up_leaves_nothing_running_and_goes_on_with_what_is_missing(app: Durable) -> None:
    stored = threading.Event()
    begun: list[int] = []
    ended: list[int] = []

    @app.step
    async def read(n: int) -> int:
        begun.append(n)
        try:
            if n > 2 and not stored.is_set():
                await asyncio.sleep(600)
            return n
        finally:
            ended.append(n)

    @app.workflow
    async def run(ctx: AsyncContext) -> list[int]:
        mapping = asyncio.ensure_future(ctx.map(read, range(5)))
        if ctx.attempt == 1:
            while not stored.is_set():
                await asyncio.sleep(0.01)
            mapping.cancel()
            await asyncio.wait([mapping])
            assert sorted(ended) == [0, 1, 2, 3, 4]
            raise OnceMore
        return await mapping

    handle = app.enqueue(run, max_attempts=2)
    with working(app):
        until(lambda: completed(handle) == 3)
        stored.set()
        assert handle.result(timeout=30) == [0, 1, 2, 3, 4]
    assert sorted(begun) == [0, 1, 2, 3, 3, 4, 4]


@EACH
def test_a_workflow_that_waits_beside_a_map_is_not_parked_between_two_items(app: Durable, plain: str) -> None:
    attempts: list[int] = []
    begun, sent = threading.Event(), threading.Event()

    def read(n: int) -> int:
        begun.set()
        time.sleep(0.02)
        assert n < 7 or sent.wait(30)
        return n

    @app.workflow
    async def run(ctx: AsyncContext) -> list[Any]:
        attempts.append(1)
        return [*await asyncio.gather(ctx.map(read, range(10), max_parallel=1), ctx.receive("stop"))]

    @app.workflow
    def plain_run(ctx: Context) -> list[Any]:
        attempts.append(1)
        with ThreadPoolExecutor(1) as pool:
            mapping = pool.submit(ctx.map, read, range(10), max_parallel=1)
            assert begun.wait(30)
            stop = ctx.receive("stop")
            return [mapping.result(), stop]

    handle = app.enqueue(plain + "run")
    with working(app):
        until(lambda: completed(handle) == 7)
        handle.send("stop", "now")
        sent.set()
        assert handle.result(timeout=30) == [list(range(10)), "now"]
    assert len(attempts) == 1


def test_what_is_no_way_to_map_is_refused(app: Durable) -> None:
    def read(n: int) -> int:
        return n

    @app.workflow
    async def run(ctx: AsyncContext) -> int:
        calls: list[Callable[[], Any]] = [
            lambda: ctx.map(read, [1], max_parallel=0),
            lambda: ctx.map(read, [1], queue="other"),  # type: ignore[call-overload]
            lambda: ctx.map(lambda n: n, [1]),
        ]
        refused = 0
        for attempt in calls:
            try:
                await attempt()
            except InvalidArgument:
                refused += 1
        return refused

    handle = app.enqueue(run)
    with working(app):
        assert handle.result(timeout=30) == 3
    assert handle.steps() == []
