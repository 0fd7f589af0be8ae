"""Errors that say nothing about what was asked: they are waited out, and nothing is held against an item."""

from __future__ import annotations

import inspect
import logging
import threading
import time
from pathlib import Path
from typing import Any

import psycopg
import pytest
from durable_client import AsyncContext, Context, Durable, Retry, SchemaMismatch, WorkflowFailed, current_step
from durable_client._client.link import passes

from client.test_starting import started
from client.trouble import Replaced, refusals, refusing
from client.workers import working
from clusters import Database
from engine import Connection, call, rows, value, wait_until
from pgbouncer import PgBouncer

pytestmark = pytest.mark.pg(15)

STATES = sorted(
    {
        error.sqlstate
        for _, error in inspect.getmembers(psycopg.errors, inspect.isclass)
        if issubclass(error, psycopg.Error) and isinstance(error.sqlstate, str)
    }
)
# What the documentation of Postgres says of them has nothing to do with the values of a statement.
PASSING = [
    state
    for state in STATES
    if (state[:2] in ("40", "53", "58") and state != "40002") or state in ("55P03", "57014")
]  # fmt: skip
LOST = [state for state in STATES if state.startswith(("08", "57P"))]


def test_the_states_that_pass_are_those_that_say_nothing_of_a_value() -> None:
    assert {"40001", "40P01", "53100", "53200", "53300", "55P03", "57014", "58030"} <= set(PASSING)
    assert [state for state in STATES if passes(state) and not state.startswith("72")] == PASSING
    assert not any(passes(state) for state in STATES if state[:2] in ("22", "23", "42", "54", "XX"))


def declare(app: Durable, ran: list[Any]) -> None:
    @app.step
    async def count(n: int) -> int:
        ran.append(("count", n))
        return n

    @app.step(retry=Retry(max_attempts=2, initial="1ms"))
    async def flaky(n: int) -> int:
        ran.append(("flaky", n))
        if current_step().attempt == 1:
            raise RuntimeError("once")
        return n

    @app.step(at_most_once=True)
    def once(n: int) -> int:
        ran.append(("once", n))
        return n

    def book(conn: psycopg.Connection[Any], n: int) -> int:
        conn.execute("insert into bookings values (%s)", [n])
        return n

    @app.workflow
    async def run(ctx: AsyncContext, n: int) -> int:
        await ctx.set("n", n)
        total = await ctx.step(count, n) + await ctx.step(flaky, n) + await ctx.step(once, n)
        await ctx.sleep(0.01)
        return total + await ctx.transaction(book, n)

    @app.workflow
    def fail(ctx: Context, n: int) -> None:
        raise RuntimeError(f"on purpose {n}")


def test_no_refusal_that_passes_fails_anything_or_runs_anything_again(app: Durable, db: Database) -> None:
    ran: list[Any] = []
    declare(app, ran)
    conn = db.connect()
    conn.execute("create table bookings (n int)")
    call(conn, "configure", "lease", "3 seconds")
    for function in ("claim", "idle", "heartbeat", "attach", "tick", "flush", "fail_many", "start_step", "fail_step",
                     "publish", "wait_many", "begin_step"):  # fmt: skip
        refusing(conn, function, PASSING + ([] if function in ("heartbeat", "attach") else LOST))
    # After the body, in its transaction, there is no way but to run it again.
    refusing(conn, "checkpoint_many", PASSING)
    count = 2 * (len(PASSING) + len(LOST)) // 3 + 3
    runs = app.enqueue_many("run", list(range(count)))
    failing = app.enqueue_many("fail", list(range(count)))
    with working(app, concurrency=10):
        assert [handle.result(timeout=90) for handle in runs] == [4 * n for n in range(count)]
        for n, handle in enumerate(failing):
            with pytest.raises(WorkflowFailed, match=f"on purpose {n}"):
                handle.result(timeout=90)
        # A session whose heartbeat was refused keeps its lock, and its leases.
        assert value(conn, "select count(*) from durable.workers where died_at is not null") == 0
        for function in ("flush", "start_step", "fail_step", "publish", "begin_step", "checkpoint_many"):
            assert refusals(conn, function) > len(PASSING), function
    assert sorted(ran) == sorted([(name, n) for n in range(count) for name in ("count", "flaky", "flaky", "once")])
    assert value(conn, "select array_agg(n order by n) from bookings") == list(range(count))
    assert value(conn, "select sum(crashes) from durable.workflows") == 0
    assert value(conn, "select sum(failures) from durable.workflows") == count


def refused(caplog: pytest.LogCaptureFixture, times: int) -> None:
    """Returns when Postgres was said to refuse so often."""
    give_up = time.monotonic() + 60
    while caplog.text.count("Postgres refuses for the moment") < times:
        assert time.monotonic() < give_up, caplog.text
        time.sleep(0.02)


@pytest.mark.parametrize("table", ["live_workflows", "checkpoints"])
def test_what_is_locked_for_longer_than_anybody_waits_is_waited_for(
    app: Durable, db: Database, caplog: pytest.LogCaptureFixture, table: str
) -> None:
    conn = db.connect()
    conn.execute(f"alter database {db.name} set lock_timeout = '20ms'".encode())
    begun, gate = threading.Barrier(3), threading.Event()

    @app.step
    def wait(n: int) -> int:
        begun.wait(30)
        gate.wait(30)
        return n

    @app.workflow
    def run(ctx: Context, n: int) -> int:
        return ctx.step(wait, n)

    @app.workflow
    def fail(ctx: Context, n: int) -> None:
        begun.wait(30)
        gate.wait(30)
        raise RuntimeError("on purpose")

    @app.workflow
    def quick(ctx: Context, n: int) -> int:
        return n

    caplog.set_level(logging.DEBUG, logger="durable")
    with working(app, concurrency=2):
        handles = [app.enqueue(run, 1), app.enqueue(fail, 2)]
        begun.wait(30)
        with conn.transaction():
            conn.execute(f"lock table durable.{table} in exclusive mode".encode())
            gate.set()
            # More than ten, after which it used to give up.
            refused(caplog, 30)
        assert handles[0].result(timeout=30) == 1
        with pytest.raises(WorkflowFailed, match="on purpose"):
            handles[1].result(timeout=30)
        # No slot was lost.
        assert [handle.result(timeout=30) for handle in app.enqueue_many(quick, [3, 4, 5])] == [3, 4, 5]
    assert rows(conn, "select attempt, crashes from durable.workflows where name <> 'quick'") == [(1, 0)] * 2
    warnings = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert any("Postgres refuses for the moment" in record.getMessage() for record in warnings)
    assert "Postgres answers again" in caplog.text
    assert len(warnings) < 15


def test_a_worker_that_the_database_refuses_can_be_stopped(
    app: Durable, db: Database, caplog: pytest.LogCaptureFixture
) -> None:
    @app.workflow
    def run(ctx: Context) -> None: ...

    conn = db.connect()
    refusing(conn, "claim", ["53100"], passes=10**9)
    caplog.set_level(logging.DEBUG, logger="durable")
    with working(app):
        refused(caplog, 5)
        stopped = time.monotonic()
    assert time.monotonic() - stopped < 20


def test_behind_a_pooler_a_worker_copes_with_limits_that_it_cannot_lift(
    db: Database, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    conn = db.connect(options="-c statement_timeout=0 -c default_transaction_isolation=read\\ committed")
    conn.execute(f"alter database {db.name} set statement_timeout = '100ms'".encode())
    conn.execute(f"alter database {db.name} set default_transaction_isolation = 'serializable'".encode())
    pooler = PgBouncer(db.cluster, tmp_path, "transaction")
    app = Durable(pooler.dsn(db.dsn))
    begun, gate = threading.Barrier(11), threading.Event()

    @app.step
    def wait(n: int) -> int:
        begun.wait(30)
        gate.wait(30)
        return n

    @app.workflow
    def run(ctx: Context, n: int) -> int:
        return ctx.step(wait, n)

    caplog.set_level(logging.DEBUG, logger="durable")
    value(conn, "select count(durable.enqueue('run', to_jsonb(n))) from generate_series(1, 10) n")
    with working(app, drain=30):
        begun.wait(30)
        with conn.transaction():
            conn.execute("lock table durable.checkpoints, durable.live_workflows in exclusive mode")
            gate.set()
            refused(caplog, 20)
        wait_until(conn, "select count(*) = 10 from durable.workflows where status = 'completed'")
    app.close()
    pooler.close()
    assert value(conn, "select sum(crashes) + sum(failures) from durable.workflows") == 0


def test_an_error_that_ends_the_claim_loop_lets_what_runs_end(
    app: Durable, db: Database, caplog: pytest.LogCaptureFixture
) -> None:
    begun, gate = threading.Event(), threading.Event()

    @app.step
    def wait() -> int:
        begun.set()
        gate.wait(30)
        return 1

    @app.workflow
    def run(ctx: Context) -> int:
        return ctx.step(wait)

    @app.workflow
    async def fails(ctx: AsyncContext) -> None:
        await ctx.step(wait)
        raise RuntimeError("on purpose")

    @app.workflow
    async def quick(ctx: AsyncContext) -> None: ...

    conn = db.connect()
    handle, failing = app.enqueue(run), app.enqueue(fails)

    def work() -> None:
        with working(app, drain=30):
            assert begun.wait(30)
            conn.execute("alter function durable.claim rename to claim_no_more")
            app.enqueue("quick")
            while "cannot go on" not in caplog.text:
                time.sleep(0.01)
            gate.set()
            assert outcome(handle) == 1
            assert outcome(failing) == "on purpose"

    with pytest.raises(SchemaMismatch, match=r"durable\.claim"):
        work()
    assert value(conn, "select count(*) from durable.live_workflows where lease is not null") == 0


def test_an_error_that_ends_the_claim_loop_is_the_status_of_the_command(db: Database, tmp_path: Path) -> None:
    conn = db.connect()
    with started(db.dsn, tmp_path / "log") as worker:
        worker.wait_for("ready")
        conn.execute("alter function durable.claim rename to claim_no_more")
        assert worker.wait() == 1
        for text in ("cannot go on", "gave back 0 workflows", "Error: the schema durable is not installed"):
            assert text in worker.log()
        assert "Traceback" not in worker.log()


# A run never stays: it is reported, given back, or dropped when its lease is lost.


@pytest.fixture
def failing(app: Durable) -> Durable:
    @app.workflow(max_attempts=1)
    def fail(ctx: Context) -> None:
        raise RuntimeError("on purpose")

    @app.workflow
    def quick(ctx: Context) -> int:
        return 1

    return app


def wait_for_refusals(conn: Connection, function: str, times: int) -> None:
    wait_until(conn, f"select last_value >= {times} and is_called from trouble_{function}")


def test_a_failure_that_cannot_be_stored_is_given_back_and_run_again(failing: Durable, db: Database) -> None:
    conn = db.connect()
    refusing_failures = refusing(conn, "fail_many", ["22023", "54000", "XX000"], passes=10**9)
    refusing_release = refusing(conn, "release_many", ["22023", "XX000", "42501"], passes=10**9)
    handle = failing.enqueue("fail")
    with working(failing, concurrency=1):
        wait_for_refusals(conn, "release_many", 3)
        assert handle.status() == "running"
        refusing_release.put_back()
        # Given back, it is claimed again.
        wait_for_refusals(conn, "fail_many", 6)
        refusing_failures.put_back()
        with pytest.raises(WorkflowFailed, match="on purpose"):
            handle.result(timeout=30)
        assert failing.enqueue("quick").result(timeout=30) == 1


def test_a_failure_that_can_neither_be_stored_nor_given_back_ends_with_its_lease(
    failing: Durable, db: Database
) -> None:
    conn = db.connect()
    call(conn, "configure", "lease", "1 second")
    refusing(conn, "fail_many", ["XX000"], passes=10**9)
    refusing(conn, "release_many", ["XX000"], passes=10**9)
    handle = failing.enqueue("fail")
    with working(failing, concurrency=1):
        wait_for_refusals(conn, "release_many", 2)
        assert handle.cancel()
        assert failing.enqueue("quick").result(timeout=30) == 1


# Another transaction holds the row of a workflow: the others do not notice.

BUSY_FLUSH = """
  return query
  with free as materialized (
    select array_agg(n::integer order by n) as items, array_agg(id order by n) as ids,
      array_agg(complete_leases[n] order by n) as leases, array_agg(outputs[n] order by n) as outputs
    from unnest(complete_ids) with ordinality as i(id, n) where id not in (select h.id from public.held h))
  select r.kind, case r.kind when 'complete' then free.items[r.item] else r.item end, r.outcome, r.output, r.error
  from free, original.flush(checkpoint_ids, checkpoint_leases, step_names, step_outputs, step_attempts,
    step_elapsed_ms, coalesce(free.ids, '{}'), coalesce(free.leases, '{}'), coalesce(free.outputs, '{}')) r;
  return query
  select 'complete', n::integer, 'busy', null::jsonb, null::jsonb
  from unnest(complete_ids) with ordinality as i(id, n) where id in (select h.id from public.held h);
  return"""
BUSY_FAIL_MANY = """
  return query
  select n::integer, case when id in (select h.id from public.held h) then 'busy' else
    (select r.outcome from original.fail_many(array[id], array[leases[n]], array[errors[n]], null, array[retryable[n]]) r) end
  from unnest(workflow_ids) with ordinality as i(id, n) order by n;
  return"""


@pytest.fixture
def holding(app: Durable, db: Database) -> Durable:
    """An app on a database where the workflows of the table ``held`` are held by somebody."""
    conn = db.connect()
    conn.execute("create table held (id uuid)")
    Replaced(conn, "flush", BUSY_FLUSH)
    Replaced(conn, "fail_many", BUSY_FAIL_MANY)

    @app.step
    def one() -> int:
        return 1

    @app.workflow
    def succeed(ctx: Context) -> int:
        return ctx.step(one)

    @app.workflow
    async def fail(ctx: AsyncContext) -> int:
        raise RuntimeError(f"on purpose {await ctx.step(one)}")

    return app


def outcome(handle: Any) -> Any:
    try:
        return handle.result(timeout=30)
    except WorkflowFailed as error:
        return error.error["message"]


@pytest.mark.parametrize("name", ["succeed", "fail"])
def test_a_report_that_somebody_is_in_the_way_of_is_sent_again_and_others_pass(
    holding: Durable, db: Database, name: str
) -> None:
    conn = db.connect()
    result = 1 if name == "succeed" else "on purpose 1"
    held = holding.enqueue_many(name, [None] * 3)
    conn.execute("insert into held select workflow_id from durable.live_workflows")
    others = holding.enqueue_many(name, [None] * 20)
    with working(holding, concurrency=5) as worker:
        assert [outcome(handle) for handle in others] == [result] * 20
        assert [outcome(handle) for handle in holding.enqueue_many(name, [None] * 20)] == [result] * 20
        assert [handle.status() for handle in held] == ["running"] * 3
        conn.execute("truncate held")
        assert [outcome(handle) for handle in held] == [result] * 3
        while worker._runs:
            time.sleep(0.01)
    assert rows(conn, "select distinct attempt, crashes from durable.workflows") == [(1, 0)]


@pytest.mark.parametrize("name", ["succeed", "fail"])
def test_a_report_that_somebody_is_in_the_way_of_is_given_up_with_the_lease(
    holding: Durable, db: Database, name: str
) -> None:
    conn = db.connect()
    call(conn, "configure", "lease", "1 second")
    held = holding.enqueue(name)
    conn.execute("insert into held select workflow_id from durable.live_workflows")
    with working(holding) as worker:
        wait_until(conn, "select exists (select from durable.workflow_steps)")
        assert held.cancel()
        give_up = time.monotonic() + 30
        while worker._runs:
            assert time.monotonic() < give_up
            time.sleep(0.01)


def test_a_report_that_somebody_is_in_the_way_of_does_not_outlast_the_drain(holding: Durable, db: Database) -> None:
    conn = db.connect()
    held = [holding.enqueue("succeed"), holding.enqueue("fail")]
    conn.execute("insert into held select workflow_id from durable.live_workflows")
    with working(holding, drain=0.1):
        wait_until(conn, "select count(*) = 2 from durable.workflow_steps")
    assert [handle.status() for handle in held] == ["pending"] * 2


def test_what_steps_say_of_a_workflow_that_somebody_holds_lets_others_pass(app: Durable, db: Database) -> None:
    begun, gate = threading.Barrier(4), threading.Event()

    @app.step(at_most_once=True)
    def once() -> int:
        return 1

    @app.step(retry=Retry(max_attempts=2, initial="1ms"))
    def flaky() -> int:
        if current_step().attempt == 1:
            raise RuntimeError("once")
        return 2

    @app.step
    def wait() -> None:
        begun.wait(30)
        gate.wait(30)

    @app.workflow
    def run(ctx: Context, n: int) -> int:
        ctx.step(wait)
        if n == 1:
            return ctx.step(once)
        if n == 2:
            return ctx.step(flaky)
        ctx.set("n", n)
        return n

    @app.workflow
    def quick(ctx: Context, n: int) -> int:
        return ctx.step(once) + n

    conn = db.connect()
    with working(app):
        handles = app.enqueue_many(run, [1, 2, 3])
        begun.wait(30)
        with conn.transaction():
            # As a cancellation does whose transaction is still open.
            conn.execute("select from durable.live_workflows for update")
            gate.set()
            assert [handle.result(timeout=30) for handle in app.enqueue_many(quick, list(range(20)))] == list(
                range(1, 21)
            )
            assert {handle.status() for handle in handles} == {"running"}
        assert [handle.result(timeout=30) for handle in handles] == [1, 2, 3]


@pytest.mark.parametrize("odd", ["half \ud800", "nul \0"])
def test_one_item_that_cannot_be_sent_fails_alone(app: Durable, odd: str) -> None:
    barrier = threading.Barrier(12)

    @app.step
    def step(n: int) -> str:
        barrier.wait(30)
        return odd if n == 5 else "even"

    @app.workflow
    def run(ctx: Context, n: int) -> str:
        ctx.step(step, n)
        return odd if n == 6 else "even"

    with working(app):
        outcomes = [outcome(handle) for handle in app.enqueue_many(run, list(range(12)))]
    for n in (6, 5):
        assert "cannot be s" in outcomes.pop(n)
    assert outcomes == ["even"] * 10
