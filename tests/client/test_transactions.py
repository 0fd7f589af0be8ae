"""Transactional steps, and enqueueing in a transaction of one's own."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any

import psycopg
import pytest
from durable_client import AsyncContext, Context, Durable, KeyConflict, Retry, WorkflowFailed
from psycopg.rows import dict_row

from client.workers import working
from clusters import Database
from engine import call, rows, value

pytestmark = pytest.mark.pg(15, 18)


def test_10_rows_and_checkpoint_commit_together_or_not_at_all(app: Durable, db: Database) -> None:
    conn = db.connect()
    conn.execute("create table bookings (n int primary key)")
    conn.execute("insert into bookings values (2)")

    async def book(conn: psycopg.AsyncConnection[Any], n: int) -> int:
        await conn.execute("insert into bookings values (%s)", [n + 10])
        await conn.execute("insert into bookings values (%s)", [n])
        return n

    def book_plain(conn: psycopg.Connection[Any], n: int) -> int:
        conn.execute("insert into bookings values (%s)", [n + 20])
        conn.execute("insert into bookings values (%s)", [n])
        return n

    @app.workflow
    async def run(ctx: AsyncContext, plain: bool) -> None:
        step: Callable[..., Any] = book_plain if plain else book
        await ctx.transaction(step, 1 if not plain else 3)
        await ctx.transaction(step, 2)

    with working(app):
        for plain in (False, True):
            handle = app.enqueue(run, plain)
            with pytest.raises(WorkflowFailed, match="duplicate key"):
                handle.result(timeout=30)
            assert [(step.name.partition("#")[2], step.status) for step in handle.steps()] == [
                ("", "completed"), ("2", "error"),
            ]  # fmt: skip
    assert value(conn, "select array_agg(n order by n) from bookings") == [1, 2, 3, 11, 23]


def test_10_an_output_that_cannot_be_stored_rolls_back_the_rows(app: Durable, db: Database) -> None:
    conn = db.connect()
    conn.execute("create table bookings (n int)")

    def book(conn: psycopg.Connection[Any]) -> float:
        conn.execute("insert into bookings values (1)")
        return float("nan")

    @app.workflow
    def run(ctx: Context) -> None:
        ctx.transaction(book)

    with working(app), pytest.raises(WorkflowFailed, match="cannot be stored as JSON"):
        app.enqueue(run).result(timeout=30)
    assert value(conn, "select count(*) from bookings") == 0


def test_10_a_lease_lost_meanwhile_leaves_no_rows(app: Durable, db: Database) -> None:
    conn = db.connect()
    conn.execute("create table bookings (n int)")
    begun, gate = threading.Event(), threading.Event()

    @app.step
    def wait() -> None:
        begun.set()
        gate.wait(30)

    def book(conn: psycopg.Connection[Any]) -> None:
        conn.execute("insert into bookings values (1)")

    @app.workflow
    def run(ctx: Context) -> None:
        try:
            ctx.step(wait)
        finally:
            ctx.transaction(book)

    with working(app):
        handle = app.enqueue(run)
        assert begun.wait(30)
        handle.cancel()
        gate.set()
    assert value(conn, "select count(*) from bookings") == 0
    assert handle.status() == "cancelled"


def test_10_what_a_step_sets_on_its_connection_does_not_reach_the_next_one(app: Durable, db: Database) -> None:
    conn = db.connect()
    conn.execute("create table bookings (n int)")

    async def read(conn: psycopg.AsyncConnection[Any], n: int) -> Any:
        if n == 1:
            conn.row_factory = dict_row
        await conn.execute("insert into bookings values (%s)", [n])
        return await (await conn.execute("select 1 as one")).fetchone()

    def read_plain(conn: psycopg.Connection[Any], n: int) -> Any:
        if n == 1:
            conn.row_factory = dict_row
        conn.execute("insert into bookings values (%s)", [n])
        return conn.execute("select 1 as one").fetchone()

    @app.workflow
    async def run(ctx: AsyncContext) -> Any:
        return [await ctx.transaction(read, 1), await ctx.transaction(read, 2)]

    @app.workflow
    def plain_run(ctx: Context) -> Any:
        return [ctx.transaction(read_plain, 1), ctx.transaction(read_plain, 2)]

    with working(app, transactions=1):
        for workflow in (run, plain_run):
            assert app.enqueue(workflow).result(timeout=30) == [{"one": 1}, [1]]
    assert value(conn, "select array_agg(n order by n) from bookings") == [1, 1, 2, 2]


def test_12_a_deadlock_in_a_transactional_step_runs_it_again(app: Durable, db: Database) -> None:
    conn = db.connect()
    conn.execute("create table accounts (id int primary key, balance int not null)")
    conn.execute("insert into accounts values (1, 100), (2, 100)")
    barrier = threading.Barrier(2)
    tries: list[int] = []

    def move(conn: psycopg.Connection[Any], source: int, target: int) -> int:
        tries.append(source)
        conn.execute("update accounts set balance = balance - 10 where id = %s", [source])
        if len(tries) <= 2:
            barrier.wait(30)
        conn.execute("update accounts set balance = balance + 10 where id = %s", [target])
        return source

    @app.workflow
    def run(ctx: Context, source: int) -> int:
        return ctx.transaction(move, source, 3 - source)

    with working(app):
        assert [handle.result(timeout=30) for handle in app.enqueue_many(run, [1, 2])] == [1, 2]
    assert len(tries) == 3
    assert rows(conn, "select * from accounts order by id") == [(1, 100), (2, 100)]


def test_12_a_serialization_failure_in_a_transactional_step_runs_it_again(db: Database) -> None:
    app = Durable(f"{db.dsn} options='-c default_transaction_isolation=serializable'")
    conn = db.connect()
    conn.execute("create table counters (n int)")
    conn.execute("insert into counters values (0)")
    tries: list[int] = []

    async def increment(conn: psycopg.AsyncConnection[Any]) -> int:
        row = await (await conn.execute("select n from counters")).fetchone()
        assert row is not None
        tries.append(1)
        if len(tries) == 1:
            await asyncio.to_thread(db.connect().execute, "update counters set n = n + 1")
        await conn.execute("update counters set n = %s", [row[0] + 1])
        return int(row[0]) + 1

    @app.workflow
    async def run(ctx: AsyncContext) -> int:
        return await ctx.transaction(increment)

    with working(app):
        assert app.enqueue(run).result(timeout=30) == 2
    app.close()
    assert len(tries) == 2
    assert rows(conn, "select * from counters") == [(2,)]


def test_a_transactional_step_is_retried_by_its_policy(app: Durable, db: Database) -> None:
    conn = db.connect()
    conn.execute("create table bookings (n int)")
    tries: list[int] = []

    @app.step(retry=Retry(max_attempts=3, initial="1ms"))
    def book(conn: psycopg.Connection[Any]) -> int:
        conn.execute("insert into bookings values (1)")
        tries.append(1)
        if len(tries) < 3:
            raise RuntimeError("not yet")
        return len(tries)

    @app.workflow
    def run(ctx: Context) -> int:
        return ctx.transaction(book)

    with working(app):
        assert app.enqueue(run).result(timeout=30) == 3
    assert value(conn, "select count(*) from bookings") == 1


def test_many_workflows_share_one_connection_for_transactions(app: Durable, db: Database) -> None:
    conn = db.connect()
    conn.execute("create table bookings (n int)")

    async def book(conn: psycopg.AsyncConnection[Any], n: int) -> int:
        await conn.execute("insert into bookings values (%s)", [n])
        await asyncio.sleep(0.001)
        return n

    def book_plain(conn: psycopg.Connection[Any], n: int) -> int:
        conn.execute("insert into bookings values (%s)", [n])
        return n

    @app.workflow
    async def run(ctx: AsyncContext, n: int) -> int:
        return await ctx.transaction(book, n)

    @app.workflow
    def plain_run(ctx: Context, n: int) -> int:
        return ctx.transaction(book_plain, n)

    with working(app, transactions=1):
        handles = [*app.enqueue_many(run, range(50)), *app.enqueue_many(plain_run, range(50))]
        assert [handle.result(timeout=30) for handle in handles] == [*range(50), *range(50)]
    assert value(conn, "select count(*) from bookings") == 100


def test_13_enqueue_joins_the_transaction_of_the_connection(app: Durable, db: Database) -> None:
    with psycopg.connect(db.dsn, row_factory=dict_row) as conn:
        handle = app.enqueue("w", {"order": 1}, key="order-1", conn=conn)
        many = app.enqueue_many("w", [1, 2], conn=conn)
        assert value(db.connect(), "select count(*) from durable.workflows") == 0
        with pytest.raises(KeyConflict), conn.transaction():
            app.enqueue("other", key="order-1", conn=conn)
        conn.rollback()
        assert value(db.connect(), "select count(*) from durable.workflows") == 0
        again = app.enqueue("w", {"order": 1}, key="order-1", conn=conn)
        conn.commit()
    assert again.status() == "pending"
    assert again.workflow_id not in [handle.workflow_id, *(one.workflow_id for one in many)]
    assert value(db.connect(), "select count(*) from durable.workflows") == 1


def test_13_enqueue_joins_the_transaction_of_an_async_connection(app: Durable, db: Database) -> None:
    async def run() -> None:
        async with await psycopg.AsyncConnection.connect(db.dsn) as conn:
            await app.aio.enqueue("w", conn=conn)
            await conn.rollback()
            kept = await app.aio.enqueue("w", conn=conn)
            await conn.commit()
        assert await kept.status() == "pending"
        await app.aio.close()

    asyncio.run(run())
    assert value(db.connect(), "select count(*) from durable.workflows") == 1


def test_17_a_workflow_that_is_committed_late_still_runs(app: Durable, db: Database) -> None:
    @app.workflow
    async def run(ctx: AsyncContext) -> int:
        return 1

    with psycopg.connect(db.dsn) as late, working(app):
        assert app.enqueue(run).result(timeout=30) == 1
        handle = app.enqueue(run, conn=late)
        assert [one.result(timeout=30) for one in app.enqueue_many(run, [None] * 50)] == [1] * 50
        late.commit()
        assert handle.result(timeout=30) == 1


def test_enqueue_inside_of_a_transactional_step_is_part_of_it(app: Durable, db: Database) -> None:
    call(db.connect(), "configure", "retry_initial", "1 millisecond")

    def hand_on(conn: psycopg.Connection[Any], fail: bool) -> str:
        child = app.enqueue("child", queue="elsewhere", conn=conn)
        if fail:
            raise RuntimeError("no")
        return child.workflow_id

    @app.workflow
    def run(ctx: Context, fail: bool) -> str:
        return ctx.transaction(hand_on, fail)

    with working(app):
        child = app.enqueue(run, False).result(timeout=30)
        with pytest.raises(WorkflowFailed):
            app.enqueue(run, True).result(timeout=30)
    assert rows(db.connect(), "select workflow_id::text from durable.workflows where name = 'child'") == [(child,)]
