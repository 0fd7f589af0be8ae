"""Steering workflows from Python: pause, fork, published state, runs that continue as new ones."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import psycopg
import pytest
from durable_client import (
    AsyncContext,
    Context,
    Durable,
    Handle,
    InvalidArgument,
    PayloadTooLarge,
    WorkflowNotFound,
)
from durable_client._context import context, context_async, engine

from client.workers import working
from clusters import Database

pytestmark = pytest.mark.pg(15)


def wait_until(true: Callable[[], Any]) -> None:
    give_up = time.monotonic() + 30
    while not true():
        assert time.monotonic() < give_up
        time.sleep(0.01)


def row(db: Database, handle: Handle[Any], column: str) -> Any:
    with psycopg.connect(db.dsn) as conn:
        query = f"select {column} from durable.workflows where workflow_id = %s"
        found = conn.execute(query.encode(), [handle.workflow_id]).fetchone()
        assert found is not None
        return found[0]


@pytest.mark.parametrize("plain", [False, True], ids=["async", "plain"])
def test_a_paused_workflow_stops_and_goes_on_after_the_last_step_when_it_is_resumed(app: Durable, plain: bool) -> None:
    ran: list[str] = []
    entered, released = threading.Event(), threading.Event()

    @app.step
    def first() -> int:
        ran.append("first")
        return 1

    @app.step
    def second() -> int:
        ran.append("second")
        entered.set()
        released.wait(30)
        return 2

    @app.workflow
    async def run(ctx: AsyncContext) -> int:
        return await ctx.step(first) + await ctx.step(second)

    @app.workflow
    def run_plain(ctx: Context) -> int:
        return ctx.step(first) + ctx.step(second)

    with working(app) as worker:
        handle = app.enqueue(run_plain if plain else run)
        assert entered.wait(30)
        assert handle.pause("look first")
        assert not handle.pause()
        if plain:
            released.set()
        # Its code has stopped: the worker holds nothing.
        wait_until(lambda: not worker._runs)
        released.set()
        assert handle.status() == "pending"
        assert handle.resume()
        assert not handle.resume()
        assert handle.result(timeout=30) == 3
    assert ran == ["first", "second", "second"]


def test_a_heartbeat_that_tells_of_an_older_lease_leaves_the_run_of_the_next_one_alone(db: Database) -> None:
    """Paused and resumed, a workflow may be claimed again by the same worker before its heartbeat is answered."""
    app = Durable(db.dsn)
    begun: list[int] = []
    goes_on = threading.Event()

    @app.workflow
    def linger(ctx: Context) -> int:
        begun.append(1)
        assert goes_on.wait(30)
        return 1

    with working(app) as worker:
        handle = app.enqueue(linger)
        wait_until(lambda: begun)
        run = worker._runs[handle.workflow_id]
        worker._from_session(worker._lose, run.workflow_id, run.lease - 1000, "WF002")
        time.sleep(0.1)
        assert run.interruption is None
        goes_on.set()
        assert handle.result(timeout=30) == 1


def test_a_message_that_does_not_fit_pauses_the_workflow_until_its_code_does(db: Database) -> None:
    @dataclass
    class Order:
        number: str

    def program(kind: Any) -> tuple[Durable, Any]:
        app = Durable(db.dsn)

        @app.workflow
        def take(ctx: Context) -> str:
            return str(ctx.receive("order", type=kind))

        return app, take

    app, take = program(Order)
    with working(app):
        handle = app.enqueue(take)
        handle.send("order", {"id": 7})
        wait_until(lambda: row(db, handle, "paused_at"))
    reason = row(db, handle, "pause_reason")
    assert "step 'receive:order': what has come does not fit" in reason
    assert 'stored:   {"id": 7}\nexpected: Order(number: str)' in reason
    mended, take = program(None)
    with working(mended):
        assert handle.resume()
        assert handle.result(timeout=30) == "{'id': 7}"


def test_a_fork_with_an_output_that_is_not_the_end_of_a_wait_pauses(db: Database) -> None:
    app = Durable(db.dsn)

    @app.workflow
    def take(ctx: Context) -> Any:
        return ctx.receive("order")

    with working(app):
        handle = app.enqueue(take)
        handle.send("order", 1)
        assert handle.result(timeout=30) == 1
        fork = handle.fork(outputs={"receive:order": {"index": 0, "value": 2}})
        assert fork.result(timeout=30) == 2
        fork = handle.fork(outputs={"receive:order": 3})
        wait_until(lambda: row(db, fork, "paused_at"))
    assert 'expected: {"index": 0, "value": …}' in row(db, fork, "pause_reason")


def test_an_output_of_a_child_that_does_not_fit_pauses_the_parent(db: Database) -> None:
    app, other = Durable(db.dsn), Durable(db.dsn)

    @dataclass
    class Count:
        number: int

    def count(_: Context) -> Any:
        return Count(1)

    count.__annotations__["return"] = Count
    counting: Any = app.workflow(count)

    @app.workflow
    def ask(ctx: Context) -> Any:
        return ctx.run(counting, queue="other")

    @other.workflow(name="count")
    def count_in_words(_: Context) -> str:
        return "one"

    with working(app), working(other, queues=["other"]):
        handle = app.enqueue(ask)
        wait_until(lambda: row(db, handle, "paused_at"))
    reason = row(db, handle, "pause_reason")
    assert "step 'run:count/result': the output of workflow" in reason
    assert 'stored:   "one"\nexpected: Count(number: int)' in reason


@pytest.mark.parametrize("plain", [False, True], ids=["async", "plain"])
def test_a_stored_result_that_does_not_fit_pauses_the_workflow_with_the_difference(db: Database, plain: bool) -> None:
    """The code changes while a workflow is under way; once with a fix, and once with a fork, it goes on."""

    @dataclass
    class Receipt:
        number: str
        cents: int

    def program(returns: Any, fails: bool) -> tuple[Durable, Any]:
        app = Durable(db.dsn)

        def charge() -> Any:
            return {"number": "R-1", "amount": 5}

        charge.__annotations__["return"] = returns

        def use(ctx: Context) -> str:
            try:
                receipt = ctx.step(charge)
            except Exception as error:  # noqa: BLE001 - a misfit is not for the workflow to handle
                return f"handled {error}"
            if fails:
                raise RuntimeError("once more")
            return str(receipt)

        async def use_async(ctx: AsyncContext) -> str:
            try:
                receipt = await ctx.step(charge)
            except Exception as error:  # noqa: BLE001 - as above
                return f"handled {error}"
            if fails:
                raise RuntimeError("once more")
            return str(receipt)

        return app, app.workflow(name="use")(use if plain else use_async)

    app, use = program(dict[str, Any], fails=True)
    with working(app):
        handle = app.enqueue(use, max_attempts=2)
        wait_until(lambda: row(db, handle, "failures"))
    # Between the attempts, another release is deployed.
    with psycopg.connect(db.dsn) as conn:
        conn.execute("update durable.live_workflows set wake_at = now()")
    changed, use = program(Receipt, fails=False)
    with working(changed) as worker:
        wait_until(lambda: row(db, handle, "paused_at"))
        reason = row(db, handle, "pause_reason")
        wait_until(lambda: not worker._runs)
    assert "step 'charge': the stored output does not fit" in reason
    assert 'stored:   {"amount": 5, "number": "R-1"}' in reason
    assert "expected: Receipt(number: str, cents: int)" in reason
    assert (handle.status(), row(db, handle, "failures")) == ("pending", 1)

    with working(changed):
        fork = app.handle(handle.workflow_id, use).fork("charge", outputs={"charge": Receipt("R-2", 7)})
        assert fork.result(timeout=30) == str(Receipt("R-2", 7))
    mended, use = program(dict[str, Any], fails=False)
    with working(mended):
        assert handle.resume()
        assert handle.result(timeout=30) == str({"amount": 5, "number": "R-1"})
    for each in (app, changed, mended):
        each.close()


def test_a_fork_runs_from_the_step_with_another_output_and_input(app: Durable) -> None:
    ran: list[str] = []

    @app.step
    def one(n: int) -> int:
        ran.append("one")
        return n

    @app.step
    def two(n: int) -> int:
        ran.append("two")
        return n * 10

    @app.workflow
    def run(ctx: Context, n: int) -> list[int]:
        return [ctx.step(one, n), ctx.step(two, n)]

    with working(app):
        handle = app.enqueue(run, 1)
        assert handle.result(timeout=30) == [1, 10]
        assert handle.fork("two", input=2).result(timeout=30) == [1, 20]
        assert handle.fork("two", outputs={"one": 7}).result(timeout=30) == [7, 10]
        assert handle.fork(input=3).result(timeout=30) == [3, 30]
    assert ran == ["one", "two", "two", "two", "one", "two"]
    with pytest.raises(InvalidArgument, match="no step 'seven'"):
        handle.fork("seven")
    nobody = app.handle("01900000-0000-7000-8000-000000000000")
    for ask in (nobody.fork, nobody.pause, nobody.resume, nobody.state):
        with pytest.raises(WorkflowNotFound):
            ask()


@pytest.mark.parametrize("plain", [False, True], ids=["async", "plain"])
def test_what_a_workflow_sets_is_read_while_it_runs_and_after_its_end(app: Durable, plain: bool) -> None:
    go_on = threading.Event()

    @app.step
    def work(ctx: Context) -> None:
        ctx.set("progress", 2)
        go_on.wait(30)

    @app.step
    async def work_async(ctx: AsyncContext) -> None:
        await ctx.set("progress", 2)
        await asyncio.to_thread(go_on.wait, 30)

    @app.workflow
    async def run(ctx: AsyncContext) -> None:
        await ctx.set("progress", 1)
        await ctx.step(work_async, ctx)
        await ctx.set("result", {"rows": [1, 2]})

    @app.workflow
    def run_plain(ctx: Context) -> None:
        ctx.set("progress", 1)
        ctx.step(work, ctx)
        ctx.set("result", {"rows": [1, 2]})

    @app.workflow
    async def refused(ctx: AsyncContext) -> list[str]:
        said = []
        for key, value in (("k", float("nan")), ("", 1)):
            try:
                await ctx.set(key, value)
            except InvalidArgument:
                said.append(key)
        return said

    with working(app):
        handle = app.enqueue(run_plain if plain else run)
        wait_until(lambda: handle.state() == {"progress": 2})
        go_on.set()
        handle.result(timeout=30)
        assert handle.state() == {"progress": 2, "result": {"rows": [1, 2]}}
        assert app.enqueue(refused).result(timeout=30) == ["k", ""]


@pytest.mark.parametrize("plain", [False, True], ids=["async", "plain"])
def test_a_run_continues_as_a_new_one_and_the_handle_follows(app: Durable, db: Database, plain: bool) -> None:
    ran: list[int] = []

    @app.step
    def note(n: int) -> int:
        ran.append(n)
        return n

    @app.workflow
    async def run(ctx: AsyncContext, n: int) -> str:
        await ctx.step(note, n)
        if n < 3:
            await ctx.continue_as_new(n + 1)
        return f"ended at {n}"

    @app.workflow
    def run_plain(ctx: Context, n: int) -> str:
        try:
            ctx.step(note, n)
            if n < 3:
                ctx.continue_as_new(n + 1)
        except Exception:  # noqa: BLE001 - to go on is no error
            return "caught"
        return f"ended at {n}"

    with working(app) as worker:
        handle = app.enqueue(run_plain if plain else run, 1, key="k")
        assert handle.result(timeout=30) == "ended at 3"
        wait_until(lambda: not worker._runs)
    assert ran == [1, 2, 3]
    assert [step.name for step in handle.steps()] == ["note"]
    following = app.handle(str(row(db, handle, "continued_as")))
    assert str(row(db, following, "continued_from")) == handle.workflow_id
    assert app.enqueue(run_plain if plain else run, 1, key="k").workflow_id != handle.workflow_id
    with psycopg.connect(db.dsn) as conn:
        assert conn.execute("select count(*) from durable.workflows").fetchone() == (3,)


def test_a_continuation_that_cannot_be_is_an_error_of_the_workflow(app: Durable, db: Database) -> None:
    @app.step
    async def within(ctx: AsyncContext) -> str:
        try:
            await ctx.continue_as_new()
        except InvalidArgument as error:
            return error.message
        return "accepted"

    @app.workflow
    async def run(ctx: AsyncContext, n: int) -> list[str]:
        said = [await ctx.step(within, ctx)]
        try:
            await ctx.continue_as_new("x" * 3000)
        except PayloadTooLarge as error:
            return [*said, error.message]
        return said

    with working(app):
        with psycopg.connect(db.dsn) as conn:
            conn.execute("select durable.configure('max_payload_bytes', '1000')")
        said = app.enqueue(run, 1).result(timeout=30)
    assert "from inside of a step" in said[0]
    assert "too large" in said[1]


@pytest.mark.parametrize("plain", [False, True], ids=["async", "plain"])
def test_a_run_of_many_steps_is_warned_of_in_the_log_and_on_its_row(
    app: Durable, db: Database, plain: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for module in (context, context_async, engine):
        monkeypatch.setattr(module, "LONG_RUN", 3)

    go_on = threading.Event()

    @app.step
    def nothing(n: int) -> None:
        if n == 3:
            go_on.wait(30)

    @app.workflow
    async def run(ctx: AsyncContext, steps: int) -> None:
        for n in range(steps):
            await ctx.step(nothing, n)

    @app.workflow(name="run plain")
    def run_plain(ctx: Context, steps: int) -> None:
        for n in range(steps):
            ctx.step(nothing, n)

    text = "it has more than 3 steps, and each replay reads all of them; see continue_as_new"
    with caplog.at_level(logging.WARNING, logger="durable"), working(app):
        short, long = (app.enqueue(run_plain if plain else run, steps) for steps in (3, 6))
        wait_until(lambda: row(db, long, "warning"))
        go_on.set()
        for handle in (short, long):
            handle.result(timeout=30)
    assert [row(db, handle, "warning") for handle in (short, long)] == [None, text]
    said = [record.getMessage() for record in caplog.records if "more than" in record.getMessage()]
    assert said == [f"workflow {long.workflow_id} ({'run plain' if plain else 'run'}): {text}"]
