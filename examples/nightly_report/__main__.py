"""A nightly report in fast motion: python -m examples.nightly_report"""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg

from ..database import DURABLE, database
from .report import BERLIN, app

HERE = Path(__file__).parent
NAME = "nightly_report"
FAST = "nightly_report in fast motion"

Connection = psycopg.Connection[tuple[Any, ...]]


def main() -> None:
    """Works on the database of DURABLE_DSN, or on an embedded Postgres that is thrown away afterwards."""
    with contextlib.ExitStack() as stack:
        dsn, directory = stack.enter_context(database("report"))
        conn = stack.enter_context(psycopg.connect(dsn, autocommit=True))
        conn.execute((HERE / "schema.sql").read_bytes())
        # For the outage below; the default is a minute.
        conn.execute("select durable.configure('schedule_grace', '500 milliseconds')")
        stack.callback(app.close)

        say("What a deploy does: apply the schedules that the program declares")
        for name, due in app.apply_schedules().items():
            print(f"{name}: next at {due}")
        app.client.pause_schedule(FAST, "until its scene begins")

        say("When it is due around the changes of the clock, 02:30 in Berlin")
        for change in ("2026-03-28 12:00", "2026-10-24 12:00"):
            after = datetime.fromisoformat(change).replace(tzinfo=BERLIN)
            for _ in range(2):
                query = "select durable.cron_next('30 2 * * *', %s, 'Europe/Berlin')"
                after = conn.execute(query, [after]).fetchall()[0][0].astimezone(BERLIN)
                print(after.strftime("%a %d %b %H:%M %Z"))

        say("A backfill of five nights, two at a time: first what it would do, then it is done")
        # Until noon of yesterday, for then there are five of them at whatever time this runs.
        end = datetime.now(BERLIN).replace(hour=12, minute=0, second=0, microsecond=0) - timedelta(days=1)
        for step in app.client.backfill_schedule(NAME, end - timedelta(days=5), end):
            print(f"{step.due_at.astimezone(BERLIN):%a %d %b %H:%M}  {step.action}")
        app.client.backfill_schedule(NAME, end - timedelta(days=5), end, dry_run=False, max_parallel=2)
        with worker(directory):
            wait_for(conn, "select count(*) >= 5 from demo_reports.reports")
            for day, cents in conn.execute("select day, cents from demo_reports.reports order by day").fetchall():
                print(f"{day}  {cents / 100:8.2f}")

            say("Fast motion: each second is a night; a report that takes longer lets the next ones be skipped")
            app.client.resume_schedule(FAST)
            fired = (
                f"select count(*) >= %s from durable.schedule_firings where schedule = '{FAST}' and outcome = 'fired'"
            )
            wait_for(conn, fired, 4)
            wait_for(conn, "select count(*) > 0 from durable.schedule_firings where outcome = 'skipped'")
        say(
            "No worker for four nights, so nobody ticks: the last one is made up for, the others are on record as missed"
        )
        time.sleep(4)
        with worker(directory):
            wait_for(
                conn, "select count(*) > 0 from durable.schedule_firings where reason = 'a later time was due as well'"
            )
            wait_for(conn, fired, 6)
            # The five of the backfill, and these: what has fired last may not have begun yet.
            wait_for(conn, "select count(*) >= 11 from demo_reports.reports")
        app.client.unschedule(FAST)
        app.client.unschedule(NAME)

        say("Why did it not run? select due_at, outcome, reason from durable.schedule_firings")
        query = "select due_at, outcome::text, coalesce(reason, '') from durable.schedule_firings where schedule = %s order by 1"
        for due, outcome, reason in conn.execute(query, [FAST]).fetchall():
            print(f"{due:%H:%M:%S}  {outcome:8} {reason}")


def say(text: str) -> None:
    print(f"\n{text}.", flush=True)


@contextlib.contextmanager
def worker(directory: Path) -> Iterator[None]:
    with (directory / "worker.log").open("a") as log:
        process = subprocess.Popen([DURABLE, "worker", "examples.nightly_report.report:app"], stderr=log)
        try:
            yield
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(30)


def wait_for(conn: Connection, query: str, *parameters: Any) -> None:
    give_up = time.monotonic() + 60
    while not conn.execute(query.encode(), parameters or None).fetchall()[0][0]:
        if time.monotonic() > give_up:
            sys.exit(f"This did not happen within a minute: {query}")
        time.sleep(0.05)


if __name__ == "__main__":
    main()
