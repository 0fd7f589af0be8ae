"""The pgTAP files of tests/sql, plpgsql_check over every function, pgspot over the scripts, and the isolation specs."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from clusters import ROOT, Cluster, Database, run
from engine import rows, value

pytestmark = pytest.mark.pg(15)

HERE = Path(__file__).parent
SPECS = sorted((HERE / "isolation/specs").glob("*.spec"))
FILES = sorted((HERE / "sql").glob("*.sql"))
ISOLATION_TESTER = "lib/pgxs/src/test/isolation/isolationtester"


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_pgtap(db: Database, file: Path) -> None:
    db.connect().execute("create extension pgtap")
    output = run(
        db.cluster.installation.tool("psql"), "-X", "-a", "-q", "-v", "ON_ERROR_STOP=1", "-d", db.dsn, "-f", str(file)
    )
    assert output == (HERE / f"expected/{file.stem}.out").read_text()


# What plpgsql_check says and is not so.
ACCEPTED = {
    # Both values are of reg… types, whose text form is quoted where it must be.
    "durable._grant(text,regrole)": "text type variable is not sanitized",
    # It makes a table.
    "durable._add_partition(text,date)": "routine is marked as VOLATILE, should be STABLE",
    # They lock rows, and see what was committed before each statement.
    "durable._first_in(durable.line_head[],integer,bigint,tid[])": "routine is marked as VOLATILE, should be STABLE",
    "durable._with_held_waits(uuid[])": "routine is marked as VOLATILE, should be STABLE",
    # To raise is its effect.
    "durable._raise(text,text,text,text)": "routine is marked as VOLATILE, should be IMMUTABLE",
    # pg_cron is not in this database.
    "durable.enable_pg_cron()": 'schema "cron" does not exist',
    "durable.disable_pg_cron()": 'relation "cron.job" does not exist',
    # It locks rows, and sees what was committed while it waited for them.
    "durable._lock_family(uuid,boolean)": "routine is marked as VOLATILE, should be STABLE",
    # Its loop has no other exit than RETURN.
    "durable._worker_id(text,text[])": "control reached end of function without RETURN",
}


def test_plpgsql_check_finds_nothing_in_any_function(db: Database) -> None:
    conn = db.connect()
    conn.execute("create extension plpgsql_check")
    found = rows(
        conn,
        """select p.oid::regprocedure::text as function, c.lineno, c.statement, c.level, c.sqlstate, c.message, c.detail
           from pg_proc p, plpgsql_check_function_tb(p.oid, other_warnings => true, extra_warnings => true,
             performance_warnings => true, security_warnings => true) c
           where p.pronamespace = 'durable'::regnamespace and p.prolang = (select oid from pg_language where lanname = 'plpgsql')
             and p.prorettype <> 'trigger'::regtype
           order by 1, 2""",
    )
    assert "\n".join(str(row) for row in found if ACCEPTED.get(row.function) != row.message) == ""


def for_pgspot(script: str) -> str:
    """The script with what pgspot cannot see for itself.

    Private functions have the search path of the public ones that call them, and only the owner may call them directly
    (tests/sql/roles.sql). Its parser does not know the types of the script.
    """

    def pinned(head: re.Match[str]) -> str:
        pin = "" if "set search_path" in head[1] else "\nset search_path = pg_catalog, pg_temp"
        return f"{head[1]}{pin}{head[2]}"

    script = re.sub(
        r"(create function durable\._(?:(?!create function).)*?)(\s+as \$\$)", pinned, script, flags=re.DOTALL
    )
    return re.sub(r"^(  v\w*) durable\.\w+(;| :=)", r"\1 record\2", script, flags=re.MULTILINE)


@pytest.mark.parametrize("script", ["durable--*.sql", "durable.sql"])
def test_pgspot_finds_nothing_in_the_install_scripts(cluster: Cluster, tmp_path: Path, script: str) -> None:
    (built,) = (ROOT / "build").glob(script)
    (tmp_path / "script.sql").write_text(for_pgspot(built.read_text()))
    # It commits, which a SET clause rules out, and qualifies all names instead.
    pinless = "durable._tick_for(period interval)"
    command = [sys.executable, "-m", "pgspot", "--proc-without-search-path", pinless, str(tmp_path / "script.sql")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.stdout.strip(), done.returncode) == ("Errors: 0 Warnings: 0 Unknown: 0", 0), done.stderr


def test_every_sql_function_can_be_planned(db: Database) -> None:
    conn = db.connect()
    functions = rows(
        conn,
        """select p.oid::regprocedure::text, pg_get_functiondef(p.oid) from pg_proc p
           where p.pronamespace = 'durable'::regnamespace and p.prolang = (select oid from pg_language where lanname = 'sql')""",
    )
    assert functions
    for name, definition in functions:
        with conn.transaction(force_rollback=True):
            # CREATE FUNCTION checks the body of a SQL function, now that everything it names is there.
            conn.execute("set local check_function_bodies = on")
            conn.execute(definition.encode())
        assert value(conn, "select to_regprocedure(%s) is not null", name)


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.stem)
def test_isolation(db: Database, spec: Path) -> None:
    tester = db.cluster.installation.bin.parent / ISOLATION_TESTER
    with spec.open() as script:
        done = subprocess.run([tester, db.dsn], stdin=script, capture_output=True, text=True, timeout=100, check=False)
    assert done.stdout + done.stderr == (HERE / f"isolation/expected/{spec.stem}.out").read_text()


def test_make_installcheck_passes(cluster: Cluster) -> None:
    run(
        "make", "-C", str(ROOT), "installcheck", f"PG_CONFIG={cluster.installation.tool('pg_config')}",
        f"PGHOST={cluster.sockets}", "PGUSER=postgres", "PGPORT=5432",
    )  # fmt: skip
