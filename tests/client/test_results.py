"""How steps and workflows end: outputs, errors, retries, timeouts, cancellation."""

from __future__ import annotations

import asyncio
import sys
import threading
import time
from typing import Any

import pytest
from durable_client import (
    AsyncContext,
    Context,
    Durable,
    DurableError,
    InvalidArgument,
    PayloadTooLarge,
    Retry,
    StepFailed,
    StepTimedOut,
    WorkflowCancelled,
    WorkflowFailed,
    WorkflowTimedOut,
    current_step,
)

from client.journal import Journal
from client.workers import replayed, working
from clusters import Database
from engine import call, rows, value

pytestmark = pytest.mark.pg(15, 18)


class Declined(Exception):
    """An error of an application."""


def test_07_an_uncaught_exception_fails_the_workflow_with_type_message_and_traceback(app: Durable) -> None:
    @app.workflow
    async def fail(ctx: AsyncContext, message: str) -> None:
        raise Declined(message)

    @app.workflow
    def plain_fail(ctx: Context, message: str) -> None:
        raise Declined(message)

    with working(app):
        for handle in (app.enqueue(fail, "no cover"), app.enqueue(plain_fail, "no cover")):
            with pytest.raises(WorkflowFailed, match="no cover") as info:
                handle.result(timeout=30)
            assert handle.status() == "failed"
            assert handle.workflow_id in str(info.value)
            assert info.value.type.endswith("Declined")
            assert info.value.error["message"] == "no cover"
            assert info.value.traceback is not None
            assert "raise Declined(message)" in info.value.traceback


def test_07_a_failed_step_names_itself_and_keeps_its_error(app: Durable) -> None:
    seen: list[StepFailed] = []

    @app.step
    async def pay(cents: int) -> None:
        raise Declined(f"{cents} is too much")

    @app.workflow
    async def shop(ctx: AsyncContext) -> None:
        try:
            await ctx.step(pay, 5)
        except StepFailed as failed:
            seen.append(failed)
            raise

    with working(app), pytest.raises(WorkflowFailed, match="5 is too much") as info:
        app.enqueue(shop).result(timeout=30)
    assert isinstance(seen[0].__cause__, Declined)
    assert (seen[0].step, seen[0].type.rpartition(".")[2]) == ("pay", "Declined")
    assert info.value.error["step"] == "pay"
    assert info.value.type.endswith("Declined")


def test_a_failed_step_fails_alike_in_a_replay(app: Durable, db: Database) -> None:
    call(db.connect(), "configure", "retry_initial", "1 millisecond")
    ran: list[int] = []
    caught: list[tuple[str, str, str]] = []

    @app.step
    async def pay() -> None:
        ran.append(1)
        raise Declined("no")

    @app.workflow(max_attempts=2)
    async def shop(ctx: AsyncContext) -> str:
        try:
            await ctx.step(pay)
        except StepFailed as failed:
            caught.append((failed.step, failed.type, str(failed)))
        if ctx.attempt == 1:
            raise RuntimeError("once more")
        return "went on"

    with working(app):
        assert app.enqueue(shop).result(timeout=30) == "went on"
    assert len(ran) == 1
    assert len(caught) == 2
    assert caught[0] == caught[1]


UNSTORABLE = {
    "NaN": float("nan"),
    "infinity": [1, float("-inf")],
    "NUL": "a\x00b",
    "NUL in a key": {"a\x00b": 1},
    "lone surrogate": "\ud800",
    "an object": object(),
    "too large": "x" * 200_000,
}


def test_08_an_output_that_cannot_be_stored_fails_its_workflow_and_no_other(app: Durable, db: Database) -> None:
    call(db.connect(), "configure", "max_payload_bytes", "100000")
    gate = threading.Event()
    outputs = {**UNSTORABLE, "fine": "fine"}

    @app.workflow
    async def give(ctx: AsyncContext, name: str) -> Any:
        while not gate.is_set():
            await asyncio.sleep(0.001)
        return outputs[name]

    @app.step
    async def make(name: str) -> Any:
        while not gate.is_set():
            await asyncio.sleep(0.001)
        return outputs[name]

    @app.workflow
    async def through_step(ctx: AsyncContext, name: str) -> str:
        await ctx.step(make, name)
        return name

    with working(app):
        handles = [
            (name, app.enqueue(workflow, name))
            for name in outputs for workflow in (give, through_step) for _ in range(3)
        ]  # fmt: skip
        gate.set()
        for name, handle in handles:
            if name == "fine":
                handle.result(timeout=30)
                continue
            with pytest.raises(WorkflowFailed) as info:
                handle.result(timeout=30)
            expected = "PayloadTooLarge" if name == "too large" else "InvalidArgument"
            assert info.value.type.endswith(expected), (name, info.value)
            assert handle.workflow_id in info.value.error["message"] or "make" in info.value.error["message"]


def test_08_what_only_the_database_refuses_fails_its_workflow_and_no_other(app: Durable) -> None:
    """A number of JSON may have as many digits as it likes; Postgres takes 131,072 before the point."""
    gate = threading.Event()

    @app.step
    async def make(bad: bool) -> Any:
        while not gate.is_set():
            await asyncio.sleep(0.001)
        return int("9" * 140_000) if bad else 1

    @app.workflow
    async def compute(ctx: AsyncContext, bad: bool) -> int:
        await ctx.step(make, bad)
        return 1

    # Python's own limit is lower.
    limit = sys.get_int_max_str_digits()
    sys.set_int_max_str_digits(0)
    try:
        with working(app):
            good = [app.enqueue(compute, False) for _ in range(5)]
            bad = app.enqueue(compute, True)
            good += [app.enqueue(compute, False) for _ in range(5)]
            gate.set()
            assert [handle.result(timeout=30) for handle in good] == [1] * 10
            with pytest.raises(WorkflowFailed, match="cannot be stored"):
                bad.result(timeout=30)
    finally:
        sys.set_int_max_str_digits(limit)


def test_an_error_over_the_payload_limit_still_fails_the_workflow(app: Durable, db: Database) -> None:
    call(db.connect(), "configure", "max_payload_bytes", "500")

    @app.workflow
    async def fail(ctx: AsyncContext) -> None:
        raise Declined("why " * 500)

    @app.step
    async def pay() -> None:
        raise Declined("why " * 500)

    @app.workflow
    async def fail_in_step(ctx: AsyncContext) -> None:
        await ctx.step(pay)

    with working(app, drain=0.1):
        for handle in (app.enqueue(fail), app.enqueue(fail_in_step)):
            with pytest.raises(WorkflowFailed, match="why"):
                handle.result(timeout=5)


def test_an_input_over_the_limit_or_not_json_enqueues_nothing(app: Durable, db: Database) -> None:
    call(db.connect(), "configure", "max_payload_bytes", "1000")
    with pytest.raises(PayloadTooLarge):
        app.enqueue("w", "x" * 2000)
    for bad in (float("nan"), "\x00", "\ud800", {1, object()}, {("a", "b"): 1}):
        with pytest.raises(InvalidArgument, match="the input of workflow 'w' cannot be stored as JSON"):
            app.enqueue_many("w", ["good", bad])
    assert value(db.connect(), "select count(*) from durable.workflows") == 0


def test_malformed_text_is_an_invalid_argument(app: Durable) -> None:
    known = app.enqueue("w")
    for bad in ("\x00", "\ud800"):
        with pytest.raises(InvalidArgument):
            app.enqueue("w", key=bad)
        with pytest.raises(InvalidArgument):
            app.enqueue("w", queue=bad)
        with pytest.raises(InvalidArgument):
            app.enqueue(f"w{bad}")
        with pytest.raises(InvalidArgument):
            app.enqueue("w", tags={"tenant": bad})
        with pytest.raises(InvalidArgument):
            known.cancel(f"because{bad}")
    with pytest.raises((InvalidArgument, DurableError)):
        app.handle("not a uuid").status()


def test_a_step_name_that_cannot_be_stored_is_refused_and_harms_no_neighbour(app: Durable) -> None:
    @app.step
    async def fetch() -> int:
        return 1

    @app.workflow
    async def bad(ctx: AsyncContext) -> int:
        return await ctx.step(fetch.options(name="fetch \ud800"))

    @app.workflow
    async def good(ctx: AsyncContext) -> int:
        return await ctx.step(fetch)

    with working(app, drain=0.1):
        handles = [app.enqueue(good), app.enqueue(bad), app.enqueue(good)]
        assert [handles[0].result(timeout=5), handles[2].result(timeout=5)] == [1, 1]
        with pytest.raises(WorkflowFailed):
            handles[1].result(timeout=5)


def test_09_a_step_is_tried_as_often_as_its_policy_says(app: Durable) -> None:
    attempts: list[int] = []

    @app.step(retry=Retry(max_attempts=3, initial="1ms"))
    async def flaky() -> None:
        attempts.append(current_step().attempt)
        raise Declined(f"attempt {current_step().attempt}")

    @app.workflow
    async def insist(ctx: AsyncContext) -> None:
        await ctx.step(flaky)

    @app.workflow
    def plain_insist(ctx: Context) -> None:
        ctx.step(flaky)

    with working(app):
        for workflow in (insist, plain_insist):
            attempts.clear()
            handle = app.enqueue(workflow)
            with pytest.raises(WorkflowFailed, match="attempt 3"):
                handle.result(timeout=30)
            assert attempts == [1, 2, 3]
            (step,) = handle.steps()
            assert (step.name, step.status, step.attempt) == ("flaky", "error", 3)


def test_09_there_is_no_wait_after_the_last_attempt(app: Durable) -> None:
    @app.step(retry=Retry(max_attempts=2, initial="1ms", backoff=1000, max_delay="1h"))
    async def flaky() -> None:
        raise Declined("no")

    @app.workflow
    async def insist(ctx: AsyncContext) -> None:
        await ctx.step(flaky)

    with working(app), pytest.raises(WorkflowFailed):
        # The wait before a third attempt would be at least half a second, and that before a fourth minutes.
        app.enqueue(insist).result(timeout=30)


def test_09_an_error_that_is_not_retryable_fails_the_step_at_once(app: Durable) -> None:
    attempts: list[int] = []

    @app.step(retry=Retry(max_attempts=5, initial="1ms", non_retryable=(KeyError, Declined)))
    def flaky() -> None:
        attempts.append(current_step().attempt)
        raise ValueError if current_step().attempt == 1 else Declined("never")

    @app.workflow
    async def insist(ctx: AsyncContext) -> None:
        await ctx.step(flaky)

    with working(app), pytest.raises(WorkflowFailed, match="never"):
        app.enqueue(insist).result(timeout=30)
    assert attempts == [1, 2]


def test_09_the_attempts_of_a_step_go_on_after_a_replay(app: Durable) -> None:
    attempts: list[int] = []

    @app.step(retry=Retry(max_attempts=3, initial="1ms"))
    async def flaky() -> str:
        attempts.append(current_step().attempt)
        if len(attempts) == 2:
            # Ends the workflow as a crash would: the outcome of the attempt is not stored.
            raise Evil("OnceMore")
        if current_step().attempt == 3:
            return "at last"
        raise Declined("no")

    @app.workflow
    async def insist(ctx: AsyncContext) -> str:
        return await ctx.step(flaky)

    with working(app):
        handle = app.enqueue(insist)
        assert replayed(handle) == "at last"
    assert attempts[:2] == [1, 2]
    assert attempts[-1] == 3


def test_a_step_that_runs_too_long_times_out(app: Durable) -> None:
    released = threading.Event()
    cancelled: list[bool] = []

    @app.step(timeout="50ms")
    async def sleep() -> None:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            cancelled.append(True)
            raise

    @app.step(timeout="50ms")
    def plain_sleep() -> None:
        released.wait(60)

    @app.workflow
    async def wait(ctx: AsyncContext, plain: bool) -> str:
        try:
            await ctx.step(plain_sleep if plain else sleep)
        except StepTimedOut as late:
            return f"{late.step} is late"
        return "in time"

    @app.workflow
    def plain_wait(ctx: Context, plain: bool) -> str:
        try:
            ctx.step(plain_sleep if plain else sleep)
        except StepTimedOut as late:
            return f"{late.step} is late"
        return "in time"

    with working(app):
        handles = [app.enqueue(workflow, plain) for workflow in (wait, plain_wait) for plain in (False, True)]
        expected = ["sleep is late", "plain_sleep is late"] * 2
        assert [handle.result(timeout=30) for handle in handles] == expected
        assert cancelled == [True, True]
        released.set()


def test_a_timeout_is_a_failed_attempt_and_a_timeouterror_of_the_body_is_not_a_timeout(app: Durable) -> None:
    @app.step(timeout="100ms", retry=Retry(max_attempts=2, initial="1ms"))
    async def slow_once() -> int:
        if current_step().attempt == 1:
            await asyncio.sleep(60)
        return current_step().attempt

    @app.step(timeout="30s")
    async def own_timeout() -> None:
        raise TimeoutError("of its own")

    @app.workflow
    async def run(ctx: AsyncContext) -> list[Any]:
        attempt = await ctx.step(slow_once)
        try:
            await ctx.step(own_timeout)
        except StepTimedOut:
            return [attempt, "timed out"]
        except StepFailed as failed:
            return [attempt, failed.type]
        return []

    with working(app):
        assert app.enqueue(run).result(timeout=30) == [2, "TimeoutError"]


def test_steps_in_parallel_with_a_timeout_do_not_starve_each_other(app: Durable) -> None:
    @app.step(timeout="10s")
    def quick(n: int) -> int:
        return n

    @app.workflow
    def many(ctx: Context) -> int:
        return sum(future.result() for future in [ctx.submit(quick, n) for n in range(8)])

    with working(app, concurrency=1, drain=0.1):
        assert app.enqueue(many).result(timeout=8) == 28


def test_the_timeout_of_a_workflow_ends_it(app: Durable) -> None:
    stopped: list[bool] = []

    @app.workflow(timeout="100ms")
    async def endless(ctx: AsyncContext) -> None:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            stopped.append(True)
            raise

    with working(app):
        handle = app.enqueue(endless)
        with pytest.raises(WorkflowTimedOut, match="timeout"):
            handle.result(timeout=30)
        with pytest.raises(WorkflowFailed):
            app.enqueue(endless, timeout="1ms").result(timeout=30)
    assert handle.status() == "failed"
    assert stopped == [True, True]


@pytest.mark.parametrize("plain", [False, True])
def test_cancel_reaches_a_running_async_step(app: Durable, plain: bool) -> None:
    begun, stopped = threading.Event(), threading.Event()

    @app.step
    async def sleep() -> None:
        begun.set()
        try:
            await asyncio.sleep(60)
        finally:
            stopped.set()

    @app.workflow
    async def wait(ctx: AsyncContext) -> None:
        await ctx.step(sleep)

    @app.workflow
    def plain_wait(ctx: Context) -> None:
        ctx.step(sleep)

    with working(app):
        handle = app.enqueue(plain_wait if plain else wait)
        assert begun.wait(30)
        assert handle.cancel("not needed")
        assert stopped.wait(30)
        with pytest.raises(WorkflowCancelled, match="not needed"):
            handle.result(timeout=30)
        assert not handle.cancel()
    assert handle.steps() == []


@pytest.mark.parametrize("plain", [False, True])
def test_cancel_reaches_a_step_that_waits_for_its_next_attempt(app: Durable, plain: bool) -> None:
    @app.step(retry=Retry(max_attempts=2, initial="1h", max_delay="1h"))
    def fail() -> None:
        raise ValueError("not now")

    @app.workflow
    async def wait(ctx: AsyncContext) -> None:
        await ctx.step(fail)

    @app.workflow
    def plain_wait(ctx: Context) -> None:
        ctx.step(fail)

    # The next one gets the only slot.
    with working(app, concurrency=1):
        for _ in range(2):
            handle = app.enqueue(plain_wait if plain else wait)
            while not handle.steps():
                time.sleep(0.01)
            assert handle.cancel()


def test_cancel_reaches_a_step_in_a_thread_that_asks(app: Durable) -> None:
    begun, stopped = threading.Event(), threading.Event()
    went_on: list[bool] = []

    @app.step
    def watch() -> None:
        begun.set()
        while not current_step().interrupted:
            time.sleep(0.005)
        stopped.set()

    @app.workflow
    def plain_wait(ctx: Context) -> None:
        ctx.step(watch)
        went_on.append(True)

    @app.workflow
    async def wait(ctx: AsyncContext) -> None:
        await ctx.step(watch)
        went_on.append(True)

    with working(app):
        for workflow in (plain_wait, wait):
            begun.clear(), stopped.clear()
            handle = app.enqueue(workflow)
            assert begun.wait(30)
            assert handle.cancel()
            assert stopped.wait(30)
            assert handle.status() == "cancelled"
    assert went_on == []


def test_a_cancelled_workflow_that_swallows_every_exception_stops_at_the_next_step(app: Durable) -> None:
    begun, done = threading.Event(), threading.Event()
    gate = threading.Event()
    second: list[bool] = []

    @app.step
    def first() -> None:
        begun.set()
        gate.wait(30)

    @app.step
    def next_one() -> None:
        second.append(True)

    @app.workflow
    def stubborn(ctx: Context) -> None:
        try:
            for step in (first, next_one, next_one):
                try:
                    ctx.step(step)
                except Exception:  # noqa: BLE001, S112 - that is what this workflow is about
                    continue
        finally:
            done.set()

    with working(app):
        handle = app.enqueue(stubborn)
        assert begun.wait(30)
        handle.cancel()
        gate.set()
        assert done.wait(30)
    assert second == []
    assert handle.status() == "cancelled"


class Evil(BaseException):
    """Not an Exception."""


class Unspeakable(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no words")

    __repr__ = __str__


@pytest.mark.parametrize("error", [SystemExit, KeyboardInterrupt, GeneratorExit, Evil, StopIteration, Unspeakable,
                                   asyncio.CancelledError, RecursionError])  # fmt: skip
@pytest.mark.parametrize("place", ["body", "step", "step with timeout", "gathered step", "transaction"])
@pytest.mark.pg(18)
def test_whatever_is_raised_fails_the_workflow_and_not_the_worker(
    app: Durable, error: type[BaseException], place: str
) -> None:
    @app.step
    async def raising(conn: Any = None) -> None:
        raise error

    @app.step(name="raising")
    def raising_plain(conn: Any = None) -> None:
        raise error

    @app.step
    async def fine() -> int:
        return 1

    @app.workflow
    async def run(ctx: AsyncContext, plain: bool) -> None:
        step = raising_plain if plain else raising
        if place == "body":
            raise error
        if place == "step":
            await ctx.step(step)
        elif place == "step with timeout":
            await ctx.step(step.options(timeout=30))
        elif place == "gathered step":
            await asyncio.gather(ctx.step(step), ctx.step(fine))
        else:
            await ctx.transaction(step)

    @app.workflow
    def plain_run(ctx: Context, plain: bool) -> None:
        step = raising_plain if plain else raising
        if place == "body":
            raise error
        if place == "step":
            ctx.step(step)
        elif place == "step with timeout":
            ctx.step(step.options(timeout=30))
        elif place == "gathered step":
            for future in [ctx.submit(step), ctx.submit(fine)]:
                future.result()
        else:
            ctx.transaction(step)

    @app.workflow
    async def healthy(ctx: AsyncContext) -> int:
        return await ctx.step(fine)

    with working(app, drain=0.1):
        handles = {
            f"{workflow.name}, {'plain' if plain else 'async'} step": app.enqueue(workflow, plain)
            for workflow in (run, plain_run) for plain in (False, True)
        }  # fmt: skip
        ends = {}
        give_up = time.monotonic() + 5
        while len(ends) < len(handles) and time.monotonic() < give_up:
            for name, handle in handles.items():
                if handle.status() not in ("pending", "running"):
                    ends[name] = handle.status()
            time.sleep(0.01)
        assert ends == dict.fromkeys(handles, "failed")
        assert app.enqueue(healthy).result(timeout=5) == 1


def test_generators_are_not_steps(app: Durable) -> None:
    @app.step
    def generate() -> Any:
        yield 1

    @app.step
    async def generate_async() -> Any:
        yield 1

    @app.workflow
    async def run(ctx: AsyncContext, plain: bool) -> Any:
        return await ctx.step(generate if plain else generate_async)

    with working(app):
        for plain in (False, True):
            with pytest.raises(WorkflowFailed):
                app.enqueue(run, plain).result(timeout=30)


def test_a_task_cancelled_by_the_workflow_itself_fails_nothing_else(app: Durable) -> None:
    @app.step
    async def sleep() -> None:
        await asyncio.sleep(60)

    @app.step
    async def quick() -> int:
        return 1

    @app.workflow
    async def race(ctx: AsyncContext) -> int:
        slow = ctx.submit(sleep)
        first = await ctx.step(quick)
        slow.cancel()
        with pytest.raises(asyncio.CancelledError):
            await slow
        outcomes = await asyncio.gather(ctx.step(quick), slow, return_exceptions=True)
        assert isinstance(outcomes[1], asyncio.CancelledError)
        return first + await ctx.step(quick)

    with working(app):
        assert app.enqueue(race).result(timeout=30) == 2


def test_a_workflow_is_tried_again_from_its_last_checkpoint(app: Durable, db: Database) -> None:
    call(db.connect(), "configure", "retry_initial", "1 millisecond")
    ran: list[int] = []

    @app.step
    def count(n: int) -> int:
        ran.append(n)
        return n

    @app.workflow(max_attempts=3)
    def run(ctx: Context) -> int:
        ctx.step(count, 1)
        if ctx.attempt < 3:
            raise Declined(f"attempt {ctx.attempt}")
        return ctx.step(count, 2) + ctx.attempt

    with working(app):
        assert app.enqueue(run).result(timeout=30) == 5
    assert ran == [1, 2]


def test_nothing_is_left_open_when_all_is_done(app: Durable, db: Database, journal: Journal) -> None:
    @app.step(at_most_once=True)
    async def once() -> int:
        return 1

    @app.step(retry=Retry(max_attempts=2, initial="1ms"))
    async def twice() -> int:
        if current_step().attempt == 1:
            raise Declined
        return 2

    @app.workflow
    async def run(ctx: AsyncContext) -> int:
        return await ctx.step(once) + await ctx.step(twice)

    with working(app):
        assert [app.enqueue(run).result(timeout=30) for _ in range(3)] == [3, 3, 3]
    conn = db.connect()
    assert rows(conn, "select * from durable.open_steps") == []
    assert rows(conn, "select * from durable.live_workflows") == []
    assert rows(conn, "select * from durable.workers where died_at is null") == []
