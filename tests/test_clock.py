"""One clock: the engine reads the time through durable._now() and nowhere else."""

from __future__ import annotations

import ast
import re

import pytest

from clusters import ROOT, Database
from engine import Connection, advance, call, claim, claim_one, enqueue, rows, steps, value, workflow

# Where a body names what tells a time and does not read the clock by it, and why.
ACCEPTED = {
    # The age of a transaction, in transactions.
    "durable._check_vacuum(timestamp with time zone)": "age(",
    # When the server started is a fact like any other that is stored; it is compared with the clock.
    "durable._bury_workers()": "pg_postmaster_start_time(",
}
CLIENT = ROOT / "python_client/src/durable_client"
KEYWORDS = ("current_date", "current_time", "current_timestamp", "localtime", "localtimestamp")

# Everything in the schema that contains an expression or a body: its name and its text.
TEXTS = """
  select p.oid::regprocedure::text, p.prosrc from pg_proc p
  where p.pronamespace = 'durable'::regnamespace and p.proname <> '_now'
  union all
  select c.oid::regclass::text, pg_get_viewdef(c.oid) from pg_class c
  where c.relnamespace = 'durable'::regnamespace and c.relkind in ('v', 'm')
  union all
  select d.adrelid::regclass || '.' || a.attname, pg_get_expr(d.adbin, d.adrelid) from pg_attrdef d
  join pg_class c on c.oid = d.adrelid and c.relnamespace = 'durable'::regnamespace
  join pg_attribute a on a.attrelid = d.adrelid and a.attnum = d.adnum
  union all
  select n.conname, pg_get_constraintdef(n.oid) from pg_constraint n where n.connamespace = 'durable'::regnamespace
  union all
  select i.indexrelid::regclass::text, pg_get_indexdef(i.indexrelid) from pg_index i
  join pg_class c on c.oid = i.indrelid and c.relnamespace = 'durable'::regnamespace
  union all
  select t.tgname, pg_get_triggerdef(t.oid) from pg_trigger t
  join pg_class c on c.oid = t.tgrelid and c.relnamespace = 'durable'::regnamespace where not t.tgisinternal
  union all
  select r.rulename, pg_get_ruledef(r.oid) from pg_rewrite r
  join pg_class c on c.oid = r.ev_class and c.relnamespace = 'durable'::regnamespace"""

# Functions of Postgres without an argument that return a time, or the text of one, and not always the same.
READERS = """
  select distinct p.proname from pg_proc p
  where p.pronamespace = 'pg_catalog'::regnamespace and p.pronargs = 0 and p.provolatile <> 'i'
    and (p.prorettype in ('timestamptz'::regtype, 'timestamp'::regtype, 'timetz'::regtype, 'time'::regtype, 'date'::regtype)
      or p.proname = 'timeofday')"""


def readings(conn: Connection, text: str) -> set[str]:
    """What of a text reads the clock."""
    functions = [row[0] for row in rows(conn, READERS)]
    assert {"now", "clock_timestamp", "statement_timestamp", "transaction_timestamp", "timeofday"} <= set(functions)
    text = re.sub(r"--.*", "", text.lower())
    return {
        *re.findall(rf"\b(?:{'|'.join(functions)})\s*\(", text),
        *re.findall(rf"\b(?:{'|'.join(KEYWORDS)})\b", text),
        *re.findall(r"'(?:now|today|tomorrow|yesterday)'", text),
        # With one argument it is the time since then.
        *re.findall(r"\bage\s*\(", text),
    }


def test_nothing_in_the_catalog_reads_another_clock(db: Database) -> None:
    conn = db.connect()
    texts = rows(conn, TEXTS)
    assert len(texts) > 300
    found = {name: readings(conn, text) - {ACCEPTED.get(name)} for name, text in texts}
    assert {name: clocks for name, clocks in found.items() if clocks} == {}


@pytest.mark.pg(15, 18)
@pytest.mark.parametrize(
    "text",
    [
        "select now()", "v := clock_timestamp ( )", "select statement_timestamp()", "current_timestamp", "CURRENT_DATE",
        "localtimestamp(3)", "timeofday()", "'now'::timestamptz", "'today'::date", "age(created_at)",
    ],
)  # fmt: skip
def test_each_way_of_reading_a_clock_is_recognized(db: Database, text: str) -> None:
    assert readings(db.connect(), f"{text} -- now()")


def test_the_client_reads_no_other_clock_of_the_database(db: Database) -> None:
    """The command shows ages and counts delays by the clock of the engine."""
    sources = [path for path in CLIENT.rglob("*.py") if "durable._now_in_view()" in path.read_text()]
    assert sources
    other = re.compile(r"(?<![\w.])(?:now|clock_timestamp|statement_timestamp|transaction_timestamp|current_\w+)\(\)")
    assert {path.name: other.findall(path.read_text()) for path in sources} == {path.name: [] for path in sources}
    for path in CLIENT.rglob("*.py"):
        assert not re.search(r"(?<!_)(?:clock|statement|transaction)_timestamp\(", path.read_text()), path


def test_the_client_reads_no_clock_of_its_machine() -> None:
    """It measures time by the monotonic one, which nobody sets."""
    readers = {
        "time": {"time", "time_ns", "localtime", "gmtime", "ctime", "strftime"},
        "datetime": {"now", "utcnow", "today"},
    }
    readers["date"] = readers["datetime"]
    found = [
        (path.name, node.lineno)
        for path in CLIENT.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if (isinstance(node, ast.ImportFrom) and node.module == "time")
        or (isinstance(node, ast.Attribute) and node.attr in readers.get(ast.unparse(node.value).split(".")[-1], ()))
    ]
    # What the clock of a worker says is told to durable.health(), and to nobody else.
    assert [name for name, _ in found] == ["calls.py"]


def test_all_that_depends_on_time_follows_the_one_clock(db: Database) -> None:
    """In one session, which has planned all of it before the clock moves."""
    conn = db.connect()
    for name, interval in (
        ("retention", "400 days"),
        ("event_retention", "400 days"),
        ("firing_retention", "400 days"),
    ):
        call(conn, "configure", name, interval)
    delayed = enqueue(conn, queue="delayed", run_at="2200-01-01", timeout="1 hour")
    conn.execute("update durable.live_workflows set wake_at = durable._now() + interval '300 days'")
    slow, late, bad, held = (
        enqueue(conn, queue="q", timeout=t, max_attempts=2) for t in ("300 days", None, None, None)
    )
    late_timeout = enqueue(conn, queue="t", timeout="1 hour")
    (lost,) = claim(conn, "lost", 1, ["t"])
    leases = {c.workflow_id: c.lease for c in claim(conn, "w", 4, ["q"])}
    (slept,) = call(conn, "wait", slow, leases[slow], "sleep", "[]", timeout="299 days")
    assert slept.outcome == "parked"
    call(conn, "fail", bad, leases[bad], {"message": "no"}, "299 days")
    call(conn, "fail_step", held, leases[held], "s", {"message": "no"}, 1, 3, "299 days", 1, "299 days")
    assert value(conn, "select retry_at > durable._now() from durable.open_steps where waits_for is null")
    call(conn, "emit", "old")
    call(conn, "schedule", "yearly", "0 0 1 1 *", "w", queue="s", catchup="400 days")
    call(conn, "tick")
    assert workflow(conn, delayed).status == "pending"
    assert claim(conn, "w", 10, ["delayed", "q", "s"]) == []

    advance(conn, "399 days")
    call(conn, "tick")
    # The jump ended all leases, and a worker that lives would renew its own by now.
    advance(conn, "399 days 1 minute")
    for _ in range(3):
        call(conn, "tick")
    # Starts, sleeps and retries are due; the worker that sent no heartbeat is dead; the timeout is over; the schedule fired.
    ready = {c.workflow_id for c in claim(conn, "another", 10, ["delayed", "q"])}
    assert ready == {delayed, bad, late, held}
    assert workflow(conn, slow).status == "failed"
    assert workflow(conn, late_timeout).error["code"] == "WF010"
    assert lost.workflow_id == late_timeout
    assert len(claim(conn, "another", 10, ["s"])) == 1
    assert value(conn, "select retry_at < durable._now() from durable.open_steps where retry_at is not null")
    assert value(
        conn,
        "select created_at < durable._now() - interval '398 days' from durable.workflows where workflow_id = %s",
        held,
    )
    newest = enqueue(conn)
    assert value(conn, "select durable._id_time(%s) > clock_timestamp() + interval '398 days'", newest)
    assert workflow(conn, newest).created_at.year > 2026

    for parent in ("finished_workflows", "checkpoints"):
        assert value(
            conn,
            "select to_regclass('durable.' || %s || to_char(durable._now() at time zone 'UTC', '_YYYYMMDD')) is not null",
            parent,
        )
    advance(conn, "1000 days")
    for _ in range(40):
        call(conn, "tick")
    assert value(conn, "select count(*) from durable.events") == 0
    assert rows(conn, "select * from durable.workflows where workflow_id = %s", late_timeout) == []
    assert steps(conn, slow) == {}
    assert claim_one(conn, "third").workflow_id == newest
