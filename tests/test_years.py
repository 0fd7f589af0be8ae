"""Years of history: what a call locks, reads and remembers does not grow with the days, queues, names and keys beside it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from psycopg.rows import TupleRow

from clusters import Cluster, Database
from engine import Connection, call, claim, decide_next, enqueue, rows, value
from test_plans import assert_only_own_rows_were_read, reads, work
from test_retention import began, days, ended, is_gone, stored, tick, tick_until

DAYS = 400
QUEUES = 20_000
NAMES = 5_000
KEYS = 1_000_000

# What needs pg_cron, or is called once for a role.
NOT_CALLED = {
    "enable_pg_cron", "disable_pg_cron", "grant_admin", "grant_approver", "grant_client", "grant_observer", "grant_worker",
}  # fmt: skip
# The public functions, and the private ones that look into the history.
UNCALLED = r"""
  select distinct p.proname::text from pg_proc p join pg_language l on l.oid = p.prolang and l.lanname = 'plpgsql'
  where p.pronamespace = 'durable'::regnamespace
    and (p.proname !~ '^_' or p.prosrc ~ 'durable\.(finished_workflows|checkpoints|workflows|workflow_steps)\M')
    and not exists (select from pg_stat_user_functions s where s.funcid = p.oid and s.calls > 0)"""


def fill_years(conn: Connection) -> None:
    """What a busy database has after 400 days, and the statistics on its catalog that autovacuum collects."""
    conn.execute(
        "select durable._provision_partitions((durable._now() at time zone 'UTC')::date - %s, (durable._now() at time zone 'UTC')::date)",
        [DAYS],
    )
    conn.execute(
        "select count(durable.enqueue('w', queue => 'tenant ' || n, run_at => '2200-01-01')) from generate_series(1, %s) n",
        [QUEUES],
    )
    # A day of many names in the middle, and a few workflows on each day.
    conn.execute(
        """insert into durable.finished_workflows (workflow_id, created_at, completed_at, attempt, failures, crashes,
             max_attempts, priority, status, name, queue, tags)
           select (left(durable._first_id(t.at)::text, 18) || right(gen_random_uuid()::text, 18))::uuid, t.at, t.at, 1, 0, 0, 1, 0,
             'completed', 'name ' || n, 'tenant ' || n, '{}'
           from (select g as n, durable._now() - interval '1 day' * case when g <= %(names)s then 200 else g %% %(days)s end as at
                 from generate_series(1, %(names)s + 3 * %(days)s) g) t""",
        {"names": NAMES, "days": DAYS},
    )
    conn.execute(
        """insert into durable.checkpoints (workflow_id, completed_at, attempt, status, step_name)
           select f.workflow_id, f.completed_at, 1, 'completed', 's' from durable.finished_workflows f"""
    )
    conn.execute(
        """insert into durable.workflow_keys (key, name, workflow_id)
           select 'old ' || n, 'w', (left(durable._first_id(durable._now() - interval '1 day' * (n %% %s))::text, 18)
             || right(gen_random_uuid()::text, 18))::uuid
           from generate_series(1, %s) n""",
        [DAYS, KEYS],
    )
    call(conn, "configure", "retention", f"{2 * DAYS} days")
    call(conn, "tick", 100_000)
    # As some seconds later, when the lines that nothing stands in have left.
    conn.execute("delete from durable.lines")
    conn.execute("vacuum analyze")


@pytest.fixture(scope="module")
def years(cluster: Cluster) -> Iterator[Database]:
    database = cluster.create_database()
    fill_years(database.connect())
    database.disconnect()
    yield database
    database.drop()


@pytest.fixture
def old(years: Database) -> Iterator[Database]:
    """A copy of the database with years of history, for a test that changes it."""
    database = years.cluster.create_database(template=years.name)
    yield database
    database.drop()


class Counting(psycopg.Cursor[TupleRow]):
    """Runs each statement in a transaction of its own, and counts the relations that it has locked at its end."""

    most: dict[str, int]

    def execute(self, query: Any, params: Any = None, **options: Any) -> Counting:
        text = query.decode() if isinstance(query, bytes) else str(query)
        called = re.search(r"durable\.(\w+)\(", text)
        # Calls only: beside them the scenario reads views and writes to tables.
        if called is None or not text.lstrip().startswith("select"):
            super().execute(query, params, **options)
            return self
        plain = psycopg.Cursor(self.connection)
        plain.execute("begin")
        super().execute(query, params, **options)
        plain.execute("set constraints all immediate")
        plain.execute("select count(*) from pg_locks where locktype = 'relation' and pid = pg_backend_pid()")
        ((locks,),) = plain.fetchall()
        plain.execute("commit")
        self.most[called[1]] = max(self.most.get(called[1], 0), locks)
        return self


def counting(database: Database) -> tuple[Connection, dict[str, int]]:
    """A connection whose cursors count locks, and what they have counted."""
    most: dict[str, int] = {}
    factory = type("CountingHere", (Counting,), {"most": most})
    return database.connect(cursor_factory=factory), most


def everything(conn: Connection, turn: str) -> None:
    """Every public function, most of them as a worker would call them."""
    work(conn, turn)
    queue = f"rest {turn}"
    call(conn, "attach", f"w {turn}", [queue])
    call(conn, "idle", f"w {turn}", [queue])
    ids = [row[0] for row in call(conn, "enqueue_many", "w", [{}] * 4, queue, [f"{turn} many {n}" for n in range(4)])]
    # Keys that are taken, by workflows that are done and by one that is not.
    call(conn, "enqueue_many", "w", [{}] * 4, queue, [f"{turn} many {n}" for n in range(4)])
    held = {c.workflow_id: c.lease for c in claim(conn, f"w {turn}", 4, [queue])}
    leases = [held[i] for i in ids]
    call(conn, "reclaim", f"w {turn}")
    call(conn, "checkpoint", ids[0], leases[0], "s", {})
    # Again, and by somebody whose lease is lost.
    call(conn, "checkpoint", ids[0], leases[0], "s", {})
    call(conn, "checkpoint_many", ids[:2], [leases[0], 1], ["s", "s"], [{}, {}])
    call(conn, "step_result", ids[0], "s")
    call(conn, "begin_step", ids[0], leases[0], "t")
    call(conn, "start_step", ids[0], leases[0], "once")
    call(conn, "fail_step", ids[0], leases[0], "once", {"message": "no"}, 1, 3)
    call(conn, "wait", ids[1], leases[1], "nap", "[]", timeout="1 hour")
    running = [
        {"workflow_id": str(ids[0]), "lease": leases[0], "step_name": "long", "attempt": 1, "elapsed_ms": 90_000}
    ]
    call(conn, "heartbeat", f"w {turn}", ids, [1, 1, 1, 1], psycopg.types.json.Jsonb(running))
    call(conn, "complete", ids[0], leases[0], {})
    call(conn, "complete", ids[0], leases[0], {})
    call(conn, "complete_many", [ids[0], ids[2]], [1, leases[2]], [{}, {}])
    call(conn, "enqueue", "w", key=f"{turn} many 0", queue=queue)
    call(conn, "send", ids[1], "topic", {})
    call(conn, "cancel", ids[0])
    call(conn, "fail", ids[3], leases[3], {"message": "no", "step": "none"})
    call(conn, "retry", ids[3])
    call(conn, "leave", f"w {turn}")
    call(conn, "recover")
    enqueue(conn, queue=f"asks {turn}")
    (asks,) = claim(conn, f"w {turn}", 1, [f"asks {turn}"])
    call(conn, "request_approval", asks.workflow_id, asks.lease, "ask", "may I?")
    decide_next(conn, "approved")
    call(conn, "continue_as_new", asks.workflow_id, asks.lease, {})
    for function in ("send", "pause", "resume", "cancel", "result"):
        call(conn, function, asks.workflow_id, *(["topic"] if function == "send" else []))
    call(conn, "schedule", f"s {turn}", "@hourly", "w", queue=queue)
    call(conn, "pause_schedule", f"s {turn}")
    call(conn, "resume_schedule", f"s {turn}")
    call(conn, "backfill_schedule", f"s {turn}", "2026-01-01 00:00Z", "2026-01-01 03:00Z", False)
    call(conn, "tick")
    call(conn, "unschedule", f"s {turn}")
    call(conn, "cron_next", "@daily", "2026-01-01 00:00Z")
    call(conn, "configure", "retry_max", "6 minutes")
    call(conn, "repair_sequences")
    call(conn, "health")
    call(conn, "version")
    call(conn, "build")
    # A child fails, and with it its parent, which is tried again.
    enqueue(conn, queue=f"parent {turn}", max_attempts=2)
    (parent,) = claim(conn, f"p {turn}", 1, [f"parent {turn}"])
    ((first,),) = call(conn, "start_children", parent.workflow_id, parent.lease, "start", "child", [{}] * 2)
    children = claim(conn, f"p {turn}", 2, [f"parent {turn}"])
    call(conn, "fail_many", [c.workflow_id for c in children], [c.lease for c in children], [{"message": "no"}] * 2)
    condition = f'[{{"children": "{first}"}}]'
    ((outcome, _),) = call(conn, "wait", parent.workflow_id, parent.lease, "join", condition)
    assert outcome == "ok"
    call(conn, "fail", parent.workflow_id, parent.lease, {"message": "no", "step": "join"}, "0")


def end_history(conn: Connection, turn: str) -> None:
    """History ends by a day of long ago, and by rows of another one, which an unfinished workflow keeps."""
    call(conn, "retain", "0", workflow="brief")
    ended(conn, 1000 + len(turn), 2, key=f"{turn} ended ")
    began(conn, 999)
    brief = ended(conn, 999, 2, name="brief")
    tick_until(conn, lambda: is_gone(conn, 1000 + len(turn)) and not stored(conn) & set(brief))
    call(conn, "retain", None, workflow="brief")


def test_no_call_locks_more_relations_beside_years_of_history(db: Database, old: Database) -> None:
    for database in (db, old):
        conn, most = counting(database)
        conn.execute("set track_functions = 'all'")
        # Often enough for plans that are kept: by default they are made from the sixth call on.
        for n in range(7):
            everything(conn, f"turn {n}")
        end_history(conn, "turn")
        most.clear()
        everything(conn, "last")
        end_history(conn, "last")
        conn.execute("select pg_stat_force_next_flush()")
        uncalled = {row[0] for row in rows(conn, UNCALLED)}
        assert uncalled - NOT_CALLED == set()
        # A plan for all days would lock 800. A tick does all that is due in one transaction, and looks at up to five days for
        # what is past its time.
        assert {name: locks for name, locks in most.items() if locks > (400 if name == "tick" else 100)} == {}


def test_no_session_remembers_more_beside_years_of_history(db: Database, old: Database) -> None:
    used = []
    for database in (db, old):
        conn = database.connect()
        for n in range(7):
            everything(conn, f"turn {n}")
        used.append(value(conn, "select sum(used_bytes)::bigint from pg_backend_memory_contexts"))
    # Postgres keeps the bounds of all partitions, 31 kB for each of the two tables, and what it read to make them; plans for
    # all days take ten times as much.
    assert used[1] - used[0] < 1_500_000


def test_hot_calls_read_only_their_own_rows_beside_years_of_history(old: Database) -> None:
    conn = old.connect()
    work(conn, "first, which fills the caches of plans")
    conn.execute("update durable.line_marks set sweep_at = now() + interval '1 hour'")
    before = reads(conn)
    work(conn, "second")
    assert_only_own_rows_were_read(before, reads(conn), "known_queues", "lines", "history_marks", "dropped_days")


def test_a_tick_reads_a_bounded_part_of_the_history_whatever_the_rules_are(old: Database) -> None:
    conn = old.connect()
    # Rules of all kinds, none of which is past: each day may have something to remove, and has not.
    call(conn, "retain", f"{3 * DAYS} days", workflow="name 1")
    call(conn, "retain", f"{2 * DAYS} days", queue="tenant 1")
    call(conn, "retain", "23 hours", workflow="no such name")
    # The first day has a partition and nothing in it, and is dropped.
    tick_until(conn, lambda: len(days(conn)) == len(days(conn, "checkpoints")) < DAYS + 3)
    blocks = "select sum(heap_blks_hit + heap_blks_read + idx_blks_hit + idx_blks_read) from pg_statio_all_tables"

    def read() -> int:
        conn.execute("select pg_stat_force_next_flush()")
        conn.execute("select pg_stat_clear_snapshot()")
        return int(value(conn, blocks))

    for _ in range(10):
        before = read()
        assert tick(conn)["expired"] == 0
        # 500 names take two look-ups of three or four blocks each, and the catalog is read for the days that are looked at.
        assert read() - before < 12_000


def test_a_day_of_long_ago_is_dropped_though_the_planner_knows_the_catalog(old: Database) -> None:
    conn = old.connect()
    ended(conn, DAYS, 5, key="old day ")
    call(conn, "configure", "retention", f"{DAYS - 10} days")
    gone = {
        d
        for d in days(conn)
        if d
        < value(conn, "select (durable._now() at time zone 'UTC')::date")
        - (value(conn, "select make_interval(days => %s)", DAYS - 9))
    }
    assert len(gone) >= 9
    tick_until(conn, lambda: not gone & (days(conn) | days(conn, "checkpoints")))
    assert is_gone(conn, DAYS)
    # What belonged to the workflows of these days goes after them: here some 25,000 keys.
    tick_until(conn, lambda: not rows(conn, "select from durable.dropped_days"))
    assert value(conn, "select count(*) from durable.workflow_keys where key like 'old day%%'") == 0
    first = value(conn, "select durable._id_time(min(workflow_id::text)::uuid) from durable.workflow_keys")
    assert first > value(conn, "select durable._now() - interval '1 day' * %s", DAYS - 8)


def test_rows_of_many_names_and_days_are_deleted_and_no_others(old: Database) -> None:
    conn = old.connect()
    call(conn, "retain", "10 days", workflow="short")
    call(conn, "retain", "100 days", queue="brief")
    gone = [i for days_ago in (11, 50, 200, 399) for i in ended(conn, days_ago, 3, name="short")] + [
        i for days_ago in (101, 200, 350) for i in ended(conn, days_ago, 3, queue="brief", name="name 7")
    ]
    kept = ended(conn, 9, 3, name="short") + ended(conn, 99, 3, queue="brief") + ended(conn, 350, 3)
    kept += ended(conn, 200, 2, name="short too")
    many = len(stored(conn))
    tick_until(conn, lambda: not stored(conn) & set(gone))
    for _ in range(60):
        tick(conn)
    assert set(kept) <= stored(conn)
    assert len(stored(conn)) == many - len(gone)
    assert value(conn, "select count(*) from durable.checkpoints where workflow_id = any(%s)", gone) == 0
