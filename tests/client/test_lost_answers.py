"""The connection drops after the server has done what it was asked, and before the client hears of it."""

from __future__ import annotations

import time
from typing import Any
from uuid import UUID

import psycopg
import pytest
from durable_client import (
    AsyncContext,
    Context,
    Durable,
    Retry,
    WorkflowFailed,
    current_step,
)
from durable_client._context import context, context_async, engine

from client.proxy import Proxy
from client.workers import working
from clusters import Database
from engine import Connection, call, rows, value

pytestmark = pytest.mark.pg(15, 18)


@pytest.fixture
def lossy(db: Database, proxy: Proxy) -> Durable:
    """An app whose worker goes through the proxy; ``app`` goes straight to the server."""
    return Durable(proxy.dsn(db.dsn))


def declare(app: Durable, ran: list[Any]) -> dict[str, Any]:
    @app.step
    async def count(n: int) -> int:
        ran.append(("step", n))
        return n

    async def book(conn: psycopg.AsyncConnection[Any], n: int) -> int:
        ran.append(("transaction", n))
        await conn.execute("insert into bookings values (%s)", [n])
        return n

    def book_plain(conn: psycopg.Connection[Any], n: int) -> int:
        ran.append(("transaction", n))
        conn.execute("insert into bookings values (%s)", [n])
        return n

    @app.step(retry=Retry(max_attempts=2, initial="1ms"))
    async def flaky() -> int:
        ran.append(("flaky", current_step().attempt))
        if current_step().attempt == 1:
            raise RuntimeError("once")
        return 3

    @app.step(at_most_once=True)
    async def once() -> int:
        ran.append("once")
        return 4

    @app.workflow
    async def run(ctx: AsyncContext) -> int:
        ran.append("body")
        first = await ctx.step(count, 1)
        second = await ctx.transaction(book, 2)
        return first + second + await ctx.step(flaky) + await ctx.step(once)

    @app.workflow
    def plain_run(ctx: Context) -> int:
        ran.append("body")
        first = ctx.step(count, 1)
        second = ctx.transaction(book_plain, 2)
        return first + second + ctx.step(flaky) + ctx.step(once)

    @app.workflow
    async def fail(ctx: AsyncContext) -> None:
        ran.append("body")
        raise RuntimeError("on purpose")

    return {"run": run, "plain_run": plain_run, "fail": fail}


EVERYTHING = ["body", ("step", 1), ("transaction", 2), ("flaky", 1), ("flaky", 2), "once"]


@pytest.mark.parametrize("name", ["run", "plain_run"])
@pytest.mark.parametrize(
    "statement", ["durable.claim(", "durable.flush(", "durable.fail_step(", "durable.start_step(", "durable.tick("]
)
def test_06_after_a_lost_answer_the_same_call_again_changes_nothing(
    app: Durable, lossy: Durable, proxy: Proxy, db: Database, statement: str, name: str
) -> None:
    ran: list[Any] = []
    conn = db.connect()
    conn.execute("create table bookings (n int)")
    workflow = declare(lossy, ran)[name]
    # The first flush is the first checkpoint; the last one has the completion.
    proxy.lose(*[statement] * (5 if statement == "durable.flush(" else 1))
    handle = app.enqueue(name)
    with working(lossy):
        assert handle.result(timeout=30) == 10
    assert workflow.name == name
    assert proxy.lost
    assert ran == EVERYTHING
    assert rows(conn, "select * from bookings") == [(2,)]
    assert value(conn, "select count(*) from durable.workflow_steps") == 4
    assert value(conn, "select attempt + crashes + failures from durable.workflows") == 1


def test_06_after_a_lost_answer_to_a_failure_the_workflow_is_failed_once(
    app: Durable, lossy: Durable, proxy: Proxy, db: Database
) -> None:
    ran: list[Any] = []
    declare(lossy, ran)
    proxy.lose("durable.fail_many(")
    handle = app.enqueue("fail", max_attempts=2)
    with working(lossy), pytest.raises(WorkflowFailed, match="on purpose"):
        handle.result(timeout=30)
    assert proxy.lost == ["durable.fail_many("]
    assert ran == ["body", "body"]
    assert value(db.connect(), "select failures from durable.workflows") == 2


@pytest.mark.parametrize("statement", ["durable.publish(", "durable.warn(", "durable.continue_as_new("])
@pytest.mark.parametrize("plain", [False, True], ids=["async", "plain"])
def test_06_after_a_lost_answer_to_what_a_run_says_of_itself_it_is_said_once(
    app: Durable,
    lossy: Durable,
    proxy: Proxy,
    db: Database,
    statement: str,
    plain: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for module in (context, context_async, engine):
        monkeypatch.setattr(module, "LONG_RUN", 1)

    @lossy.step
    def warned() -> None:
        conn = db.connect()
        while not value(conn, "select bool_or(warning is not null) from durable.workflows"):
            time.sleep(0.01)

    @lossy.workflow
    async def run(ctx: AsyncContext, left: int) -> int:
        await ctx.set("left", left)
        if left:
            await ctx.now()
            await ctx.step(warned)
            await ctx.continue_as_new(left - 1)
        return left

    @lossy.workflow
    def plain_run(ctx: Context, left: int) -> int:
        ctx.set("left", left)
        if left:
            ctx.now()
            ctx.step(warned)
            ctx.continue_as_new(left - 1)
        return left

    proxy.lose(statement)
    handle = app.enqueue("plain_run" if plain else "run", 1)
    with working(lossy):
        assert handle.result(timeout=30) == 0
    assert proxy.lost == [statement]
    found = rows(
        db.connect(),
        "select status::text, attempt, warning is null as quiet from durable.workflows order by 1, created_at",
    )
    assert found == [("completed", 1, False), ("completed", 1, True)]
    assert handle.state() == {"left": 1}


def test_06_after_a_lost_answer_to_a_suspension_the_workflow_is_paused(
    app: Durable, lossy: Durable, proxy: Proxy, db: Database
) -> None:
    @lossy.step
    def number() -> UUID:
        return UUID(int=1)

    @lossy.workflow
    async def run(ctx: AsyncContext) -> str:
        return str(await ctx.step(number))

    conn = db.connect()
    handle = app.enqueue("run")
    (claimed,) = call(conn, "claim", "before", ["default"], 1)
    call(conn, "checkpoint", claimed.workflow_id, claimed.lease, "number", {"n": 1})
    call(conn, "leave", "before")
    proxy.lose("durable.suspend(")
    with working(lossy) as worker:
        while not value(conn, "select paused_at is not null from durable.workflows") or worker._runs:
            time.sleep(0.01)
    assert proxy.lost == ["durable.suspend("]
    assert handle.status() == "pending"


@pytest.mark.parametrize("name", ["run", "plain_run"])
@pytest.mark.parametrize("statement", ["COMMIT", "durable.checkpoint_many(", "durable.begin_step("])
def test_11_a_transaction_whose_commit_was_not_answered_is_not_run_again(
    app: Durable, lossy: Durable, proxy: Proxy, db: Database, statement: str, name: str
) -> None:
    ran: list[Any] = []
    conn = db.connect()
    conn.execute("create table bookings (n int)")
    declare(lossy, ran)
    proxy.lose(statement)
    handle = app.enqueue(name)
    with working(lossy):
        assert handle.result(timeout=30) == 10
    assert proxy.lost == [statement]
    assert rows(conn, "select * from bookings") == [(2,)]
    # Before the commit all that it did is undone, so that it runs again.
    assert ran.count(("transaction", 2)) == (2 if statement == "durable.checkpoint_many(" else 1)


def test_06_answers_lost_at_random_change_no_result(app: Durable, lossy: Durable, proxy: Proxy, db: Database) -> None:
    ran: list[Any] = []
    conn = db.connect()
    conn.execute("create table bookings (n int)")
    declare(lossy, ran)
    handles = [app.enqueue(name) for _ in range(40) for name in ("run", "plain_run")]
    proxy.lose(*["durable.claim(", "durable.flush(", "COMMIT", "durable.fail_step(", "durable.start_step("] * 8)
    with working(lossy, concurrency=5):
        assert [handle.result(timeout=60) for handle in handles] == [10] * 80
    assert len(proxy.lost) == 40
    assert sorted(map(str, ran)) == sorted(map(str, EVERYTHING * 80))
    assert value(conn, "select count(*) from bookings") == 80


def control_connection(conn: Connection, other_than: int = 0) -> int:
    """The process of the server on which the worker claims, once it waits for work."""
    for _ in range(2000):
        found = rows(
            conn,
            """select pid from pg_stat_activity a
               where datname = current_database() and application_name = 'durable control' and pid <> %s
                 and query like '%%durable.claim%%' and exists (select from durable.idle_workers)""",
            other_than,
        )
        if found:
            return int(found[0].pid)
        time.sleep(0.01)
    raise AssertionError("the worker does not claim")


def test_06_what_a_claim_brought_is_given_back_when_its_worker_never_heard_of_it(app: Durable, db: Database) -> None:
    @app.workflow
    async def answer(ctx: AsyncContext) -> int:
        return 42

    conn = db.connect()
    call(conn, "configure", "lease", "6 seconds")
    handle = app.enqueue(answer, queue="lost")
    with working(app, name="deaf"):
        # It looks for strays once it has lost the connection that it claims on.
        first = control_connection(conn)
        conn.execute("select pg_terminate_backend(%s)", [first])
        assert control_connection(conn, other_than=first)
        assert len(call(conn, "claim", "deaf", ["lost"], 1)) == 1
        with working(app, queues=["lost"]):
            assert handle.result(timeout=30) == 42
    assert rows(conn, "select attempt, crashes, failures from durable.workflows") == [(1, 0, 0)]
