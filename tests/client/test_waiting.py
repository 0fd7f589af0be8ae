"""Workflows that wait: they hold nothing meanwhile, and neither a crash nor an order of events makes them miss a thing."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from typing import Any

import psycopg
import pytest
from durable_client import (
    AsyncContext,
    Context,
    Durable,
    Event,
    Handle,
    InvalidArgument,
    Message,
    Timer,
    WaitTimedOut,
    WorkflowEnded,
    WorkflowFailed,
    WorkflowInterrupted,
    WorkflowNotFound,
)

from client import programs
from client.journal import Journal
from client.proxy import Proxy
from client.workers import Processes, working
from clusters import Database
from engine import NOBODY, Connection, rows, steps, value, wait_until

pytestmark = pytest.mark.pg(15, 18)

EACH = pytest.mark.parametrize("plain", ["", "plain_"], ids=["async", "plain"])


def until(reached: Callable[[], Any], patience: float = 60.0) -> None:
    give_up = time.monotonic() + patience
    while not reached():
        assert time.monotonic() < give_up
        time.sleep(0.01)


def until_status(handle: Handle[Any], *status: str) -> None:
    until(lambda: handle.status() in status)


def stored(db: Database, handle: Handle[Any]) -> dict[str, Any]:
    return steps(db.connect(), handle.workflow_id)  # type: ignore[arg-type]


# What must hold, each across a crash


@EACH
def test_23_a_sleep_does_not_start_again_after_a_crash_and_holds_no_worker(
    db: Database, processes: Processes, journal: Journal, plain: str
) -> None:
    handle = programs.app.enqueue(plain + "sleeping", ["long", "3s"])
    worker = processes.start(concurrency=1)
    until_status(handle, "sleeping")
    due = stored(db, handle)["sleep"].wait_until
    # The only slot, and the only thread, are free for another one.
    programs.app.enqueue(plain + "chain", {"name": "meanwhile", "steps": 2}).result(timeout=30)
    assert value(db.connect(), "select lease is null and worker_id is null from durable.live_workflows")
    worker.kill()
    journal.hold("long-after")
    second = processes.start(concurrency=1)
    journal.wait("mark", "long", "after")
    # And once more, when it is over.
    second.kill()
    journal.release("long-after")
    processes.start()
    handle.result(timeout=60)
    slept = stored(db, handle)["sleep"]
    assert due <= slept.completed_at < due + timedelta(seconds=3)
    assert journal.count("mark", "long", "before") == 1
    assert journal.count("mark", "long", "after") == 2


@EACH
def test_24_messages_before_during_and_after_the_wait_are_received_once_in_order_across_crashes(
    db: Database, processes: Processes, journal: Journal, plain: str
) -> None:
    handle = programs.app.enqueue(plain + "receiving", ["r", 4])
    assert handle.send("mail", "before")
    journal.hold("r-before")
    worker = processes.start()
    journal.wait("mark", "r", "before")
    # The workflow received one and is in its next step.
    assert handle.send("mail", "after")
    worker.kill()
    journal.release("r-before")
    worker = processes.start()
    until_status(handle, "waiting")
    worker.kill()
    assert handle.send("mail", "during", key="k")
    assert not handle.send("mail", "during", key="k")
    journal.hold("r-before-after-during")
    worker = processes.start()
    journal.wait("mark", "r", "before", "after", "during")
    worker.kill()
    journal.release("r-before-after-during")
    assert not handle.send("mail", "during", key="k")
    processes.start()
    until_status(handle, "waiting")
    handle.send("mail", "last")
    assert handle.result(timeout=60) == ["before", "after", "during", "last"]
    received = rows(db.connect(), "select payload, received_by from durable.messages order by seq")
    assert [tuple(row) for row in received] == [
        ("before", "receive:mail"), ("after", "receive:mail#2"), ("during", "receive:mail#3"), ("last", "receive:mail#4"),
    ]  # fmt: skip


@EACH
def test_25_an_event_wakes_every_waiter_also_when_nobody_hears_the_bell_and_across_a_crash(
    db: Database, processes: Processes, journal: Journal, plain: str
) -> None:
    conn = db.connect()
    before = [programs.app.enqueue(plain + "hearing", f"before {n}") for n in range(20)]
    worker = processes.start(concurrency=2)
    until(lambda: value(conn, "select count(*) from durable.workflows where status = 'waiting'") == 20)
    worker.kill()
    worker = processes.start()
    until(lambda: value(conn, "select count(*) from durable.idle_workers") > 0)
    # Then nothing is rung for, and it takes a poll.
    conn.execute("delete from durable.idle_workers")
    assert programs.app.emit("news", "first")
    assert not programs.app.emit("news", "second")
    assert [handle.result(timeout=60) for handle in before] == [[f"before {n}", "first"] for n in range(20)]
    journal.hold("after-first")
    after = programs.app.enqueue(plain + "hearing", "after")
    journal.wait("mark", "after", "first")
    worker.kill()
    journal.release("after-first")
    processes.start()
    assert after.result(timeout=60) == ["after", "first"]


@EACH
def test_26_a_timeout_of_a_wait_counts_from_its_first_call_by_the_database_s_clock(
    db: Database, processes: Processes, journal: Journal, plain: str
) -> None:
    handle = programs.app.enqueue(plain + "patient", "3s")
    worker = processes.start()
    until_status(handle, "waiting")
    due = stored(db, handle)["receive:mail"].wait_until
    worker.kill()
    journal.hold("timed out")
    worker = processes.start()
    journal.wait("mark", "timed out")
    handle.send("mail", "too late")
    worker.kill()
    journal.release("timed out")
    processes.start()
    assert handle.result(timeout=60) == "timed out"
    waited = stored(db, handle)["receive:mail"]
    assert waited.output == {"timed_out": True}
    assert due <= waited.completed_at < due + timedelta(seconds=3)


# Answers that are lost


@EACH
@pytest.mark.parametrize(
    "statement", ["durable.claim(", "durable.wait_many(", "durable.recheck_waits(", "durable.flush("]
)
def test_06_after_a_lost_answer_nothing_is_received_twice_or_missed(
    db: Database, app: Durable, proxy: Proxy, statement: str, plain: str
) -> None:
    lossy = Durable(proxy.dsn(db.dsn))

    @lossy.workflow
    async def listen(ctx: AsyncContext) -> list[Any]:
        await ctx.sleep(1.0)
        return [await ctx.receive("mail") for _ in range(4)]

    @lossy.workflow
    def plain_listen(ctx: Context) -> list[Any]:
        ctx.sleep(1.0)
        return [ctx.receive("mail") for _ in range(4)]

    conn = db.connect()
    proxy.lose(*[statement] * 3)
    handle = app.enqueue(plain + "listen")
    with working(lossy):
        for n in range(4):
            handle.send("mail", n)
            until(lambda n=n: value(conn, "select count(*) from durable.messages where received_by is null") == 0)
        assert handle.result(timeout=30) == [0, 1, 2, 3]
    assert proxy.lost
    assert value(conn, "select attempt + crashes + failures from durable.workflows") == 1


# Waits beside other things


@EACH
def test_code_that_swallows_the_end_of_its_run_does_not_keep_its_slot(app: Durable, db: Database, plain: str) -> None:
    swallowed: list[str] = []

    @app.workflow
    async def stubborn(ctx: AsyncContext) -> list[Any]:
        got = []
        while len(got) < 2:
            try:
                got.append(await ctx.receive("mail"))
            except WorkflowInterrupted:
                swallowed.append("interrupted")
                raise RuntimeError("of its own") from None
            except asyncio.CancelledError:
                swallowed.append("cancelled")
        return got

    @app.workflow
    def plain_stubborn(ctx: Context) -> list[Any]:
        got = []
        while len(got) < 2 and len(swallowed) < 50:
            try:
                got.append(ctx.receive("mail"))
            except BaseException:  # noqa: BLE001 - it is what must not help
                swallowed.append("interrupted")
                if len(swallowed) % 3 == 0:
                    return ["not this"]
        return got

    handle = app.enqueue(plain + "stubborn")
    with working(app, concurrency=1):
        until_status(handle, "waiting")
        app.emit("another")
        handle.send("mail", 1)
        until(lambda: len(swallowed) > 1)
        until_status(handle, "waiting")
        handle.send("mail", 2)
        assert handle.result(timeout=30) == [1, 2]
    assert swallowed


@EACH
def test_a_workflow_does_not_park_while_a_step_of_it_is_under_way(app: Durable, db: Database, plain: str) -> None:
    go = threading.Event()
    ran: list[str] = []

    def work() -> str:
        ran.append("work")
        assert go.wait(30)
        return "worked"

    @app.workflow
    async def beside(ctx: AsyncContext) -> list[Any]:
        async def listen() -> Any:
            heard = await ctx.receive("mail")
            ran.append("heard")
            return [heard, await ctx.receive("mail")]

        return await asyncio.gather(ctx.step(work), listen())

    @app.workflow
    def plain_beside(ctx: Context) -> list[Any]:
        working = ctx.submit(work)
        heard = ctx.receive("mail")
        ran.append("heard")
        return [working.result(), [heard, ctx.receive("mail")]]

    handle = app.enqueue(plain + "beside")
    with working(app, concurrency=1):
        until(lambda: ran)
        # A message is received although the step goes on.
        handle.send("mail", 1)
        until(lambda: "heard" in ran)
        assert handle.status() == "running"
        go.set()
        if not plain:
            until_status(handle, "waiting")
        handle.send("mail", 2)
        assert handle.result(timeout=30) == ["worked", [1, 2]]
    assert ran.count("work") == 1


def test_waits_side_by_side_park_together_and_each_is_woken(app: Durable) -> None:
    @app.workflow
    async def both(ctx: AsyncContext) -> list[Any]:
        return list(
            await asyncio.gather(ctx.receive("a"), ctx.receive("a"), ctx.wait_event("e"), ctx.sleep(1.5), ctx.now())
        )

    handle = app.enqueue(both)
    with working(app, concurrency=1):
        until_status(handle, "waiting")
        handle.send("a", 1)
        until_status(handle, "waiting")
        app.emit("e", "emitted")
        handle.send("a", 2)
        assert handle.result(timeout=30)[:4] == [1, 2, "emitted", None]


def stop_between_statements(conn: Connection, pid: int) -> None:
    """Stops a backend that holds no lock for others to wait for."""
    for _ in range(1000):
        os.kill(pid, signal.SIGSTOP)
        # Stopped at the next moment in which it would run; what it shows is true only then.
        time.sleep(0.01)
        if value(conn, "select state from pg_stat_activity where pid = %s", pid) == "idle":
            return
        os.kill(pid, signal.SIGCONT)
        time.sleep(0.01)
    raise AssertionError("the backend was never idle")


def test_the_waits_of_a_run_that_was_replaced_do_not_displace_those_of_the_next(app: Durable, db: Database) -> None:
    count = 6
    runs = [0] * count
    began = [threading.Event() for _ in range(count)]
    left = [threading.Event() for _ in range(count)]
    others_wait = threading.Event()

    @app.step
    def linger(n: int) -> None:
        runs[n] += 1
        if runs[n] == 1:
            began[n].set()
            # Longer than the wait beside it is asked for again.
            time.sleep(2)
            left[n].set()

    @app.workflow
    def run(ctx: Context, n: int) -> str:
        lingering = ctx.submit(linger, n)
        message: str = ctx.receive("go")
        lingering.result()
        return message

    @app.workflow
    def other(ctx: Context) -> str:
        others_wait.wait(30)
        answer: str = ctx.receive("go")
        return answer

    conn = db.connect()
    with working(app):
        handles = [app.enqueue(other), *(app.enqueue(run, n) for n in range(count))]
        assert all(event.wait(30) for event in began)
        asks = "from pg_stat_activity where query like '%durable.wait_many%' and application_name like 'durable%'"
        wait_until(conn, f"select count(*) = 1 {asks}")
        pid = value(conn, f"select pid {asks}")
        # An answer that is long in coming, so that runs that were replaced and their successors ask with one call.
        stop_between_statements(conn, pid)
        try:
            others_wait.set()
            for handle in handles[1:]:
                handle.pause()
                handle.resume()
            time.sleep(1.5)
        finally:
            os.kill(pid, signal.SIGCONT)
        for handle in handles:
            handle.send("go", "gone")
        assert [handle.result(timeout=30) for handle in handles] == ["gone"] * (count + 1)
        assert all(event.wait(30) for event in left)


def test_a_wait_that_the_code_gives_up_is_left(app: Durable) -> None:
    @app.workflow
    async def impatient(ctx: AsyncContext) -> Any:
        first = asyncio.ensure_future(ctx.receive("never"))
        await ctx.now()
        first.cancel()
        return await ctx.receive("mail")

    handle = app.enqueue(impatient)
    with working(app):
        handle.send("mail", "come")
        assert handle.result(timeout=30) == "come"


@EACH
def test_any_tells_which_and_all_returns_each(app: Durable, plain: str) -> None:
    @app.workflow
    async def choose(ctx: AsyncContext) -> list[Any]:
        met = await ctx.wait_any(Event("never"), Message("mail"), Timer("1 hour"))
        return [met.index, met.condition == Message("mail"), met.value, await ctx.wait_all(Event("e"), Timer(at=now))]

    @app.workflow
    def plain_choose(ctx: Context) -> list[Any]:
        met = ctx.wait_any(Event("never"), Message("mail"), Timer("1 hour"))
        return [met.index, met.condition == Message("mail"), met.value, ctx.wait_all(Event("e"), Timer(at=now))]

    now = datetime.now(timezone.utc) + timedelta(seconds=1)
    handle = app.enqueue(plain + "choose")
    with working(app):
        until_status(handle, "waiting")
        handle.send("mail", "this")
        app.emit("e", 7)
        assert handle.result(timeout=30) == [1, True, "this", [7, None]]


@dataclass
class Order:
    number: int
    due: datetime


@EACH
def test_what_is_received_has_the_type_that_is_asked_for(app: Durable, plain: str) -> None:
    @app.workflow
    async def typed(ctx: AsyncContext) -> list[Any]:
        order = await ctx.receive("order", type=Order)
        return [order.number, order.due.year, await ctx.wait_event("e", type=list[int])]

    @app.workflow
    def plain_typed(ctx: Context) -> list[Any]:
        order = ctx.receive("order", type=Order)
        return [order.number, order.due.year, ctx.wait_event("e", type=list[int])]

    handle = app.enqueue(plain + "typed")
    app.emit("e", [1, 2])
    handle.send("order", Order(7, datetime(2026, 1, 2, tzinfo=timezone.utc)))
    with working(app):
        assert handle.result(timeout=30) == [7, 2026, [1, 2]]


def test_a_timeout_that_is_not_handled_fails_the_workflow(app: Durable) -> None:
    @app.workflow
    async def waiting(ctx: AsyncContext) -> None:
        await ctx.wait_event("never", timeout=0.05)

    handle = app.enqueue(waiting)
    with working(app), pytest.raises(WorkflowFailed, match="did not come within") as failed:
        handle.result(timeout=30)
    assert failed.value.error["code"] == "WF014"


@pytest.mark.parametrize("length", [0, 0.01, 1.0])
def test_sleeps_of_any_length_end(app: Durable, length: float) -> None:
    @app.workflow
    async def nap(ctx: AsyncContext) -> float:
        before = await ctx.now()
        await ctx.sleep(length)
        await ctx.sleep_until(before)
        return (await ctx.now() - before).total_seconds()

    handle = app.enqueue(nap)
    with working(app):
        assert handle.result(timeout=30) >= length


def test_what_cannot_be_waited_for_fails_the_workflow_and_no_other(app: Durable) -> None:
    @app.workflow
    async def wrong(ctx: AsyncContext, what: int) -> Any:
        if what == 0:
            return await ctx.receive("")
        if what == 1:
            return await ctx.wait_event("a\x00b")
        if what == 2:
            return await ctx.wait_any()
        if what == 3:
            return await ctx.wait_any(Event("a"), Event("a"))
        if what == 4:
            return await ctx.sleep_until(datetime(2026, 1, 1))
        if what == 5:
            return await ctx.sleep("200 years")
        if what == 6:
            return await ctx.wait_any("news")  # type: ignore[arg-type]
        if what == 7:
            return await ctx.wait_any(Timer())
        return await ctx.receive("mail")

    handles = app.enqueue_many(wrong, list(range(9)))
    with working(app):
        for handle in handles[:8]:
            with pytest.raises(WorkflowFailed) as failed:
                handle.result(timeout=30)
            assert failed.value.error["code"] == "WF005"
        handles[8].send("mail", "right")
        assert handles[8].result(timeout=30) == "right"


def test_a_worker_stops_at_once_while_workflows_wait(app: Durable) -> None:
    @app.workflow
    async def wait_long(ctx: AsyncContext) -> Any:
        return await ctx.receive("mail", timeout="1 day")

    handles = app.enqueue_many(wait_long, [None] * 50)
    with working(app, drain=60):
        until(lambda: {handle.status() for handle in handles} == {"waiting"})
    for handle in handles:
        handle.send("mail", 1)
    with working(app):
        assert [handle.result(timeout=30) for handle in handles] == [1] * 50


def test_many_are_parked_and_woken_by_one_event(app: Durable, db: Database) -> None:
    @app.workflow
    async def hear(ctx: AsyncContext, n: int) -> list[Any]:
        return [n, await ctx.wait_event("go")]

    conn = db.connect()
    handles = app.enqueue_many(hear, list(range(1500)))
    with working(app, concurrency=100):
        until(lambda: value(conn, "select count(*) from durable.workflows where status = 'waiting'") == 1500)
        app.emit("go", "on")
        until(lambda: value(conn, "select count(*) from durable.workflows where status = 'completed'") == 1500)
    assert [handle.result() for handle in handles] == [[n, "on"] for n in range(1500)]


# Sending


def test_sending_joins_the_transaction_of_the_caller(app: Durable, db: Database) -> None:
    @app.workflow
    async def listen(ctx: AsyncContext) -> list[Any]:
        return [await ctx.receive("mail"), await ctx.wait_event("e")]

    handle = app.enqueue(listen)
    with working(app):
        until_status(handle, "waiting")
        with psycopg.connect(db.dsn) as conn:
            app.send(handle.workflow_id, "mail", "never", conn=conn)
            app.emit("e", "never", conn=conn)
            conn.rollback()
        with psycopg.connect(db.dsn) as conn, conn.transaction():
            handle.send("mail", "now", conn=conn)
            app.emit("e", "now", conn=conn)
            assert handle.status() == "waiting"
        assert handle.result(timeout=30) == ["now", "now"]


def test_the_asynchronous_client_sends_too(app: Durable) -> None:
    @app.workflow
    async def listen(ctx: AsyncContext) -> list[Any]:
        return [await ctx.receive("mail"), await ctx.wait_event("e")]

    async def talk() -> Any:
        handle = await app.aio.enqueue(listen)
        assert await handle.send("mail", 1, key="k")
        assert not await app.aio.send(handle.workflow_id, "mail", 1, key="k")
        assert await app.aio.emit("e", 2)
        result = await handle.result(timeout=30)
        await app.aio.close()
        return result

    with working(app):
        assert asyncio.run(talk()) == [1, 2]


def test_to_a_workflow_that_has_ended_nothing_can_be_sent(app: Durable) -> None:
    @app.workflow
    async def quick(ctx: AsyncContext) -> None:
        return None

    handle = app.enqueue(quick)
    with working(app):
        handle.result(timeout=30)
    with pytest.raises(WorkflowEnded, match="completed"):
        handle.send("mail")
    with pytest.raises(WorkflowNotFound):
        app.send(NOBODY, "mail")
    with pytest.raises(InvalidArgument):
        handle.send("")


def test_a_timeout_is_a_timeout_error() -> None:
    assert issubclass(WaitTimedOut, TimeoutError)
