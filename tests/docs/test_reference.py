"""What the documentation says of the schema, the client and the command is what they say of themselves."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest

from clusters import ROOT, Database
from engine import value

FIGURE = re.compile(r"`(\w+)` \((\d[^)]*)\)")


def check(*command: str, **environment: str) -> None:
    done = subprocess.run(
        [sys.executable, *command, "--check"],
        cwd=ROOT,
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout


@pytest.mark.pg(15)
def test_the_sql_reference_is_up_to_date(db: Database) -> None:
    check("docs/generate_sql_reference.py", DURABLE_DSN=db.dsn)


def test_the_python_reference_is_up_to_date() -> None:
    check("docs/generate_python_reference.py")


def test_the_cli_reference_is_up_to_date() -> None:
    check("docs/generate_cli_reference.py")


def test_the_page_of_the_benchmarks_is_that_of_the_results_that_it_names() -> None:
    named = re.search(r"\]\(\.\./(benchmarks/results/[^)]+\.json)\)", (ROOT / "docs/benchmarks.md").read_text())
    assert named is not None
    check("-m", "benchmarks", "publish", named[1])


@pytest.mark.pg(15)
@pytest.mark.parametrize("document", ["docs/guarantees.md", "docs/operations.md", "docs/concepts.md"])
def test_figures_beside_the_names_of_settings_are_their_defaults(db: Database, document: str) -> None:
    conn = db.connect()
    figures = FIGURE.findall(" ".join((ROOT / document).read_text().split()))
    assert figures
    for name, figure in figures:
        same = "select default_value::interval = %s::interval" if " " in figure else "select default_value = %s"
        assert value(conn, f"{same} from durable.settings where name = %s", figure, name), (
            name,
            figure,
        )


@pytest.mark.pg(15)
def test_the_page_on_operations_names_every_setting(db: Database) -> None:
    text = (ROOT / "docs/operations.md").read_text()
    with db.connect() as conn:
        names = [name for (name,) in conn.execute("select name from durable.settings order by name")]
    assert names
    assert [name for name in names if f"`{name}` (" not in text] == []


def test_the_page_on_locks_names_every_public_function(db: Database) -> None:
    page = (ROOT / "docs/locks.md").read_text()
    names = value(
        db.connect(),
        "select array_agg(distinct proname::text) from pg_proc where pronamespace = 'durable'::regnamespace and proname !~ '^_'",
    )
    assert [name for name in sorted(names) if f"`{name}`" not in page] == []


def test_every_error_code_is_documented() -> None:
    raised = set(re.findall(r"'(WF\d{3})'", "".join(path.read_text() for path in (ROOT / "sql").rglob("*.sql"))))
    raised |= set(re.findall(r'code = "(WF\d{3})"', (ROOT / "python_client/src/durable_client/_errors.py").read_text()))
    documented = set(re.findall(r"^\| `(WF\d{3})`", (ROOT / "docs/errors.md").read_text(), re.MULTILINE))
    assert raised == documented
