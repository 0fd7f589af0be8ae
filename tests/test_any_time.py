"""The tests pass at any time: what hangs on the clock runs again at the ends of days, months and years, and at clock changes.

``make test AT="2028-02-29 00:20"`` runs all of them at a time of one's choice. Both go by ``tests/at``.
"""

from __future__ import annotations

import os
import subprocess
import sys
from datetime import datetime, timedelta, timezone

import pytest

from clusters import ROOT, Database
from engine import value

# Set by tests/at.
AT = os.environ.get("DURABLE_AT")
SELECTION = (
    # First, where midnight comes.
    "test_retention.py",
    "test_partitions.py",
    "test_schedules.py",
    "test_clock.py",
    "test_approvals.py::test_approvals_go_with_the_history_of_their_workflow_and_never_while_it_lives",
    "test_control.py::test_published_state_goes_with_its_workflow",
    "test_waiting.py::test_the_mail_of_a_completed_workflow_goes_after_a_while",
    "client/test_schedules.py::test_both_faces_of_the_client_steer_schedules",
)

if AT is None:

    @pytest.mark.timeout(900)
    @pytest.mark.parametrize(
        ("at", "zone", "version"),
        [
            # The end of a day, of a month and of a year pass in between.
            ("2027-12-31 23:59:40", "UTC", 18),
            ("2027-01-01 00:40", "UTC", 17),
            ("2028-02-28 23:59:40", "UTC", 16),
            ("2028-02-29 00:20", "UTC", 15),
            # And where the tests are, an hour that is not there, or that is there twice.
            ("2027-03-28 00:59:40", "Europe/Berlin", 17),
            ("2027-10-31 00:59:40", "Europe/Berlin", 18),
            ("2027-11-07 05:59:40", "America/New_York", 16),
        ],
    )
    def test_what_hangs_on_the_clock_passes_at(at: str, zone: str, version: int) -> None:
        check = "test_any_time.py::test_the_server_has_the_time_that_was_asked_for"
        command = [
            *(ROOT / "tests/at", at, sys.executable, "-m", "pytest", "-n", "0", "-p", "no:cacheprovider", "-q"),
            *("--pg", str(version), *(ROOT / "tests" / path for path in (check, *SELECTION))),
        ]
        environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST")}
        process = subprocess.Popen(
            command, env=environment | {"TZ": zone}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        try:
            output, _ = process.communicate()
        finally:
            # Stopped in the middle, it stops its servers.
            process.terminate()
            process.wait()
        # It fails when there was nothing to run, too.
        assert process.returncode == 0, output

else:

    def test_the_server_has_the_time_that_was_asked_for(db: Database) -> None:
        began = datetime.fromisoformat(str(AT)).replace(tzinfo=timezone.utc)
        now = value(db.connect(), "select now()")
        assert began <= now < began + timedelta(hours=2)
        assert timedelta(0) <= datetime.now(timezone.utc) - now < timedelta(hours=1)
