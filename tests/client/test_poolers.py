"""Through PgBouncer: in transaction mode, where each transaction may get another backend, and in session mode."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from durable_client import AsyncContext, Context, Durable, WorkflowCancelled

from client import programs
from client.journal import PATIENCE, Journal
from client.workers import Processes, working
from clusters import Cluster, Database
from engine import call, rows, value
from pgbouncer import PgBouncer

pytestmark = pytest.mark.pg(15, 18)


@pytest.fixture
def transaction_pooler(db: Database, tmp_path: Path) -> Iterator[PgBouncer]:
    pooler = PgBouncer(db.cluster, tmp_path, "transaction")
    yield pooler
    pooler.close()


@pytest.fixture
def session_pooler(db: Database, tmp_path: Path) -> Iterator[PgBouncer]:
    pooler = PgBouncer(db.cluster, tmp_path, "session", default_pool_size=20)
    yield pooler
    pooler.close()


@pytest.fixture
def pooled(db: Database, transaction_pooler: PgBouncer) -> Iterator[Durable]:
    """An empty app that reaches its database through a pooler in transaction mode."""
    app = Durable(transaction_pooler.dsn(db.dsn))
    yield app
    app.close()


def declare_squares(app: Durable) -> tuple[Any, Any]:
    """One asynchronous workflow and one plain one, each with a step and a transactional step."""

    @app.step
    async def square(n: int) -> int:
        return n * n

    @app.step
    def square_plain(n: int) -> int:
        return n * n

    async def book(conn: psycopg.AsyncConnection[Any], n: int) -> int:
        await conn.execute("insert into bookings values (%s)", [n])
        return n

    def book_plain(conn: psycopg.Connection[Any], n: int) -> int:
        conn.execute("insert into bookings values (%s)", [n])
        return n

    @app.workflow
    async def squares(ctx: AsyncContext, n: int) -> int:
        return await ctx.step(square, n) + await ctx.transaction(book, n)

    @app.workflow
    def plain_squares(ctx: Context, n: int) -> int:
        return ctx.step(square_plain, n) + ctx.transaction(book_plain, n)

    return squares, plain_squares


def wait_for(found: Callable[[], bool]) -> None:
    give_up = time.monotonic() + PATIENCE
    while not found():
        if time.monotonic() > give_up:
            raise AssertionError("it did not come to pass")
        time.sleep(0.02)


def test_workflows_run_through_transaction_pooling(pooled: Durable, db: Database) -> None:
    conn = db.connect()
    conn.execute("create table bookings (n int)")
    declared = declare_squares(pooled)
    # More often than psycopg waits before it prepares a statement, and with several connections.
    handles = [pooled.enqueue(workflow, n) for n in range(30) for workflow in declared]
    with working(pooled, concurrency=20):
        assert [handle.result(timeout=60) for handle in handles] == [n * n + n for n in range(30) for _ in declared]
        assert rows(conn, "select session_lock, died_at from durable.workers") == [(False, None)]
        # Nobody listens, so nobody is to be rung for.
        assert value(conn, "select count(*) from durable.idle_workers") == 0
    assert value(conn, "select array_agg(n order by n) from bookings") == [n for n in range(30) for _ in declared]
    assert value(conn, "select max(attempt) from durable.workflows") == 1


def test_clients_enqueue_ask_and_steer_through_transaction_pooling(pooled: Durable, db: Database) -> None:
    squares, _ = declare_squares(pooled)
    handles = pooled.enqueue_many(squares, range(100))
    assert [handle.status() for handle in handles] == ["pending"] * 100
    assert (handles[0].cancel(), handles[0].retry(), handles[0].steps()) == (True, True, [])

    async def ask() -> None:
        many = await asyncio.gather(*(pooled.aio.enqueue(squares, n) for n in range(40)))
        assert await asyncio.gather(*(handle.status() for handle in many)) == ["pending"] * 40
        await pooled.aio.close()

    asyncio.run(ask())
    assert value(db.connect(), "select count(*) from durable.workflows") == 140


def test_an_enqueue_joins_the_callers_transaction_through_transaction_pooling(
    pooled: Durable, db: Database, transaction_pooler: PgBouncer
) -> None:
    squares, _ = declare_squares(pooled)
    dsn = transaction_pooler.dsn(db.dsn)
    # Two connections in turn, as in a program with a pool of its own.
    with (
        psycopg.connect(dsn, prepare_threshold=None) as first,
        psycopg.connect(dsn, prepare_threshold=None) as second,
    ):
        for n in range(20):
            conn = (first, second)[n % 2]
            handle = pooled.enqueue(squares, n, conn=conn)
            if n % 4 < 2:
                conn.commit()
                assert handle.status() == "pending"
            else:
                conn.rollback()
    assert value(db.connect(), "select count(*) from durable.workflows") == 10


def test_cancelling_reaches_a_running_step_with_the_next_heartbeat_through_transaction_pooling(
    pooled: Durable, db: Database
) -> None:
    call(db.connect(), "configure", "lease", "3 seconds")
    ended: list[str] = []

    @pooled.step
    async def wait() -> None:
        ended.append("begun")
        try:
            await asyncio.sleep(3600)
        finally:
            ended.append("interrupted")

    @pooled.workflow
    async def waiting(ctx: AsyncContext) -> None:
        await ctx.step(wait)

    handle = pooled.enqueue(waiting)
    with working(pooled):
        wait_for(lambda: ended == ["begun"])
        assert handle.cancel("no need")
        wait_for(lambda: ended == ["begun", "interrupted"])
        with pytest.raises(WorkflowCancelled, match="no need"):
            handle.result()


def test_03_after_kill_9_the_lease_decides_through_transaction_pooling(
    db: Database, transaction_pooler: PgBouncer, processes: Processes, journal: Journal
) -> None:
    conn = db.connect()
    call(conn, "configure", "lease", "2 seconds")
    dsn = transaction_pooler.dsn(db.dsn)
    journal.hold("a-2")
    handle = programs.app.enqueue(programs.chain, {"name": "a", "steps": 5})
    worker = processes.start(dsn=dsn)
    journal.wait("square", "a", 2)
    worker.kill()
    journal.release("a-2")
    processes.start(dsn=dsn)
    assert handle.result(timeout=60) == 30
    assert [journal.count("square", "a", n) for n in range(5)] == [1, 1, 2, 1, 1]
    assert value(conn, "select died_at >= expires_at from durable.workers where died_at is not null")


def test_a_pooler_that_is_killed_and_comes_back_costs_nothing_but_time(
    db: Database, transaction_pooler: PgBouncer, processes: Processes, journal: Journal
) -> None:
    conn = db.connect()
    conn.execute("create table bookings (n int)")
    handles = [
        programs.app.enqueue(program, n) for n in range(200) for program in (programs.mixed, programs.plain_mixed)
    ]
    worker = processes.start(dsn=transaction_pooler.dsn(db.dsn), concurrency=5)
    for share in (50, 150):
        wait_for(lambda share=share: value(conn, "select count(*) from bookings") >= share)
        transaction_pooler.kill()
        transaction_pooler.start()
    for handle in handles:
        handle.result(timeout=60)
    assert worker.running()
    assert value(conn, "select array_agg(n order by n) from bookings") == [n for n in range(200) for _ in range(2)]
    assert value(conn, "select max(attempt) from durable.workflows") == 1


def test_a_server_that_is_killed_behind_its_pooler_costs_nothing_but_time(
    own_cluster: Cluster, tmp_path: Path, journal: Journal
) -> None:
    db = own_cluster.create_database()
    pooler = PgBouncer(own_cluster, tmp_path, "transaction")
    processes = Processes(pooler.dsn(db.dsn), tmp_path)
    try:
        with db.connect() as conn:
            conn.execute("create table bookings (n int)")
            conn.execute("select durable.enqueue('mixed', to_jsonb(n)) from generate_series(0, 99) n")
            worker = processes.start(concurrency=5)
            wait_for(lambda: value(conn, "select count(*) from bookings") >= 30)
            own_cluster.kill()
        own_cluster.start()
        with db.connect() as conn:
            wait_for(lambda: value(conn, "select count(*) from durable.live_workflows") == 0)
            assert value(conn, "select array_agg(n order by n) from bookings") == list(range(100))
            assert worker.running()
    finally:
        processes.close()
        pooler.close()


def test_the_command_works_through_transaction_pooling(db: Database, transaction_pooler: PgBouncer) -> None:
    def durable(*arguments: str) -> Any:
        done = subprocess.run(
            [str(Path(sys.executable).with_name("durable")), *arguments, "-o", "json"],
            env=os.environ | {"DURABLE_DSN": transaction_pooler.dsn(db.dsn), "PGTZ": "Asia/Tokyo"},
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    ids = [durable("enqueue", "report", str(n))["workflow_id"] for n in range(3)]
    assert [listed["workflow_id"] for listed in durable("list")] == ids[::-1]
    shown = durable("show", ids[0])
    assert shown["input"] == 0
    assert shown["created_at"].endswith("+00:00")
    assert durable("cancel", ids[0])["status"] == "cancelled"
    assert durable("retry", ids[0])["status"] == "pending"
    assert durable("install")["installed"] is False


def test_session_pooling_has_the_lock_and_the_doorbell(
    db: Database, session_pooler: PgBouncer, processes: Processes, journal: Journal
) -> None:
    conn = db.connect()
    call(conn, "configure", "restart_grace", "0")
    call(conn, "configure", "lease", "1 hour")
    dsn = session_pooler.dsn(db.dsn)
    worker = processes.start(dsn=dsn)
    wait_for(lambda: value(conn, "select count(*) from durable.idle_workers") == 1)
    assert value(conn, "select session_lock from durable.workers")
    journal.hold("a-2")
    handle = programs.app.enqueue(programs.chain, {"name": "a", "steps": 5})
    journal.wait("square", "a", 2)
    worker.kill()
    journal.release("a-2")
    processes.start(dsn=dsn)
    # Within the hour of its lease only by the lock, which PgBouncer gives up with the connection of the client.
    assert handle.result(timeout=60) == 30
    assert value(conn, "select expires_at > now() from durable.workers where died_at is not null")


def test_a_session_pooler_without_a_backend_to_spare_leaves_it_at_the_lease(db: Database, tmp_path: Path) -> None:
    # Four are what a worker takes; the next who asks for one would wait.
    pooler = PgBouncer(db.cluster, tmp_path, "session", default_pool_size=4)
    app = Durable(pooler.dsn(db.dsn))
    try:

        @app.workflow
        async def run(ctx: AsyncContext) -> int:
            return 1

        direct = Durable(db.dsn)
        handle = direct.enqueue(run)
        with working(app):
            assert handle.result(timeout=60) == 1
            assert value(db.connect(), "select session_lock from durable.workers") is False
        direct.close()
    finally:
        pooler.close()
