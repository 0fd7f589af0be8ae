"""Schedules as a program declares them, applies them at a deploy, and steers them from the command line."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import psycopg
import pytest
from durable_client import BackfillStep, Context, Durable, Firing, InvalidArgument, Schedule

from client.journal import PATIENCE
from clusters import Database
from engine import rows, value

pytestmark = pytest.mark.pg(15, 18)

UTC = timezone.utc
NOW = datetime.now(UTC)
# Half a year and some hours from now, so that nothing falls due while the tests run.
MONTH = (NOW.month + 5) % 12 + 1
HOUR = 2 if 6 <= NOW.hour < 18 else 14
DURABLE = str(Path(sys.executable).with_name("durable"))
SHOP = f"""
from datetime import timedelta
from durable_client import AsyncContext, Context, Durable, Firing

app = Durable()


@app.schedule("1 second", name="often", overlap="allow")
@app.schedule("0 {HOUR} * * *", name="nightly", timezone="Europe/Berlin", catchup="6 hours", catchup_mode="last", jitter="5m")
@app.workflow(queue="reports", max_attempts=3, timeout="1h", priority=2)
def report(ctx: Context, firing: Firing) -> str:
    assert firing.due_at.utcoffset() == timedelta(0)
    return f"{{firing.schedule}} {{firing.due_at:%S}}"


@app.schedule("@hourly", input={{"region": "eu", "hour": "{{due_at}}"}}, tags={{"team": "a"}}, pause_on_failure=True)
@app.workflow
async def collect(ctx: AsyncContext, what: dict[str, str]) -> None: ...
"""


def declared(app: Durable) -> None:
    @app.schedule(f"0 0 1 {MONTH} *")
    @app.workflow
    def yearly(ctx: Context, firing: Firing) -> None: ...


@pytest.fixture
def durable(db: Database, tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    (tmp_path / "shop.py").write_text(SHOP)

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        env = os.environ | {"DURABLE_DSN": db.dsn}
        return subprocess.run([DURABLE, *arguments], env=env, cwd=tmp_path, capture_output=True, text=True, check=False)

    return run


def test_a_deploy_applies_what_is_declared_as_often_as_it_likes(
    durable: Callable[..., subprocess.CompletedProcess[str]], db: Database
) -> None:
    conn = db.connect()
    done = durable("schedule", "apply", "shop:app", "-o", "json")
    assert done.returncode == 0, done.stderr
    assert set(json.loads(done.stdout)) == {"often", "nightly", "collect"}
    before = rows(conn, "select name, cron, changed_at from durable.schedules order by name")
    assert durable("schedule", "apply", "shop:app").returncode == 0
    assert rows(conn, "select name, cron, changed_at from durable.schedules order by name") == before
    (nightly,) = rows(conn, "select * from durable.schedules where name = 'nightly'")
    assert (nightly.cron, nightly.timezone, nightly.workflow, nightly.queue) == (
        f"0 {HOUR} * * *", "Europe/Berlin", "report", "reports",
    )  # fmt: skip
    assert (nightly.catchup, nightly.catchup_mode, nightly.jitter) == (timedelta(hours=6), "last", timedelta(minutes=5))
    assert (nightly.max_attempts, nightly.timeout, nightly.priority) == (3, timedelta(hours=1), 2)
    (collect,) = rows(conn, "select * from durable.schedules where name = 'collect'")
    assert (collect.input, collect.tags, collect.pause_on_failure) == (
        {"region": "eu", "hour": "{due_at}"}, {"team": "a"}, True,
    )  # fmt: skip


def test_a_worker_fires_schedules_and_their_workflows_know_their_due_time(
    durable: Callable[..., subprocess.CompletedProcess[str]], db: Database, tmp_path: Path
) -> None:
    conn = db.connect()
    assert durable("schedule", "apply", "shop:app").returncode == 0
    worker = subprocess.Popen([DURABLE, "worker", "shop:app"], env=os.environ | {"DURABLE_DSN": db.dsn}, cwd=tmp_path)
    try:
        deadline = time.monotonic() + PATIENCE
        while value(conn, "select count(*) from durable.workflows where status = 'completed'") < 3:
            assert time.monotonic() < deadline
            time.sleep(0.05)
    finally:
        worker.send_signal(signal.SIGTERM)
        assert worker.wait(PATIENCE) == 0
    found = rows(
        conn,
        """select w.output, f.due_at from durable.schedule_firings f join durable.workflows w using (workflow_id)
           where f.schedule = 'often' and w.status = 'completed'""",
    )
    assert found
    assert all(row.output == f"often {row.due_at:%S}" for row in found)


def test_schedules_are_steered_from_the_command_line(
    durable: Callable[..., subprocess.CompletedProcess[str]], db: Database
) -> None:
    def read(*arguments: str) -> Any:
        done = durable("schedule", *arguments, "-o", "json")
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    conn = db.connect()
    assert durable("schedule", "list").stdout == "There are no schedules.\n"
    assert read("list") == []
    read("apply", "shop:app")
    conn.execute("delete from durable.schedules where name = 'often'")
    assert [schedule["name"] for schedule in read("list")] == ["collect", "nightly"]
    assert read("pause", "nightly", "--reason", "the warehouse moves") == {"schedule": "nightly", "paused": True}
    shown = read("show", "nightly", "--limit", "3")
    assert shown["pause_reason"] == "the warehouse moves"
    assert len(shown["next"]) == 3
    assert datetime.fromisoformat(read("resume", "nightly")["next_at"]) > datetime.now(UTC)
    workflow_id = read("trigger", "nightly")["workflow_id"]
    (fired,) = read("show", "nightly")["firings_listed"]
    assert (fired["outcome"], fired["workflow_id"]) == ("triggered", workflow_id)

    span = ["--from", "2020-02-01T00:00Z", "--until", "2020-02-02T23:00Z"]
    plan = read("backfill", "nightly", *span)
    assert [(step["due_at"], step["action"]) for step in plan] == [
        (f"2020-02-01T{HOUR - 1:02}:00:00+00:00", "run"), (f"2020-02-02T{HOUR - 1:02}:00:00+00:00", "run"),
    ]  # fmt: skip
    assert value(conn, "select count(*) from durable.schedule_firings") == 1
    assert len(read("backfill", "nightly", *span, "--run", "--max-parallel", "2")) == 2
    assert value(conn, "select count(*) from durable.schedule_firings where outcome = 'queued'") == 2

    table = durable("schedule", "list").stdout
    assert "nightly" in table
    assert "active" in table
    page = durable("schedule", "show", "nightly").stdout
    assert f"0 {HOUR} * * *  (Europe/Berlin)" in page
    assert "its turn in the backfill has not come" in page
    assert "it waits to be started" in durable("schedule", "backfill", "nightly", *span, "--redo").stdout
    assert read("remove", "nightly") == {"schedule": "nightly", "removed": True}
    for command in ("remove", "show", "pause", "resume", "trigger"):
        done = durable("schedule", command, "nightly")
        assert done.returncode == 1
        assert "there is no schedule 'nightly'" in done.stderr


def test_both_faces_of_the_client_steer_schedules(app: Durable, db: Database) -> None:
    conn = db.connect()
    declared(app)
    begin, end, next_year = (datetime(NOW.year - (NOW.month < MONTH) + n, MONTH, 1, tzinfo=UTC) for n in (-1, 0, 1))
    assert app.apply_schedules() == {"yearly": next_year}
    assert app.client.pause_schedule("yearly", "why not")
    assert app.client.resume_schedule("yearly") == next_year
    assert app.client.next_firings("yearly", 1) == [next_year]
    assert app.client.trigger_schedule("yearly").status() == "pending"
    steps = app.client.backfill_schedule("yearly", begin, end)
    assert [step.action for step in steps] == ["run", "run"]
    assert isinstance(steps[0], BackfillStep)
    assert app.client.unschedule("yearly")
    assert not app.client.unschedule("yearly")

    async def steer() -> None:
        other = Schedule("other", "@hourly", "w", starts_at=next_year)
        assert await app.aio.apply_schedules([other]) == {"other": next_year}
        assert await app.aio.pause_schedule("other")
        assert await app.aio.resume_schedule("other") == next_year
        assert (await app.aio.next_firings("other", 2))[1] == next_year + timedelta(hours=1)
        assert await (await app.aio.trigger_schedule("other")).cancel()
        assert await app.aio.backfill_schedule("other", begin, begin + timedelta(minutes=59), dry_run=False)
        assert await app.aio.unschedule("other")
        await app.aio.close()

    asyncio.run(steer())
    assert value(conn, "select count(*) from durable.schedules") == 0


def test_schedules_are_applied_all_or_none_and_in_the_caller_s_transaction(app: Durable, db: Database) -> None:
    conn = db.connect()
    good, bad = Schedule("good", "@daily", "w"), Schedule("too bad", "0 0 31 2 *", "w")
    with pytest.raises(InvalidArgument, match="never falls due"):
        app.client.apply_schedules([good, bad])
    assert value(conn, "select count(*) from durable.schedules") == 0
    with psycopg.connect(db.dsn) as own:
        app.client.apply_schedules([good], conn=own)
        own.rollback()
    assert value(conn, "select count(*) from durable.schedules") == 0


def test_what_cannot_be_declared(app: Durable) -> None:
    declared(app)

    @app.workflow
    def plain(ctx: Context) -> None: ...

    with pytest.raises(InvalidArgument, match="already a schedule 'yearly'"):
        app.schedule("@daily", name="yearly")(plain)
    with pytest.raises(InvalidArgument, match="no workflow"):
        app.schedule("@daily")(lambda: None)  # type: ignore[arg-type]
    with pytest.raises(InvalidArgument, match="takes no input"):
        app.client.apply_schedules([Schedule("s", "@daily", plain, input=1)])
    with pytest.raises(InvalidArgument, match="no time zone"):
        app.client.apply_schedules([Schedule("s", "@daily", plain, starts_at=datetime(2030, 1, 1))])
    with pytest.raises(InvalidArgument, match="no time zone"):
        app.client.backfill_schedule("s", datetime(2030, 1, 1), datetime.now(UTC))
