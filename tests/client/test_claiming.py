"""Which workflows a worker takes, and when."""

from __future__ import annotations

import asyncio
import threading
import time
from contextlib import ExitStack
from contextvars import ContextVar
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest
from durable_client import AsyncContext, Context, Durable, InvalidArgument, WorkflowFailed, current_step

from client.workers import working
from clusters import Database
from engine import Connection, call, rows, value, wait_until

pytestmark = pytest.mark.pg(15, 18)


def declare(app: Durable, ran: list[Any]) -> Any:
    @app.workflow
    async def run(ctx: AsyncContext, n: int) -> int:
        ran.append(n)
        return n

    return run


def test_14_by_priority_then_in_order(app: Durable) -> None:
    ran: list[int] = []
    run = declare(app, ran)
    handles = [app.enqueue(run, n, priority=priority) for n, priority in enumerate([5, 0, -1, 5, 0, -1])]
    with working(app, concurrency=1):
        for handle in handles:
            handle.result(timeout=30)
    assert ran == [2, 5, 1, 4, 0, 3]


def test_15_a_delayed_workflow_does_not_start_early(app: Durable, db: Database) -> None:
    ran: list[int] = []
    run = declare(app, ran)
    with working(app):
        now = value(db.connect(), "select clock_timestamp()")
        due = now + timedelta(milliseconds=700)
        handle = app.enqueue(run, 1, run_at=due)
        early = app.enqueue(run, 2, run_at=now - timedelta(days=1))
        assert early.result(timeout=30) == 2
        assert handle.result(timeout=30) == 1
    assert (
        value(db.connect(), "select started_at from durable.workflows where workflow_id = %s", handle.workflow_id)
        >= due
    )
    with pytest.raises(InvalidArgument, match="time zone"):
        app.enqueue(run, 1, run_at=datetime(2030, 1, 1))
    far = app.enqueue(run, 3, run_at=datetime.now(timezone.utc) + timedelta(days=1))
    assert far.status() == "pending"


def test_21_a_worker_does_not_claim_what_it_has_no_code_for(app: Durable, db: Database) -> None:
    ran: list[int] = []
    run = declare(app, ran)
    other = Durable(db.dsn)

    @other.workflow
    def unknown(ctx: Context, n: int) -> int:
        return n * 2

    handles = app.enqueue_many("unknown", range(5))
    known = app.enqueue_many(run, range(5))
    with working(app):
        assert [handle.result(timeout=30) for handle in known] == list(range(5))
        assert [handle.status() for handle in handles] == ["pending"] * 5
        with working(other):
            assert [handle.result(timeout=30) for handle in handles] == [0, 2, 4, 6, 8]
    assert value(db.connect(), "select max(attempt) from durable.workflows") == 1


def test_a_worker_takes_from_its_queues_only(app: Durable) -> None:
    @app.workflow(queue="reports")
    async def report(ctx: AsyncContext) -> str:
        return ctx.queue

    with working(app, queues=["default", "urgent"]):
        stays = app.enqueue(report)
        assert app.enqueue(report, queue="urgent").result(timeout=30) == "urgent"
        assert stays.status() == "pending"
    with working(app) as worker:
        assert worker.queues == ("reports",)
        assert stays.result(timeout=30) == "reports"


def test_16_workers_never_run_the_same_workflow(app: Durable, db: Database) -> None:
    ran: list[int] = []
    run = declare(app, ran)
    handles = app.enqueue_many(run, range(500))
    with working(app, concurrency=7), working(app, concurrency=7), working(app, concurrency=7):
        assert [handle.result(timeout=60) for handle in handles] == list(range(500))
    assert sorted(ran) == list(range(500))


@pytest.fixture
def without_polls(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the bell a worker would look after an hour."""
    for poll in ("_FIRST_POLL", "_POLL"):
        monkeypatch.setattr(f"durable_client._worker.worker.{poll}", 3600.0)


def until_idle(conn: Connection) -> None:
    wait_until(conn, "select exists (select from durable.idle_workers)")


@pytest.mark.usefixtures("without_polls")
def test_an_idle_worker_is_woken_by_an_enqueue(app: Durable, db: Database) -> None:
    run = declare(app, [])
    conn = db.connect()
    with working(app):
        for n in range(5):
            until_idle(conn)
            assert app.enqueue(run, n).result(timeout=60) == n


@pytest.mark.usefixtures("without_polls")
def test_an_idle_worker_is_woken_also_when_the_connection_where_it_claims_was_lost(app: Durable, db: Database) -> None:
    run = declare(app, [])
    conn = db.connect()
    with working(app):
        for n in range(5):
            until_idle(conn)
            ended = value(
                conn,
                """select count(pg_terminate_backend(pid, 10000)) from pg_stat_activity
                   where datname = current_database() and application_name = 'durable control'""",
            )
            assert ended == 1
            assert app.enqueue(run, n).result(timeout=60) == n
            # And once more on the new connection.
            until_idle(conn)
            assert app.enqueue(run, n).result(timeout=60) == n


def test_what_is_committed_after_a_worker_lay_down_is_found_though_nobody_rings(
    app: Durable, db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("durable_client._worker.worker._POLL", 3600.0)
    run = declare(app, [])
    conn, other = db.connect(), db.connect()
    with ExitStack() as running:
        with conn.transaction():
            # Nobody is idle yet, so nobody is to be rung for.
            handle = app.enqueue(run, 1, conn=conn)
            running.enter_context(working(app))
            until_idle(other)
            # By then it has looked once more.
            time.sleep(0.2)
        assert handle.result(timeout=30) == 1


def test_a_workflow_claimed_ahead_does_not_run_in_the_context_of_another(app: Durable, db: Database) -> None:
    last: ContextVar[int | None] = ContextVar("last", default=None)

    @app.step
    async def note(n: int) -> int | None:
        seen = last.get()
        last.set(n)
        return seen

    @app.workflow
    async def run(ctx: AsyncContext, n: int) -> list[int | None]:
        seen = last.get()
        last.set(n)
        return [seen, await ctx.step(note, n)]

    # Enough for the worker to know that they end quickly.
    handles = app.enqueue_many(run, list(range(1500)))
    with working(app, concurrency=5):
        for n, handle in enumerate(handles):
            assert handle.result(timeout=60) == [None, n]


@pytest.mark.parametrize("plain", [False, True])
def test_a_run_whose_workflow_is_claimed_again_by_the_same_worker_is_stopped(
    app: Durable, db: Database, plain: bool
) -> None:
    began, told = threading.Event(), threading.Event()

    def wait_in_thread() -> None:
        began.set()
        while not current_step().interrupted:
            time.sleep(0.01)
        told.set()

    async def wait_on_loop() -> None:
        began.set()
        try:
            await asyncio.sleep(60)
        finally:
            told.set()

    async def run_on_loop(ctx: AsyncContext) -> str:
        if not began.is_set():
            await ctx.step(wait_on_loop)
        return "second"

    def run_in_thread(ctx: Context) -> str:
        if not began.is_set():
            ctx.step(wait_in_thread)
        return "second"

    workflow: Any = app.workflow(run_in_thread) if plain else app.workflow(run_on_loop)
    conn = db.connect()
    # No heartbeat tells the worker meanwhile.
    call(conn, "configure", "lease", "1 hour")
    with working(app):
        handle = app.enqueue(workflow)
        assert began.wait(30)
        # What a crash of Postgres does to a claim that has not reached the disk.
        conn.execute(
            "update durable.live_workflows"
            " set status = 'pending', lease = null, worker_id = null, ready_seq = nextval('durable.ready_seq')"
        )
        assert handle.result(timeout=30) == "second"
        assert told.wait(30)
    assert value(conn, "select count(*) from durable.workflow_steps") == 0


def test_completions_do_not_wait_behind_checkpoints_that_keep_coming(app: Durable) -> None:
    ended = threading.Event()

    @app.step
    async def produce() -> str:
        # So many under way fill flush after flush.
        return "x" * 1_000_000

    @app.workflow
    async def busy(ctx: AsyncContext) -> None:
        for _ in range(200):
            if ended.is_set():
                break
            await ctx.step(produce)

    @app.workflow
    async def short(ctx: AsyncContext) -> int:
        return 1

    with working(app):
        others = [app.enqueue(busy) for _ in range(30)]
        for _ in range(3):
            assert app.enqueue(short).result(timeout=30) == 1
        assert any(other.status() == "running" for other in others)
        ended.set()
        for other in others:
            other.result(timeout=30)


@pytest.mark.parametrize("options", [{"priority": 2**31}, {"priority": "high"}, {"max_attempts": 10**12}])
def test_numbers_that_postgres_cannot_take_are_refused_by_name(app: Durable, options: dict[str, Any]) -> None:
    run = declare(app, [])
    with pytest.raises(InvalidArgument, match=f"{next(iter(options))} must be an integer of at most 32 bits"):
        app.enqueue(run, 1, **options)


def test_a_worker_claims_nothing_ahead_of_slow_workflows(app: Durable, db: Database) -> None:
    release = threading.Event()

    @app.workflow
    def run(ctx: Context, n: int) -> int:
        if n < 0:
            release.wait(60)
        return n

    conn = db.connect()
    quick = app.enqueue_many(run, list(range(500)))
    with working(app, concurrency=5):
        for handle in quick:
            handle.result(timeout=60)
        time.sleep(0.5)
        slow = app.enqueue_many(run, [-1] * 20)
        running = "select count(*) from durable.live_workflows where status = 'running'"
        while value(conn, running) < 5:
            time.sleep(0.01)
        # Time to claim more than there are slots for.
        time.sleep(1)
        held = value(conn, running)
        release.set()
        for handle in slow:
            handle.result(timeout=60)
    assert held == 5


def test_the_defaults_of_a_workflow_are_those_of_its_declaration(app: Durable, db: Database) -> None:
    @app.workflow(queue="orders", max_attempts=7, timeout="1h", priority=3)
    async def run(ctx: AsyncContext) -> None: ...

    conn = db.connect()
    app.enqueue(run)
    app.enqueue(run, queue="q", max_attempts=2, timeout="5s", priority=0, tags={"tenant": "acme"})
    assert rows(
        conn, "select queue, max_attempts, timeout, priority, tags from durable.workflows order by queue desc"
    ) == [
        ("q", 2, timedelta(seconds=5), 0, {"tenant": "acme"}),
        ("orders", 7, timedelta(hours=1), 3, {}),
    ]


def test_01_the_same_key_is_one_workflow_for_all_who_enqueue(app: Durable) -> None:
    ran: list[int] = []
    run = declare(app, ran)

    async def enqueue() -> list[str]:
        handles = await asyncio.gather(*(app.aio.enqueue(run, 1, key="k") for _ in range(20)))
        many = await app.aio.enqueue_many(run, [1, 2, 3], keys=["k", None, "k"])
        await app.aio.close()
        return [handle.workflow_id for handle in (*handles, many[0], many[2])]

    with working(app):
        ids = asyncio.run(enqueue())
        assert len(set(ids)) == 1
        assert app.handle(ids[0]).result(timeout=30) == 1
        assert app.enqueue(run, 5, key="k").workflow_id == ids[0]
    assert sorted(ran) == [1, 2]


def test_a_workflow_without_its_input_runs_with_the_default_of_the_function(app: Durable) -> None:
    @app.workflow
    async def run(ctx: AsyncContext, n: int = 5) -> int:
        return n

    with working(app):
        assert app.enqueue(run).result(timeout=30) == 5


def test_no_input_is_given_to_a_workflow_that_takes_none(app: Durable) -> None:
    @app.workflow
    async def run(ctx: AsyncContext) -> int:
        return 1

    with pytest.raises(InvalidArgument, match="'run' takes no input"):
        app.enqueue(run, {"a": 1})
    with pytest.raises(InvalidArgument, match="'run' takes no input"):
        app.enqueue_many(run, [None, 1])
    assert app.enqueue_many(run, []) == []


def test_handles_ask_and_steer(app: Durable) -> None:
    fail = [True]

    @app.step
    async def pay(cents: int) -> int:
        if fail.pop():
            raise RuntimeError("no cover")
        return cents

    @app.workflow
    async def run(ctx: AsyncContext) -> int:
        await ctx.step(pay.options(name="check"), 1)
        return await ctx.step(pay, 2)

    fail[:] = [False, True, False]
    handle = app.enqueue(run)
    assert (handle.status(), handle.steps(), handle.retry()) == ("pending", [], False)
    with pytest.raises(TimeoutError, match="pending"):
        handle.result(timeout=0.01)
    with working(app):
        with pytest.raises(WorkflowFailed):
            handle.result(timeout=30)
        check, paid = handle.steps()
        assert (check.name, check.status, check.output, check.error, check.attempt) == (
            "check",
            "completed",
            1,
            None,
            1,
        )
        assert (paid.name, paid.status, paid.output) == ("pay", "error", None)
        assert paid.error is not None
        assert paid.error["message"] == "no cover"
        assert check.started_at is not None
        assert check.completed_at is not None
        assert check.started_at <= check.completed_at
        assert handle.retry()
        assert handle.result(timeout=30) == 2
        assert [step.status for step in handle.steps()] == ["completed", "completed"]
        assert (handle.cancel(), handle.retry(), handle.status()) == (False, False, "completed")
    assert handle.workflow_id in repr(handle)


def test_async_handles_ask_and_steer(app: Durable) -> None:
    @app.step
    async def pay(cents: int) -> int:
        return cents

    @app.workflow
    async def run(ctx: AsyncContext, cents: int) -> int:
        return await ctx.step(pay, cents)

    async def ask() -> None:
        pending = await app.aio.enqueue(run, 1, queue="elsewhere")
        assert await pending.cancel("no need")
        with pytest.raises(Exception, match="no need"):
            await pending.result()
        assert await pending.retry()
        assert await pending.status() == "pending"
        with pytest.raises(TimeoutError):
            await pending.result(timeout=0.01)
        handles = await app.aio.enqueue_many(run, [1, 2])
        assert await asyncio.gather(*(handle.result(timeout=30) for handle in handles)) == [1, 2]
        assert [step.output for step in await handles[1].steps()] == [2]
        assert await app.aio.handle(handles[0].workflow_id, run).result() == 1
        await app.aio.close()

    with working(app):
        asyncio.run(ask())


@pytest.mark.pg(18)
def test_threads_share_an_app(app: Durable, db: Database) -> None:
    run = declare(app, [])
    call(db.connect(), "configure", "lease", "5 seconds")
    with working(app):

        async def enqueue() -> list[int]:
            return await asyncio.gather(
                *(asyncio.to_thread(lambda n=n: app.enqueue(run, n).result(timeout=30)) for n in range(30))
            )

        assert asyncio.run(enqueue()) == list(range(30))


def test_those_who_ask_first_and_at_once_share_one_pool(app: Durable, db: Database) -> None:
    run = declare(app, [])
    conn = db.connect()
    # Not those whose end the server has still to notice: the connection that each client makes before its pool.
    sessions = """select count(*) from pg_stat_activity
      where datname = current_database() and pid <> pg_backend_pid() and query <> 'select durable.version()'"""

    async def enqueue() -> None:
        await asyncio.gather(*(app.aio.enqueue(run, n) for n in range(40)))
        assert 1 <= value(conn, sessions) <= 4
        await app.aio.close()

    asyncio.run(enqueue())
    # In another event loop, which the client makes new connections for.
    asyncio.run(enqueue())

    async def enqueue_in_threads() -> None:
        await asyncio.gather(*(asyncio.to_thread(app.enqueue, run, n) for n in range(40)))

    asyncio.run(enqueue_in_threads())
    assert 1 <= value(conn, sessions) <= 4
