"""What a workflow sees in a replay is what it saw the first time."""

from __future__ import annotations

import asyncio
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from durable_client import AsyncContext, Context, Durable, Retry, WorkflowFailed, current_step

from client import programs
from client.journal import Journal
from client.workers import OnceMore, Processes, replayed, working

pytestmark = pytest.mark.pg(15, 18)


@pytest.mark.parametrize("program", [programs.fan_out, programs.plain_fan_out], ids=["gather", "submit"])
def test_19_parallel_steps_replay_to_the_same_results_whatever_order_they_end_in(
    processes: Processes, journal: Journal, program: Any
) -> None:
    width = 8
    for n in range(width):
        journal.hold(f"late-{n}")
    handle = programs.app.enqueue(program, width)
    worker = processes.start()
    for n in range(width):
        journal.wait("late", n)
    ended = [6, 1, 4]
    for n in ended:
        journal.release(f"late-{n}")
    give_up = time.monotonic() + 30
    while len(handle.steps()) < len(ended):
        assert time.monotonic() < give_up
    worker.kill()
    for n in (7, 0, 5, 2, 3):
        journal.release(f"late-{n}")
    processes.start()
    assert handle.result(timeout=60) == [n * 10 for n in range(width)]
    assert [journal.count("late", n) for n in range(width)] == [1 if n in ended else 2 for n in range(width)]


def test_19_steps_with_names_of_their_own_in_threads_of_the_workflow(app: Durable) -> None:
    ran: list[int] = []

    @app.step
    def compute(n: int) -> int:
        time.sleep(0.01 * (n % 3))
        ran.append(n)
        return n * 10

    @app.workflow
    def run(ctx: Context) -> list[int]:
        with ThreadPoolExecutor(6) as pool:
            found = list(pool.map(lambda n: ctx.step(compute.options(name=f"compute-{n}"), n), range(6)))
        if ctx.attempt == 1:
            raise OnceMore
        return found

    with working(app):
        assert replayed(app.enqueue(run)) == [n * 10 for n in range(6)]
    assert sorted(ran) == list(range(6))


def test_20_each_turn_of_a_loop_is_a_checkpoint_of_its_own(app: Durable) -> None:
    ran: list[int] = []

    @app.step
    async def compute(n: int) -> int:
        ran.append(n)
        return n * 10

    @app.workflow
    async def run(ctx: AsyncContext) -> list[int]:
        found = [await ctx.step(compute, n) for n in range(4)]
        if ctx.attempt == 1:
            raise OnceMore
        return [*found, await ctx.step(compute, 4)]

    with working(app):
        handle = app.enqueue(run)
        assert replayed(handle) == [0, 10, 20, 30, 40]
    assert ran == [0, 1, 2, 3, 4]
    assert [step.name for step in handle.steps()] == ["compute", *(f"compute#{n}" for n in range(2, 6))]


@pytest.mark.parametrize(
    "output",
    [
        pytest.param({"bb": 1, "a": 2, "é": 3, "zz": [{"y": 1, "x": {"long": 1, "s": 2}}]}, id="the order of keys"),
        pytest.param([1e16, 1e20, 1.5e300, 1.0, -0.5, 2e-9, 123456789012345678], id="numbers"),
        pytest.param(1e16, id="one large float"),
        pytest.param((1, (2, 3)), id="tuples"),
        pytest.param({1: "a", False: "b", None: "c"}, id="keys that are not text"),
        pytest.param('\u2028 \U0001f600 \\ " \\u0000 \x7f', id="text"),
    ],
)
def test_a_step_without_annotation_gives_the_same_value_and_types_in_a_replay(app: Durable, output: Any) -> None:
    seen: list[str] = []

    @app.step
    async def make():  # type: ignore[no-untyped-def]
        return output

    @app.step
    def make_plain():  # type: ignore[no-untyped-def]
        return output

    async def make_in_transaction(conn):  # type: ignore[no-untyped-def]
        return output

    @app.workflow
    async def run(ctx: AsyncContext) -> None:
        made = [await ctx.step(make), await ctx.step(make_plain), await ctx.transaction(make_in_transaction)]
        # repr shows the order of keys, and whether a number is an int.
        seen.append(repr(made))
        if ctx.attempt == 1:
            raise OnceMore

    with working(app):
        replayed(app.enqueue(run))
    assert seen[0] == seen[1]


def test_a_loop_over_the_keys_of_a_step_output_replays_in_the_same_order(app: Durable) -> None:
    ran: list[str] = []

    @app.step
    async def stock():  # type: ignore[no-untyped-def]
        return {"pears": 2, "fig": 1, "apples": 3}

    @app.step
    async def order(fruit: str) -> str:
        ran.append(fruit)
        return fruit

    @app.workflow
    async def run(ctx: AsyncContext) -> dict[str, str]:
        ordered = {}
        for fruit in await ctx.step(stock):
            ordered[fruit] = await ctx.step(order, fruit)
            if ctx.attempt == 1:
                raise OnceMore
        return ordered

    with working(app):
        ordered = replayed(app.enqueue(run))
    assert ordered == {"pears": "pears", "fig": "fig", "apples": "apples"}
    assert sorted(ran) == ["apples", "fig", "pears"]


@pytest.mark.parametrize("plain", [False, True])
def test_a_step_called_by_a_step_is_refused_for_it_would_shift_the_names_of_others(app: Durable, plain: bool) -> None:
    @app.step
    async def double(n: int) -> int:
        return n * 2

    @app.workflow
    async def run(ctx: AsyncContext) -> list[int]:
        async def outer() -> int:
            return await ctx.step(double, 1)

        return [await ctx.step(app.step(outer)), await ctx.step(double, 5)]

    @app.step
    def double_plain(n: int) -> int:
        return n * 2

    @app.workflow
    def plain_run(ctx: Context) -> list[int]:
        def outer() -> int:
            return ctx.step(double_plain, 1)

        return [ctx.step(app.step(outer)), ctx.step(double_plain, 5)]

    with working(app), pytest.raises(WorkflowFailed, match="from inside of another step"):
        app.enqueue(plain_run if plain else run).result(timeout=30)


def test_the_idempotency_key_is_the_same_in_every_attempt_and_different_for_every_step(app: Durable) -> None:
    keys: list[str] = []

    @app.step(retry=Retry(max_attempts=2, initial="1ms"))
    async def charge() -> None:
        keys.append(current_step().idempotency_key)
        if len(keys) == 2:
            raise OnceMore

    @app.workflow
    async def run(ctx: AsyncContext) -> None:
        await ctx.step(charge)
        await ctx.step(charge)

    with working(app):
        handle = app.enqueue(run)
        handle.result(timeout=30)
    first, second = f"{handle.workflow_id}/charge", f"{handle.workflow_id}/charge#2"
    assert keys == [first, second, second]


def test_current_step_is_for_steps(app: Durable) -> None:
    with pytest.raises(RuntimeError, match="inside of a step"):
        current_step()


def test_a_workflow_of_5000_steps_replays_without_running_one_again(app: Durable) -> None:
    ran = 0

    @app.step
    async def compute(n: int) -> int:
        nonlocal ran
        ran += 1
        return n

    @app.workflow
    async def run(ctx: AsyncContext) -> int:
        total = 0
        for start in range(0, 5000, 500):
            total += sum(await asyncio.gather(*(ctx.step(compute, n) for n in range(start, start + 500))))
        if ctx.attempt == 1:
            raise OnceMore
        return total

    with working(app):
        assert replayed(app.enqueue(run)) == sum(range(5000))
    assert ran == 5000


@pytest.mark.pg(18)
def test_a_payload_of_100_mb_goes_through_input_step_and_output(app: Durable) -> None:
    size = 100_000_000

    @app.step
    async def enlarge(text: str) -> str:
        return text + "!"

    @app.workflow
    async def run(ctx: AsyncContext, text: str) -> str:
        enlarged = await ctx.step(enlarge, text)
        if ctx.attempt == 1:
            raise OnceMore
        return enlarged

    with working(app):
        assert replayed(app.enqueue(run, "x" * size)) == "x" * size + "!"


def test_a_worker_with_one_slot_runs_everything(app: Durable) -> None:
    lock = threading.Lock()

    @app.step
    def compute(n: int) -> int:
        with lock:
            return n

    @app.workflow
    def plain_run(ctx: Context) -> int:
        return sum(future.result() for future in [ctx.submit(compute, n) for n in range(20)])

    @app.workflow
    async def run(ctx: AsyncContext) -> int:
        return sum(await asyncio.gather(*(ctx.step(compute, n) for n in range(20))))

    with working(app, concurrency=1, drain=0.1):
        handles = [app.enqueue(workflow) for _ in range(5) for workflow in (run, plain_run)]
        assert [handle.result(timeout=30) for handle in handles] == [190] * 10
