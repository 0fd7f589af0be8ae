"""Transactional steps whose connection is lost, or whose SQL only says so."""

from __future__ import annotations

import asyncio
import threading
import time
from typing import Any

import psycopg
import pytest
from durable_client import AsyncContext, Context, Durable, Retry, WorkflowFailed
from durable_client._context import transaction, transaction_async

from client.workers import working
from clusters import Cluster, Database
from engine import call, rows, value

pytestmark = pytest.mark.pg(15, 18)

RAISE = "do $$ begin raise 'cannot reach the other server' using errcode = '{}'; end $$"
# The statements of bodies, what the error says then, and how often the body runs in one attempt of the step.
BODIES = {
    "08001": ([RAISE.format("08001")], "cannot reach the other server", 1),
    "57P01": ([RAISE.format("57P01")], "cannot reach the other server", 1),
    "25006": (["set transaction read only"], "read-only transaction", 1),
    "0A000": ([RAISE.format("0A000")], "cannot reach the other server", 1),
    "statement timeout": (["set local statement_timeout = '50ms'", "select pg_sleep(10)"], "statement timeout", 1),
    "deadlock": ([RAISE.format("40P01")], "cannot reach the other server", 3),
    "crash": (["select pg_terminate_backend(pg_backend_pid())"], "its connection was lost 3 times", 3),
    "idle": (["set idle_in_transaction_session_timeout = '50ms'"], "its connection was lost 2 times", 2),
}


@pytest.fixture(autouse=True)
def fewer_tries(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (transaction, transaction_async):
        monkeypatch.setattr(module, "_MOST_TRIES", 3)
        monkeypatch.setattr(module, "_MOST_TIMEOUTS", 2)


@pytest.mark.parametrize("plain", [False, True], ids=["async", "plain"])
def test_a_body_that_loses_its_connection_again_and_again_is_a_failed_attempt(
    app: Durable, db: Database, plain: bool, caplog: pytest.LogCaptureFixture
) -> None:
    conn = db.connect()
    conn.execute("create table bookings (n int)")
    ran: list[str] = []
    retry = Retry(max_attempts=2, initial="1ms")

    @app.step(retry=retry)
    async def book(conn: psycopg.AsyncConnection[Any], name: str) -> None:
        ran.append(name)
        for statement in BODIES[name][0]:
            await conn.execute(statement)
        await asyncio.sleep(0.2 if name == "idle" else 0)
        await conn.execute("insert into bookings values (1)")

    @app.step(retry=retry)
    def book_plain(conn: psycopg.Connection[Any], name: str) -> None:
        ran.append(name)
        for statement in BODIES[name][0]:
            conn.execute(statement)
        time.sleep(0.2 if name == "idle" else 0)
        conn.execute("insert into bookings values (1)")

    @app.workflow
    async def run(ctx: AsyncContext, name: str) -> None:
        await ctx.transaction(book, name)

    @app.workflow
    def plain_run(ctx: Context, name: str) -> None:
        ctx.transaction(book_plain, name)

    workflow: Any = plain_run if plain else run
    with working(app):
        for name, handle in {name: app.enqueue(workflow, name) for name in BODIES}.items():
            with pytest.raises(WorkflowFailed, match=BODIES[name][1]) as info:
                handle.result(timeout=60)
            (step,) = handle.steps()
            assert (step.status, step.attempt) == ("error", 2), name
            assert info.value.error["step"] == step.name
            # What is counted is an attempt of the step, and not each run of its body.
            assert ran.count(name) == 2 * BODIES[name][2], name
    assert value(conn, "select count(*) from bookings") == 0
    assert value(conn, "select sum(crashes) from durable.workflows") == 0
    for name, reason in (("crash", "terminating connection"), ("idle", "idle-in-transaction timeout")):
        (workflow_id,) = [
            row.workflow_id for row in rows(conn, "select * from durable.workflows where input #>> '{}' = %s", name)
        ]
        told = [
            record.getMessage()
            for record in caplog.records
            if str(workflow_id) in record.getMessage() and "its transaction is run again" in record.getMessage()
        ]
        assert len(told) == 2 * (BODIES[name][2] - 1)
        assert all("book" in text and reason in text for text in told), told


def test_a_server_that_is_away_again_and_again_counts_no_attempt(own_cluster: Cluster) -> None:
    database = own_cluster.create_database()
    conn = database.connect()
    conn.execute("create table bookings (n int)")
    app = Durable(database.dsn)
    begun = threading.Semaphore(0)
    # One for each run of the body.
    gates = [threading.Event() for _ in range(3)]
    ran: list[int] = []

    def book(conn: psycopg.Connection[Any]) -> int:
        ran.append(1)
        begun.release()
        gates[len(ran) - 1].wait(60)
        conn.execute("insert into bookings values (1)")
        return 1

    @app.workflow
    def run(ctx: Context) -> int:
        return ctx.transaction(book)

    with working(app):
        handle = app.enqueue(run)
        for gate, end in zip(gates, (own_cluster.stop, own_cluster.kill), strict=False):
            assert begun.acquire(timeout=60)
            end()
            gate.set()
            time.sleep(0.5)
            own_cluster.start()
        gates[2].set()
        assert handle.result(timeout=60) == 1
    app.close()
    conn = database.connect()
    assert value(conn, "select count(*) from bookings") == 1
    assert len(ran) == 3
    assert rows(conn, "select crashes, failures from durable.workflows") == [(0, 0)]
    assert [step.attempt for step in rows(conn, "select attempt from durable.workflow_steps")] == [1]


def test_a_transaction_that_cannot_begin_waits_for_its_turn(app: Durable, db: Database) -> None:
    conn = db.connect()
    conn.execute(f"alter database {db.name} set lock_timeout = '20ms'".encode())
    ran: list[int] = []

    def book(conn: psycopg.Connection[Any]) -> int:
        ran.append(1)
        return 1

    begun, gate = threading.Event(), threading.Event()

    @app.step
    def wait() -> None:
        begun.set()
        gate.wait(60)

    @app.workflow
    def run(ctx: Context) -> int:
        ctx.step(wait)
        return ctx.transaction(book)

    with working(app):
        handle = app.enqueue(run)
        assert begun.wait(60)
        with conn.transaction():
            conn.execute("select from durable.live_workflows for update")
            gate.set()
            # More often than the body may run.
            time.sleep(1)
            assert not ran
        assert handle.result(timeout=60) == 1
    assert ran == [1]
    assert call(conn, "history", handle.workflow_id)[-1].attempt == 1
