"""The example of examples/nightly_report: skipped while one runs, missed in an outage, caught up with afterwards."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from clusters import ROOT, Database
from engine import rows, value


@pytest.mark.pg(18)
def test_the_nightly_report_skips_misses_and_catches_up(db: Database) -> None:
    conn = db.connect()
    began = value(conn, "select now()")
    done = subprocess.run(
        [sys.executable, "-m", "examples.nightly_report"], cwd=ROOT, env=os.environ | {"DURABLE_DSN": db.dsn},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Sun 29 Mar 03:00 CEST\nMon 30 Mar 02:30 CEST\nSun 25 Oct 02:30 CEST\nMon 26 Oct 02:30 CET\n" in done.stdout
    # Of the nights before; at half past two it is due by itself.
    found = rows(
        conn,
        """select distinct schedule, outcome::text from durable.schedule_firings
           where schedule = 'nightly_report' and due_at < %s""",
        began,
    )
    assert [tuple(row) for row in found] == [("nightly_report", "backfilled")]
    outcomes = rows(conn, "select distinct outcome from durable.schedule_firings where schedule ~ 'fast motion'")
    assert {row.outcome for row in outcomes} == {"missed", "fired", "skipped"}
    assert value(conn, "select count(*) from demo_reports.reports") >= 11
