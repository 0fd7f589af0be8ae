"""Install, drop, dump and restore, as extension and as plain SQL."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator

import psycopg
import pytest

from clusters import ROOT, Cluster, Database, run
from engine import (
    Connection,
    call,
    claim,
    claim_one,
    enqueue,
    kill_worker,
    refused,
    rows,
    steps,
    value,
    workflow,
)

ERROR = {"type": "Oops", "message": "no luck"}
TABLES = "select relname from pg_class where relname ~ '^(live_workflow|finished_workflow|workflow|checkpoints)'"
# What the catalogue says of the schema, without what differs between an extension and a plain install.
CATALOGUE = {
    "functions": """
        select p.oid::regprocedure::text, pg_get_function_result(p.oid), p.prosecdef, p.provolatile, p.proconfig, md5(p.prosrc),
          obj_description(p.oid, 'pg_proc')
        from pg_proc p where p.pronamespace = 'durable'::regnamespace order by 1""",
    "columns": """
        select c.relname, c.relkind, c.reloptions, a.attname, format_type(a.atttypid, a.atttypmod), a.attnotnull,
          col_description(c.oid, a.attnum), obj_description(c.oid, 'pg_class')
        from pg_class c join pg_attribute a on a.attrelid = c.oid and a.attnum > 0
        where c.relnamespace = 'durable'::regnamespace and c.relkind in ('r', 'p', 'v', 'S') and not c.relispartition
        order by 1, a.attnum""",
    "constraints": """
        select conrelid::regclass::text, conname, pg_get_constraintdef(oid)
        from pg_constraint
        where connamespace = 'durable'::regnamespace and conrelid::regclass::text !~ '_\\d{8}$'
        order by 1, 2""",
}


def catalogue(conn: Connection) -> dict[str, list[object]]:
    return {name: rows(conn, query) for name, query in CATALOGUE.items()}


def install_plain(conn: Connection) -> None:
    run("make", "-C", str(ROOT), "all")
    with conn.transaction():
        conn.execute((ROOT / "build/durable.sql").read_bytes())


@pytest.fixture
def empty(cluster: Cluster) -> Iterator[Database]:
    """A database without the schema."""
    database = cluster.create_database(template="template0")
    yield database
    database.drop()


@pytest.fixture
def owner(empty: Database) -> Iterator[str]:
    """A role that may do no more than create a schema in the empty database."""
    name = f"owner_{empty.name}"
    conn = empty.connect()
    conn.execute(f"create role {name} login".encode())
    conn.execute(f"grant create on database {empty.name} to {name}".encode())
    yield name
    conn.execute(f"drop owned by {name} cascade".encode())
    conn.execute(f"drop role {name}".encode())


def run_one_workflow(conn: Connection) -> None:
    workflow_id = enqueue(conn)
    claimed = claim_one(conn)
    call(conn, "checkpoint", workflow_id, claimed.lease, "s", {"v": 1})
    call(conn, "complete", workflow_id, claimed.lease, {"v": 2})
    call(conn, "tick")
    assert workflow(conn, workflow_id).output == {"v": 2}
    assert steps(conn, workflow_id)["s"].output == {"v": 1}


def remove_an_old_day(conn: Connection) -> None:
    there = "select count(*) from pg_class where relname in ('finished_workflows_20200229', 'checkpoints_20200229')"
    conn.execute("select durable._provision_partitions('2020-02-29', '2020-02-29')")
    assert value(conn, there) == 2
    for _ in range(5):
        call(conn, "tick")
    assert value(conn, there) == 0


def test_create_extension_gives_the_version_of_the_control_file(db: Database) -> None:
    conn = db.connect()
    ((installed, told),) = rows(
        conn, "select extversion, durable.version() from pg_extension where extname = 'durable'"
    )
    assert installed == told
    assert f"default_version = '{installed}'" in (ROOT / "durable.control").read_text()


def test_33_a_role_that_is_no_superuser_installs_the_plain_file_and_runs_workflows(empty: Database, owner: str) -> None:
    conn = empty.connect(user=owner)
    install_plain(conn)
    run_one_workflow(conn)
    remove_an_old_day(conn)
    call(conn, "attach", "w")
    call(conn, "configure", "lease", "1 minute")


def test_33_a_role_that_is_no_superuser_creates_the_extension(empty: Database, owner: str) -> None:
    conn = empty.connect(user=owner)
    conn.execute("create extension durable")
    run_one_workflow(conn)
    remove_an_old_day(conn)


def test_33_the_plain_file_and_the_extension_make_the_same_schema(db: Database, empty: Database) -> None:
    plain = empty.connect()
    install_plain(plain)
    assert catalogue(plain) == catalogue(db.connect())


def test_33_a_plain_install_that_fails_half_way_leaves_nothing(empty: Database) -> None:
    conn = empty.connect()
    conn.execute("create schema durable")
    with pytest.raises(psycopg.errors.DuplicateSchema):
        install_plain(conn)
    assert value(conn, "select count(*) from pg_class where relnamespace = 'durable'::regnamespace") == 0


def test_33_dropping_the_extension_takes_everything_with_it(db: Database) -> None:
    conn = db.connect()
    run_one_workflow(conn)
    enqueue(conn)
    conn.execute("drop extension durable cascade")
    assert rows(conn, TABLES) == []
    assert rows(conn, "select proname from pg_proc where pronamespace = to_regnamespace('durable')::oid") == []
    conn.execute("create extension durable")
    run_one_workflow(conn)


def test_33_dropping_the_schema_of_a_plain_install_takes_everything_with_it(empty: Database) -> None:
    conn = empty.connect()
    install_plain(conn)
    run_one_workflow(conn)
    conn.execute("drop schema durable cascade")
    install_plain(conn)
    run_one_workflow(conn)


def put_workflows_in_flight(conn: Connection) -> None:
    """One workflow in each situation there is."""
    completed = enqueue(conn, key="completed")
    lease = claim_one(conn, "one").lease
    call(conn, "checkpoint", completed, lease, "s", {"v": 1})
    call(conn, "complete", completed, lease, {"v": 2})
    failed = enqueue(conn, key="failed")
    call(conn, "fail", failed, claim_one(conn, "one").lease, ERROR)
    cancelled = enqueue(conn, key="cancelled")
    call(conn, "cancel", cancelled)
    retried = enqueue(conn, key="retried", max_attempts=3)
    call(conn, "fail", retried, claim_one(conn, "one").lease, ERROR, "1 hour")
    running = enqueue(conn, key="running", timeout="1 hour")
    lease = claim_one(conn, "one").lease
    call(conn, "checkpoint", running, lease, "done", {"v": 3})
    call(conn, "start_step", running, lease, "once")
    call(conn, "fail_step", running, lease, "again", ERROR, 1, 3, "1 hour", 2.0, "1 hour")
    for step in ("ask", "ask more"):
        call(conn, "request_approval", running, lease, step, "may I?", "ada", {"v": 7}, "1 day")
    conn.execute("select durable.decide(approval_id, 'approved', 'ada') from durable.approvals where step_name = 'ask'")
    enqueue(conn, key="pending", input={"v": 4}, tags={"t": 1}, priority=-7, queue="other")
    enqueue(conn, key="delayed", run_at="2200-01-01")
    waiting = enqueue(conn, key="waiting", queue="waiting")
    lease = claim_one(conn, "two", queues=["waiting"]).lease
    call(conn, "send", waiting, "topic", key="k")
    conn.execute("select durable.wait(%s, %s, 'mail', '[{\"message\": \"topic\"}]')", [waiting, lease])
    conn.execute("select durable.wait(%s, %s, 'news', '[{\"event\": \"news\"}]', '1 hour')", [waiting, lease])
    call(conn, "emit", "old news")
    parent = enqueue(conn, queue="family")
    lease = claim_one(conn, "two", queues=["family"]).lease
    call(conn, "start_children", parent, lease, "children", "child", [{"v": 5}, {"v": 6}], max_parallel=1)
    child = claim_one(conn, "two", queues=["family"])
    call(conn, "complete", child.workflow_id, child.lease, {})
    call(conn, "configure", "lease", "2 minutes")
    call(conn, "schedule", "yearly", "@yearly", "report", {"v": 5}, "reports", overlap="queue_one")
    call(conn, "trigger_schedule", "yearly")
    call(conn, "backfill_schedule", "yearly", "2020-01-01", "2021-01-01", dry_run=False)


STORED = (
    "select * from durable.workflows order by workflow_id",
    "select * from durable.workflow_steps order by workflow_id, step_name",
    "select * from durable.workflow_keys order by key",
    # The default queue belongs to the schema and is as old as its installation.
    "select * from durable.known_queues where queue <> 'default' order by queue",
    "select * from durable.lines order by queue, name, priority, line_id",
    "select worker_id, name, expires_at, died_at from durable.workers order by worker_id",
    "select * from durable.settings order by name",
    "select * from durable.schedules order by name",
    "select * from durable.schedule_firings order by schedule, due_at",
    "select * from durable.schedule_backfills order by backfill_id",
    "select * from durable.waits",
    "select * from durable.messages",
    "select * from durable.events",
    "select * from durable.approvals order by approval_id",
    "select * from durable.ended_children",
)


@pytest.mark.pg(15, 16, 18)
@pytest.mark.parametrize("plain", [False, True], ids=["extension", "plain"])
def test_33_dump_and_restore_with_workflows_in_flight_lose_nothing(
    db: Database, empty: Database, owner: str, plain: bool
) -> None:
    source = db.connect()
    if plain:
        source.execute("drop extension durable cascade")
        source.execute("drop schema durable")
        install_plain(source)
    put_workflows_in_flight(source)
    before = [rows(source, query) for query in STORED]
    made = catalogue(source)
    tool = db.cluster.installation.tool
    dump = run(tool("pg_dump"), "-d", db.dsn)
    restored = subprocess.run(
        [tool("psql"), "-X", "-q", "-v", "ON_ERROR_STOP=1", "-d", empty.dsn],
        input=dump,
        text=True,
        capture_output=True,
        check=False,
    )
    assert restored.returncode == 0, restored.stderr
    conn = empty.connect()
    assert [rows(conn, query) for query in STORED] == before
    assert catalogue(conn) == made

    # And it goes on: the lease of the owner is good, keys are known, places in line and ids do not repeat.
    held = rows(conn, "select workflow_id, lease from durable.live_workflows where status = 'running'")[0]
    assert enqueue(conn, key="completed") == before[0][0].workflow_id
    new = enqueue(conn)
    claimed = claim_one(conn, "new worker")
    assert (claimed.workflow_id, claimed.lease > held.lease) == (new, True)
    call(conn, "checkpoint", held.workflow_id, held.lease, "more", {})
    assert value(conn, "select durable.decide(approval_id, 'rejected') from durable.approvals where state = 'pending'")
    kill_worker(conn, "one")
    assert value(conn, "select durable.recover()") == 1
    again = claim_one(conn, "new worker")
    assert {step["step_name"] for step in again.steps} == {"done", "more", "once", "again"}
    with refused("WF008"):
        call(conn, "start_step", again.workflow_id, again.lease, "once")
    done = call(conn, "complete_many", [new, again.workflow_id], [claimed.lease, again.lease], [{}, {}])
    assert {row.outcome for row in done} == {"ok"}
    assert {c.input["v"] for c in claim(conn, "new worker", queues=["other"])} == {4}
    # The schedule's backfill goes on, and the numbers of backfills do not repeat.
    assert value(conn, "select durable.tick()")["backfilled"] == 1
    call(conn, "backfill_schedule", "yearly", "2022-01-01", "2022-01-01", dry_run=False)
    assert value(conn, "select count(*) from durable.schedule_backfills") == 2
    assert value(conn, "select durable.send(workflow_id, 'topic', key => 'k') from durable.waits") is False
    assert value(conn, "select durable.send(workflow_id, 'another') from durable.waits") is True
    assert value(conn, "select durable.emit('old news')") is False
    assert value(conn, "select durable.emit('news')") is True
    assert claim_one(conn, "new worker", queues=["waiting"]).workflow_id
    child = claim_one(conn, "new worker", queues=["family"])
    call(conn, "complete", child.workflow_id, child.lease, {})
    ended = rows(conn, "select distinct parent_id from durable.workflows where name = 'child' and status = 'completed'")
    assert len(ended) == 1
    # Partitions that were restored and partitions that are new live side by side.
    assert isinstance(value(conn, "select durable.tick()")["partitions"], int)


@pytest.mark.pg(15, 16, 18)
def test_33_a_restored_database_can_be_dumped_and_dropped_again(db: Database, empty: Database) -> None:
    put_workflows_in_flight(db.connect())
    tool = db.cluster.installation.tool
    first = run(tool("pg_dump"), "-d", db.dsn)
    subprocess.run([tool("psql"), "-X", "-q", "-d", empty.dsn], input=first, text=True, check=True, capture_output=True)

    def comparable(dump: str) -> list[str]:
        # From 15.14, 16.10 and 18 on, pg_dump guards its output with a random key.
        return [line for line in dump.splitlines() if not line.startswith(("\\restrict", "\\unrestrict"))]

    assert comparable(run(tool("pg_dump"), "-d", empty.dsn)) == comparable(first)
    conn = empty.connect()
    conn.execute("drop extension durable cascade")
    assert rows(conn, TABLES) == []
