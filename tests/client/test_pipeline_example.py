"""The example of examples/pipeline: workers are killed, reads fail, a file is damaged, and the totals match to the cent."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from clusters import ROOT, Database
from engine import rows, value


@pytest.mark.pg(15, 18)
def test_files_are_added_exactly_once_while_workers_are_killed(db: Database) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "examples.pipeline", "--files=8"], cwd=ROOT, env=os.environ | {"DURABLE_DSN": db.dsn},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("SIGKILL") == 2
    assert "WRONG" not in done.stdout

    conn = db.connect()
    assert value(conn, "select count(*) from demo_sales.imports") == 7
    ((file, reason),) = rows(conn, "select file, reason from demo_sales.rejected")
    assert reason.startswith(f"{file}: ")
    assert value(conn, "select count(*) from durable.workflows where name = 'import_file' and status = 'failed'") == 1
    at_second = "select count(*) from durable.workflow_steps where step_name ~ 'read_chunk' and attempt = 2"
    assert value(conn, f"{at_second} and status = 'completed'") > 0
    source = value(
        conn,
        "select sum(split_part(line, ',', 3)::bigint) from demo_sales.source where file <> %s", file,
    )  # fmt: skip
    assert value(conn, "select sum(cents) from demo_sales.totals") == source

    audit = (ROOT / "examples/pipeline/audit.sql").read_text()

    def complaints() -> set[str]:
        return {row.finding for row in rows(conn, audit) if row.expected not in (None, row.found)}

    assert complaints() == set()
    conn.execute("update demo_sales.totals set cents = cents + 1 where article = 'dates'")
    assert complaints() == {"cents in the totals", "articles whose totals do not match the files"}
    conn.execute("insert into demo_sales.imports select * from demo_sales.imports limit 1")
    assert {"files added twice or more", "files added to the totals exactly once", "lines imported"} < complaints()
