"""A report that is written each night: what a user of durable writes."""

from __future__ import annotations

import time
from datetime import timedelta
from typing import Any
from zoneinfo import ZoneInfo

import psycopg
from durable_client import Context, Durable, Firing

app = Durable()
BERLIN = ZoneInfo("Europe/Berlin")


@app.step
def collect_sales(day: str) -> int:
    """Asks the tills; a busy day takes its time."""
    busy = sum(map(ord, day)) % 5 == 0
    time.sleep(2.5 if busy else 0.1)
    return 1000 + sum(map(ord, day))


def write_report(conn: psycopg.Connection[Any], day: str, cents: int) -> None:
    conn.execute("insert into demo_reports.reports (day, cents) values (%s, %s)", [day, cents])


# Half past two is skipped by the clock on one Sunday in spring, and repeated on one in autumn: one report each all the same.
@app.schedule("30 2 * * *", timezone="Europe/Berlin", catchup="6 hours", catchup_mode="last")
# The same in fast motion: each second is a night.
@app.schedule("1 second", name="nightly_report in fast motion", catchup="1 hour", catchup_mode="last")
@app.workflow
def nightly_report(ctx: Context, firing: Firing) -> str:
    # The time that it is due for, not the time at which it runs: the same one in a backfill a year later.
    day = (firing.due_at.astimezone(BERLIN) - timedelta(days=1)).date().isoformat()
    cents = ctx.step(collect_sales, f"{day} {firing.due_at.second}")
    ctx.transaction(write_report, day, cents)
    return f"{day}: {cents / 100:.2f}"
