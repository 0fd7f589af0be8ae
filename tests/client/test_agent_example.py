"""The example of examples/agent: killed amid its sentences, it pays for no token twice and makes each refund once."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys

import pytest

from clusters import ROOT, Database
from engine import rows, value


@pytest.mark.pg(15, 18)
def test_an_agent_that_is_killed_pays_for_no_token_twice(db: Database) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "examples.agent"], cwd=ROOT, env=os.environ | {"DURABLE_DSN": db.dsn},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "The worker was killed 3 times" in done.stdout
    assert "WRONG" not in done.stdout

    conn = db.connect()
    undisturbed, disturbed = rows(
        conn,
        "select t.workflow_id, w.output, w.attempt from demo_support.tickets t join durable.workflows w using (workflow_id)"
        " order by t.disturbed",
    )
    assert undisturbed.attempt == 1
    assert disturbed.attempt >= 2
    assert disturbed.output == undisturbed.output.replace("A-7", "A-8")
    paid = [
        [row.count for row in rows(conn, "select count(*) from demo_model.meter where request_id like %s"
                                         " group by request_id order by request_id", f"{ticket.workflow_id}/%")]
        for ticket in (undisturbed, disturbed)
    ]  # fmt: skip
    assert len(paid[0]) == 4
    assert paid[0] == paid[1]
    assert value(conn, "select count(*) from demo_model.requests where sent_again > 0") >= 1
    refunds = rows(conn, "select workflow_id, order_id, amount::text from demo_support.refunds order by order_id")
    assert [tuple(row) for row in refunds] == [
        (undisturbed.workflow_id, "A-7", "64.60"), (disturbed.workflow_id, "A-8", "64.60"),
    ]  # fmt: skip

    audit = (ROOT / "examples/agent/audit.sql").read_text()

    def complaints() -> set[str]:
        return {row.finding for row in rows(conn, audit) if row.expected not in (None, row.found)}

    assert complaints() == set()
    conn.execute("insert into demo_model.meter select * from demo_model.meter where request_id like %s and place = 3",
                 [f"{disturbed.workflow_id}/ask\\_model"])  # fmt: skip
    assert complaints() == {
        "tokens paid for in the run that was killed", "tokens paid for twice",
        "replies with another number of tokens than in the undisturbed run",
    }  # fmt: skip
    conn.execute("insert into demo_support.refunds select workflow_id, order_id, 1 from demo_support.refunds limit 1")
    assert {"tickets with exactly one refund", "refunds that nobody approved"} < complaints()


def test_the_readme_shows_the_agent_as_it_is() -> None:
    example = (ROOT / "examples/agent/support.py").read_text()
    (section,) = re.findall(r"^## An AI agent.*?(?=^## )", (ROOT / "README.md").read_text(), re.DOTALL | re.MULTILINE)
    (snippet,) = re.findall(r"^```python\n(.*?)^```$", section, re.DOTALL | re.MULTILINE)
    functions = [node for node in ast.parse(snippet).body if isinstance(node, ast.FunctionDef)]
    assert {function.name for function in functions} == {"ask_model", "answer", "send_money_back"}
    for function in functions:
        assert str(ast.get_source_segment(snippet, function)) in example
