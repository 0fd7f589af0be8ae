"""Defaults of a role or a database, and encodings, that change how a session reads, writes and waits."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import psycopg
import pytest
from durable_client import AsyncContext, Context, Durable, Firing, WorkflowFailed

from client.workers import TESTS, working
from clusters import Database
from engine import rows, value, wait_until

pytestmark = pytest.mark.pg(15, 18)

# How a session shows values.
FORMATS = {
    "datestyle": "German, DMY",
    "intervalstyle": "iso_8601",
    "timezone": "Asia/Kathmandu",
    "bytea_output": "escape",
    "extra_float_digits": "-15",
    "client_encoding": "LATIN1",
    "search_path": "shadow, pg_catalog",
    "array_nulls": "off",
}
# What a session may do, and for how long.
LIMITS = {
    "default_transaction_isolation": "serializable",
    "default_transaction_read_only": "on",
    "statement_timeout": "2s",
    "lock_timeout": "20ms",
    "idle_in_transaction_session_timeout": "2s",
    "idle_session_timeout": "300ms",
}


def odd(db: Database, settings: dict[str, str], name: str = "odd") -> str:
    """A DSN of a role that has these settings, and types of its own in the way of those of Postgres."""
    role = f"{name}_{db.name}"
    conn = db.connect()
    conn.execute("create schema if not exists shadow")
    for kind in ("text", "uuid", "jsonb", "int8", "int4", "float8", "bool", "interval"):
        conn.execute(
            f"""do $$ begin
                  if to_regtype('shadow.{kind}') is null then
                    create domain shadow.{kind} as pg_catalog.{kind} check (false);
                  end if;
                end $$""".encode()
        )
    conn.execute(f"create role {role} superuser login".encode())
    for setting, to in settings.items():
        # A list of schemas is not one name.
        quoted = to if setting == "search_path" else f"'{to}'"
        conn.execute(f"alter role {role} set {setting} = {quoted}".encode())
    return db.cluster.dsn(db.name, role)


@pytest.fixture(autouse=True)
def drop_roles(db: Database) -> Iterator[None]:
    yield
    conn = db.connect()
    for (role,) in rows(conn, "select rolname from pg_roles where rolname like '%%' || current_database()"):
        conn.execute(f"drop role {role}".encode())


def declare(app: Durable) -> None:
    @app.step
    async def one() -> float:
        return 1.25

    async def book(conn: psycopg.AsyncConnection[Any], n: int) -> str:
        await conn.execute("insert into public.bookings values (%s)", [n])
        row = await (await conn.execute("select pg_catalog.current_setting('datestyle')")).fetchone()
        assert row is not None
        return str(row[0])

    def book_plain(conn: psycopg.Connection[Any], n: int) -> str:
        conn.execute("insert into public.bookings values (%s)", [n])
        row = conn.execute("select pg_catalog.current_setting('datestyle')").fetchone()
        assert row is not None
        return str(row[0])

    @app.workflow
    async def run(ctx: AsyncContext, n: int) -> list[Any]:
        now = await ctx.now()
        await ctx.set("where", "€")
        await ctx.sleep(0.01)
        got = await ctx.receive("topic")
        child = await ctx.run(other, n)
        return [await ctx.step(one), await ctx.transaction(book, n), got, child, now.isoformat()]

    @app.workflow
    def other(ctx: Context, n: int) -> str:
        return ctx.transaction(book_plain, n) + " €"

    @app.workflow
    def fails(ctx: Context) -> None:
        raise RuntimeError("no €")

    @app.schedule("0 3 * * *", name="nightly")
    @app.workflow
    def nightly(ctx: Context, firing: Firing) -> str:
        return firing.due_at.isoformat()


def test_what_is_read_does_not_depend_on_how_a_session_shows_it(db: Database) -> None:
    conn = db.connect()
    conn.execute("create table bookings (n int)")
    app = Durable(odd(db, FORMATS))
    declare(app)
    try:
        with working(app):
            handle, failing = app.enqueue("run", 1), app.enqueue("fails")
            assert handle.send("topic", "ü €")
            one, style, got, child, now = handle.result(timeout=30)
            # The SQL of users has the settings of their role.
            assert (one, style, got, child) == (1.25, "German, DMY", "ü €", "German, DMY €")
            assert abs(datetime.fromisoformat(now) - datetime.now(timezone.utc)) < timedelta(minutes=5)
            with pytest.raises(WorkflowFailed, match="no €"):
                failing.result(timeout=30)
            assert handle.state() == {"where": "€"}
            due = app.apply_schedules()["nightly"]
            assert due is not None
            assert due.utcoffset() == timedelta(0)
            assert due.hour == 3
            assert app.client.next_firings("nightly", 1) == [due]
            assert app.client.trigger_schedule("nightly").result(timeout=30)
            steps = handle.steps()
            assert all(step.completed_at and step.completed_at.utcoffset() == timedelta(0) for step in steps)
            workflow_id = handle.workflow_id

            async def ask() -> Any:
                result = await app.aio.handle(workflow_id).result()
                await app.aio.close()
                return result

            assert asyncio.run(ask()) == handle.result()
    finally:
        app.close()
    for command in (["show", handle.workflow_id], ["list"], ["schedule", "list"], ["schedule", "show", "nightly"],
                    ["approvals"]):  # fmt: skip
        for style in ([], ["--output", "json"]):
            shown = [
                subprocess.run(
                    [str(Path(sys.executable).with_name("durable")), *command, *style],
                    check=False, env=os.environ | {"DURABLE_DSN": dsn}, capture_output=True, text=True,
                )
                for dsn in (app.dsn, db.dsn)
            ]  # fmt: skip
            assert shown[0].returncode == 0, shown[0].stdout + shown[0].stderr
            if style:
                assert shown[0].stdout == shown[1].stdout


@pytest.mark.parametrize("isolation", ["serializable", "repeatable read"])
def test_a_worker_works_within_the_limits_of_its_role(
    db: Database, isolation: str, caplog: pytest.LogCaptureFixture
) -> None:
    conn = db.connect()
    conn.execute("create table bookings (n int)")
    newer = {"transaction_timeout": "2s"} if db.version >= 17 else {}
    worker = Durable(odd(db, LIMITS | newer | {"default_transaction_isolation": isolation}))
    asking = Durable(odd(db, {"idle_session_timeout": "100ms"}, "asking"))

    @worker.step
    def wait() -> None:
        time.sleep(0.7)

    def book(conn: psycopg.Connection[Any], n: int) -> str:
        conn.execute("insert into bookings values (%s)", [n])
        row = conn.execute("show transaction_isolation").fetchone()
        assert row is not None
        return str(row[0])

    @worker.workflow
    def run(ctx: Context, n: int) -> str:
        ctx.step(wait)
        ctx.sleep(0.01)
        return ctx.transaction(book, n)

    with working(worker, concurrency=5):
        first = asking.enqueue("run", 0)
        assert first.result(timeout=30) == isolation
        # A connection of the pool may have lain idle for longer than it may.
        time.sleep(0.3)
        handles = asking.enqueue_many("run", list(range(1, 11)))
        assert [handle.result(timeout=60) for handle in handles] == [isolation] * 10
        found = rows(
            conn,
            """select count(*) as sessions, count(distinct pid) as backends from pg_stat_activity
               where datname = current_database() and application_name in
                 ('durable control', 'durable writer', 'durable session')""",
        )
        assert found == [(4, 4)]
    asking.close()
    assert value(conn, "select array_agg(n order by n) from bookings") == list(range(11))
    assert value(conn, "select sum(crashes) + sum(failures) from durable.workflows") == 0
    # None of its sessions was ended for lying idle.
    assert "its session is lost" not in caplog.text
    assert "cannot be reached" not in caplog.text
    assert " failed: " not in caplog.text


def test_days_are_dropped_beside_a_default_that_is_not_read_committed(db: Database) -> None:
    conn = db.connect()
    app = Durable(odd(db, LIMITS))

    @app.workflow
    def run(ctx: Context) -> None: ...

    conn.execute(
        "select durable._provision_partitions((now() at time zone 'UTC')::date - 40, (now() at time zone 'UTC')::date - 38)"
    )
    old = """select count(*) from pg_class where relnamespace = 'durable'::regnamespace and relkind = 'r'
             and relname ~ '_[0-9]{8}$'
             and to_date(right(relname, 8), 'YYYYMMDD') < (now() at time zone 'UTC')::date - 35"""
    assert value(conn, old) > 0
    with working(app):
        wait_until(conn, f"select ({old}) = 0")


# Encodings


def test_the_encoding_of_the_environment_changes_nothing(db: Database, tmp_path: Path) -> None:
    program = f"""
import asyncio, json, sys
sys.path.insert(0, {str(TESTS)!r})
from client.workers import working
from durable_client import Context, Durable
app = Durable({db.dsn!r})
@app.workflow
def run(ctx: Context, text: str) -> str:
    return text + "€"
with working(app):
    print(json.dumps(app.enqueue(run, "日本 ").result(timeout=30)))
app.close()
"""
    done = subprocess.run(
        [sys.executable, "-c", program],
        check=False,
        env=os.environ | {"PGCLIENTENCODING": "LATIN1"},
        capture_output=True,
        text=True,
    )
    assert json.loads(done.stdout or done.stderr) == "日本 €"
