"""What is refused at once, and how it is said."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Iterator
from datetime import datetime, timezone
from typing import Any

import durable_client
import psycopg
import pytest
from durable_client import (
    AsyncContext,
    Context,
    Durable,
    InvalidArgument,
    KeyConflict,
    Message,
    Retry,
    SchemaMismatch,
    Worker,
    WorkflowNotFound,
)

from client.workers import working
from clusters import Cluster, Database
from engine import value

pytestmark = pytest.mark.pg(18)


@pytest.fixture
def bare(cluster: Cluster) -> Iterator[str]:
    """The DSN of a database without the schema."""
    with cluster.connect() as conn:
        conn.execute("create database bare")
    yield cluster.dsn("bare")
    with cluster.connect() as conn:
        conn.execute("drop database bare with (force)")


def test_a_name_is_taken_once() -> None:
    app = Durable("")

    @app.workflow(name="fulfil")
    def first(ctx: Context) -> None: ...

    with pytest.raises(InvalidArgument, match="there is already a workflow 'fulfil'"):

        @app.workflow
        def fulfil(ctx: Context) -> None: ...


def test_workflows_take_a_context_and_at_most_one_input() -> None:
    app = Durable("")

    def nothing() -> None: ...
    def three(ctx: Context, a: int, b: int) -> None: ...
    def by_name(ctx: Context, *, a: int) -> None: ...
    def any_names(ctx: Context, **a: int) -> None: ...
    def only_names(*, ctx: Context) -> None: ...

    for wrong in (nothing, three, by_name, any_names, only_names):
        with pytest.raises(InvalidArgument, match=wrong.__name__):
            app.workflow(wrong)
    assert app.workflows == {}


def test_declarations_that_cannot_work_are_refused() -> None:
    app = Durable("")

    def body() -> None: ...

    for options in (
        {"name": "x" * 401}, {"name": "a\x00b"}, {"timeout": -1}, {"timeout": "soon"},
        {"timeout": float("nan")}, {"at_most_once": True, "retry": Retry(max_attempts=2)},
    ):  # fmt: skip
        with pytest.raises(InvalidArgument):
            app.step(**options)(body)  # type: ignore[call-overload]
    for policy in ({"max_attempts": 0}, {"backoff": 0.5}, {"initial": "-1s"}, {"max_delay": "long"}):
        with pytest.raises(InvalidArgument):
            Retry(**policy)  # type: ignore[arg-type]


def test_lambdas_need_a_name(app: Durable) -> None:
    @app.workflow
    async def run(ctx: AsyncContext) -> Any:
        return await ctx.step(lambda: 1)

    with working(app), pytest.raises(durable_client.WorkflowFailed, match="a step needs a name"):
        app.enqueue(run).result(timeout=30)


def test_a_worker_without_workflows_or_slots_is_refused(app: Durable) -> None:
    with pytest.raises(InvalidArgument, match="no workflows"):
        Worker(app)
    app.workflow(name="w")(lambda ctx: None)
    for options in ({"concurrency": 0}, {"transactions": 0}):
        with pytest.raises(InvalidArgument, match="at least 1"):
            Worker(app, **options)  # type: ignore[arg-type]


def test_a_worker_can_be_stopped_before_it_runs(app: Durable) -> None:
    @app.workflow
    def run(ctx: Context) -> None: ...

    Worker(app).stop()


def start_worker(app: Durable) -> None:
    """Runs a worker that is refused."""
    asyncio.run(asyncio.wait_for(Worker(app).run(), 30))


def test_without_a_dsn_the_error_says_where_to_put_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DURABLE_DSN", raising=False)
    with pytest.raises(InvalidArgument, match="Set DURABLE_DSN"):
        Durable().enqueue("w")


def test_a_wrong_dsn_is_reported_at_once(db: Database) -> None:
    app = Durable(db.dsn.replace(db.name, "nowhere"))
    with pytest.raises(psycopg.OperationalError, match="nowhere"):
        app.enqueue("w")

    @app.workflow
    def run(ctx: Context) -> None: ...

    with pytest.raises(psycopg.OperationalError):
        start_worker(app)


def test_a_database_without_the_schema_is_reported_with_the_remedy(bare: str) -> None:
    app = Durable(bare)

    @app.workflow
    def run(ctx: Context) -> None: ...

    with pytest.raises(SchemaMismatch, match="durable install"):
        app.enqueue("w")
    with pytest.raises(SchemaMismatch, match="durable install"):
        start_worker(app)
    with psycopg.connect(bare) as conn:
        durable_client.install(conn)
    with working(app):
        assert app.enqueue(run).result(timeout=30) is None
    with psycopg.connect(bare) as conn, pytest.raises(psycopg.errors.DuplicateSchema):
        durable_client.install(conn)
    app.close()


@pytest.mark.parametrize(
    ("installed", "older"), [("0.0.9", "schema"), ("0.2.0", "durable-client"), ("1.0.0", "durable-client")]
)
def test_a_schema_of_another_version_is_refused_and_the_older_side_named(
    app: Durable, db: Database, installed: str, older: str
) -> None:
    conn = db.connect()
    source = value(conn, "select pg_get_functiondef('durable.version()'::regprocedure)")
    conn.execute(source.replace(value(conn, "select durable.version()"), installed).encode())

    @app.workflow
    def run(ctx: Context) -> None: ...

    expected = f"(?s){installed}.*Upgrade (the )?{older}"
    with pytest.raises(SchemaMismatch, match=expected):
        app.enqueue("w")
    with pytest.raises(SchemaMismatch, match=expected):
        start_worker(app)


def test_a_schema_that_differs_in_the_last_number_fits(app: Durable, db: Database) -> None:
    conn = db.connect()
    source = value(conn, "select pg_get_functiondef('durable.version()'::regprocedure)")
    conn.execute(source.replace(value(conn, "select durable.version()"), "0.1.99").encode())
    assert app.enqueue("w").status() == "pending"


def test_a_schema_of_this_version_made_from_other_sources_is_told_of(
    app: Durable, db: Database, caplog: pytest.LogCaptureFixture
) -> None:
    assert app.enqueue("w").status() == "pending"
    assert caplog.messages == []
    conn = db.connect()
    source = value(conn, "select pg_get_functiondef('durable.build()'::regprocedure)")
    conn.execute(source.replace(value(conn, "select durable.build()"), "0123456789abcdef").encode())
    other = Durable(db.dsn)
    assert other.enqueue("w").status() == "pending"
    other.close()
    assert "0123456789abcdef" in caplog.text
    assert "from other sources" in caplog.text


def test_roles_with_the_granted_rights_can_enqueue_and_work(db: Database) -> None:
    conn = db.connect()
    for role in ("shop", "shop_worker"):
        conn.execute(f"do $$ begin create role {role} login; exception when duplicate_object then null; end $$")
    conn.execute("select durable.grant_client('shop'), durable.grant_worker('shop_worker')")
    client, worker = Durable(db.cluster.dsn(db.name, "shop")), Durable(db.cluster.dsn(db.name, "shop_worker"))

    @worker.workflow
    async def run(ctx: AsyncContext) -> int:
        return 1

    with working(worker):
        assert client.enqueue("run").result(timeout=30) == 1
    client.close()


def test_a_role_without_rights_is_told_which_one_is_missing(db: Database) -> None:
    db.connect().execute(
        "do $$ begin create role nobody_special login; exception when duplicate_object then null; end $$"
    )
    app = Durable(db.cluster.dsn(db.name, "nobody_special"))

    @app.workflow
    def run(ctx: Context) -> None: ...

    with pytest.raises(SchemaMismatch, match=r"grant_client|grant_worker"):
        app.enqueue("w")
    with pytest.raises(SchemaMismatch, match=r"grant_client|grant_worker"):
        start_worker(app)


def test_errors_of_the_schema_arrive_as_exceptions_with_detail_and_hint(app: Durable) -> None:
    app.enqueue("w", key="k")
    with pytest.raises(KeyConflict, match="belongs to workflow 'w'") as info:
        app.enqueue("other", key="k")
    assert info.value.detail
    assert info.value.hint
    missing = app.handle("01900000-0000-7000-8000-000000000000")
    for ask in (missing.status, missing.result, missing.cancel, missing.retry, missing.steps):
        with pytest.raises(WorkflowNotFound, match="01900000"):
            ask()
    for options in ({"priority": 99999}, {"max_attempts": 0}, {"timeout": 0}, {"queue": ""}, {"key": ""}):
        with pytest.raises(InvalidArgument, match="w"):
            app.enqueue("w", **options)
    with pytest.raises(InvalidArgument, match="2 inputs but 1 keys"):
        app.enqueue_many("w", [1, 2], keys=["a"])


def test_what_is_of_the_wrong_type_is_named_and_not_taken_for_a_missing_schema(db: Database) -> None:
    app: Any = Durable(db.dsn)

    @app.workflow
    def w(ctx: Context) -> None: ...

    @app.step
    def s() -> None: ...

    handle = app.enqueue(w)
    calls: list[tuple[str, Callable[[], Any]]] = [
        ("topic must be text, not 5", lambda: handle.send(5, 1)),
        ("key must be text, not 5", lambda: handle.send("t", 1, key=5)),
        ("event must be text, not 5", lambda: app.emit(5)),
        ("key must be text, not 5", lambda: app.enqueue(w, key=5)),
        ("queue must be text, not 5", lambda: app.enqueue(w, queue=5)),
        ("decision must be text, not True", lambda: app.decide(handle.workflow_id, True)),
        ("by must be text, not 5", lambda: app.decide(handle.workflow_id, "approved", by=5)),
        ("assignee must be text, not 5", lambda: app.approvals(assignee=5)),
        ("reason must be text, not 5", lambda: handle.pause(5)),
        ("reason must be text, not 5", lambda: handle.cancel(5)),
        ("'s' is not a workflow", lambda: app.enqueue(s)),
        ("is not a workflow", lambda: app.enqueue(len)),
        ("the name of a topic must be text, not None", lambda: Message(None)),  # type: ignore[arg-type]
        ("None is not a duration", lambda: Retry(initial=None)),  # type: ignore[arg-type]
    ]
    for message, refused in calls:
        with pytest.raises(InvalidArgument, match=re.escape(message)):
            refused()

    @app.workflow
    def slips(ctx: Any) -> list[str]:
        found = []
        for slip in (
            lambda: ctx.run(s),
            lambda: ctx.step(w),
            lambda: ctx.approval("send it?", assignee=["ada", "bob"]),
            lambda: ctx.approval("send it?", expires=datetime.now(timezone.utc)),
            lambda: ctx.set(5, 1),
            lambda: ctx.receive(5),
        ):
            with pytest.raises(InvalidArgument) as info:
                slip()
            found.append(info.value.message)
        return found

    with working(app):
        found = app.enqueue(slips).result(timeout=30)
    assert found[0] == "'s' is not a workflow"
    assert found[1] == "'w' is a workflow, not a step"
    assert found[2] == "assignee must be text, not ['ada', 'bob']"
    assert "is not a duration" in found[3]
    assert found[4:] == ["key must be text, not 5", "the name of a topic must be text, not 5"]
