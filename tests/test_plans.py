"""Plans stay what they are meant to be, whatever the size of the tables and the statistics on them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest

from clusters import Cluster, Database
from engine import Connection, call, claim, enqueue, rows, value

TABLES = (
    "live_workflows", "open_steps", "workflow_keys", "waits", "messages", "events", "approval_requests", "ended_children",
    "schedules", "schedule_firings",
)  # fmt: skip


def fill(conn: Connection, size: int) -> None:
    """A database in the middle of its work: workflows in line, held, waiting, keyed and finished."""
    conn.execute(
        """select durable.enqueue_many('w', array_fill('{}'::jsonb, array[%(n)s]), keys => array(
             select 'fill ' || n from generate_series(1, %(n)s) n))""",
        {"n": size},
    )
    conn.execute("select durable.enqueue_many('w', array_fill('{}'::jsonb, array[%s]), run_at => '2200-01-01')", [size])
    conn.execute(
        "create temp table held as select workflow_id, lease from durable.claim('filler', max_workflows => %s)",
        [size // 2],
    )
    conn.execute(
        """select durable.checkpoint_many(array_agg(workflow_id), array_agg(lease), array_agg('s' || n), array_agg('{}'::jsonb))
           from held, generate_series(1, 3) n having count(*) > 0"""
    )
    conn.execute(
        """select durable.complete_many(array_agg(workflow_id), array_agg(lease), array_agg('{}'::jsonb))
           from (select * from held limit %s) h having count(*) > 0""",
        [size // 4],
    )
    conn.execute(
        """select durable.request_approval(workflow_id, lease, 'fill ' || n, 'fill', 'team ' || n,
             expires => case n when 3 then interval '0' end)
           from (select * from held offset %s) h, generate_series(1, 3) n""",
        [size // 4],
    )
    conn.execute(
        "select durable.decide(approval_id, 'approved') from durable.approval_requests where step_name = 'fill 1'"
    )
    conn.execute(
        """select durable.wait_many(array_agg(workflow_id), array_agg(lease), array_agg('wait'::text), array_agg(case
             when n %% 4 = 0 then '[{"approval": "fill 2"}]' when n %% 2 = 0 then '[{"event": "fill"}]' else '[{"message": "fill"}]' end::jsonb))
           from (select *, row_number() over () as n from held offset %s) h having count(*) > 0""",
        [size // 4],
    )
    conn.execute(
        "select durable.send(workflow_id, 'another', '1', 'k') from durable.live_workflows where status = 'waiting'"
    )
    conn.execute("select durable.emit('fill ' || n) from generate_series(1, %s) n", [size // 4])
    conn.execute("drop table held")
    # Schedules that are not due for long, with the outcomes of their past.
    conn.execute(
        """select durable.schedule('fill ' || n, '0 0 1 ' || extract(month from now() + interval '6 months') || ' *', 'w')
           from generate_series(1, %s) n""",
        [size // 10],
    )
    conn.execute(
        """insert into durable.schedule_firings (schedule, due_at, outcome, open, watched, handled_at, workflow_id, reason)
           select 'fill ' || n, now() - interval '1 day' * m, case when m = 1 then 'fired' else 'missed' end,
             m = 1, false, now() - interval '1 day' * m, case when m = 1 then gen_random_uuid() end, 'fill'
           from generate_series(1, %s) n, generate_series(1, 3) m""",
        [size // 10],
    )


def work(conn: Connection, turn: str) -> None:
    """Each hot call once or twice, with few rows of its own."""
    queue = f"queue {turn}"
    ids = [enqueue(conn, queue=queue, key=f"{turn} {n}", max_attempts=3) for n in range(8)]
    leases = {c.workflow_id: c.lease for c in claim(conn, "hot", 10, [queue])}
    held = [leases[i] for i in ids]
    call(conn, "checkpoint", ids[0], held[0], "s", {})
    call(conn, "checkpoint_many", ids, held, ["t"] * 8, [{}] * 8)
    call(conn, "begin_step", ids[0], held[0], "u")
    call(conn, "start_step", ids[0], held[0], "v")
    call(conn, "fail_step", ids[0], held[0], "x", {"message": "no"}, 1, 3)
    call(conn, "heartbeat", "hot", ids, held)
    call(conn, "complete", ids[0], held[0], {})
    call(conn, "complete_many", ids[1:3], held[1:3], [{}, {}])
    call(conn, "flush", [ids[3]], [held[3]], ["z"], [{}], [1], [1], [ids[3]], [held[3]], [{}])
    call(conn, "publish", ids[4], held[4], "k", {})
    call(conn, "warn", ids[4], held[4], "slow")
    call(conn, "fail", ids[4], held[4], {"message": "no"}, "1 hour")
    call(conn, "continue_as_new", ids[6], held[6], {})
    call(conn, "suspend", ids[7], held[7], "look")
    call(conn, "resume", ids[7])
    call(conn, "pause", ids[7])
    call(conn, "release_many", [ids[5]], [held[5]])
    call(conn, "cancel", ids[5])
    call(conn, "retry", ids[5])
    call(conn, "retry_many", ids)
    call(conn, "fork", ids[0], "t", outputs={"t": 1})
    call(conn, "fork_many", ids, "t")
    call(conn, "state", ids[4])
    call(conn, "status", ids[4])
    call(conn, "result", ids[0])
    call(conn, "history", ids[0])
    wait(conn, f"waiting {turn}")
    ask(conn, f"asking {turn}")
    join(conn, f"parents {turn}")
    schedule(conn, f"schedule {turn}")
    # Once a minute a tick begins to sweep the mail.
    conn.execute("update durable.wake_marks set sweep_at = now()")
    for _ in range(3):
        call(conn, "tick", 100)


def wait(conn: Connection, queue: str) -> None:
    """Waits that park, are woken in each way, and are over."""
    ids = [enqueue(conn, queue=queue) for _ in range(3)]
    conditions = ['[{"event": "%s"}]' % queue, '[{"message": "topic"}]', '[{"event": "never"}]']  # noqa: UP031
    for _ in range(2):
        leases = {c.workflow_id: c.lease for c in claim(conn, "hot", 10, [queue])}
        held = [i for i in ids if i in leases]
        rows(
            conn,
            "select * from durable.wait_many(%s, %s, array_fill('s'::text, array[%s]), %s::jsonb[])",
            held, [leases[i] for i in held], len(held), conditions[: len(held)],
        )  # fmt: skip
        call(conn, "recheck_waits", ids)
        call(conn, "send", ids[1], "topic")
        call(conn, "emit", queue)
    call(conn, "cancel", ids[2])


def ask(conn: Connection, queue: str) -> None:
    """Approvals that are requested, decided and withdrawn."""
    for _ in range(2):
        enqueue(conn, queue=queue)
    asking = claim(conn, "hot", 10, [queue])
    for held in asking:
        ((approval_id,),) = call(
            conn, "request_approval", held.workflow_id, held.lease, "s", "may I?", queue, expires="1 day"
        )
        rows(
            conn,
            "select * from durable.wait(%s, %s, 's', '[{\"approval\": \"s\"}]')", held.workflow_id, held.lease,
        )  # fmt: skip
    call(conn, "recheck_waits", [held.workflow_id for held in asking])
    call(conn, "decide", approval_id, "approved")
    (held,) = claim(conn, "hot", 10, [queue])
    call(conn, "request_approval", held.workflow_id, held.lease, "s", "may I?", queue, expires="1 day")
    rows(conn, "select * from durable.wait(%s, %s, 's', '[{\"approval\": \"s\"}]')", held.workflow_id, held.lease)
    call(conn, "cancel", asking[0].workflow_id)


def join(conn: Connection, queue: str) -> None:
    """Children that are started, let in, joined and cancelled."""
    enqueue(conn, queue=queue)
    (held,) = claim(conn, "hot", 1, [queue])
    ((first,),) = call(conn, "start_children", held.workflow_id, held.lease, "s", "child", [{}] * 4, max_parallel=2)
    rows(
        conn,
        "select * from durable.wait(%s, %s, 'w', jsonb_build_array(jsonb_build_object('children', %s::uuid)))",
        held.workflow_id, held.lease, first,
    )  # fmt: skip
    for _ in range(2):
        children = claim(conn, "hot", 10, [queue])
        ids, leases = [c.workflow_id for c in children], [c.lease for c in children]
        call(conn, "complete_many", ids, leases, [{}] * len(ids))
    (again,) = claim(conn, "hot", 10, [queue])
    rows(
        conn,
        "select * from durable.wait(%s, %s, 'w', jsonb_build_array(jsonb_build_object('children', %s::uuid)))",
        again.workflow_id, again.lease, first,
    )  # fmt: skip
    call(conn, "child_results", first)
    call(conn, "start_children", again.workflow_id, again.lease, "t", "child", [{}] * 4)
    call(conn, "cancel", again.workflow_id)


def schedule(conn: Connection, name: str) -> None:
    """Due times that fire, are skipped, queue up, are let go and are watched for a failure."""
    for overlap in ("skip", "queue_all", "cancel", "allow"):
        call(conn, "schedule", f"{name} {overlap}", "1 second", "w", queue=name, overlap=overlap, pause_on_failure=True)
    for turn in range(3):
        conn.execute(
            "update durable.schedules set next_at = next_at - interval '2 seconds' where starts_with(name, %s)", [name]
        )
        call(conn, "tick")
        for claimed in claim(conn, "hot", 1, [name]):
            call(conn, "fail" if turn else "complete", claimed.workflow_id, claimed.lease, {"message": "done"})
    call(conn, "trigger_schedule", f"{name} skip")
    rows(conn, "select * from durable.next_firings(%s)", f"{name} skip")
    conn.execute(
        "select durable.unschedule(%s || o) from unnest(array[' skip', ' allow', ' cancel', ' queue_all']) o", [name]
    )


class Reads(NamedTuple):
    relname: str
    seq_tup_read: int
    idx_tup_read: int


# Of a table that was made meanwhile.
EMPTY = Reads("", 0, 0)


def reads(conn: Connection) -> dict[str, Any]:
    """What was read so far: whole tables, and entries of indexes."""
    conn.execute("select pg_stat_force_next_flush()")
    conn.execute("select pg_stat_clear_snapshot()")
    return {
        row.relname: row
        for row in rows(
            conn,
            """select t.relname, t.seq_tup_read,
                 coalesce((select sum(i.idx_tup_read) from pg_stat_user_indexes i where i.relid = t.relid), 0)::bigint as idx_tup_read
               from pg_stat_user_tables t where t.schemaname = 'durable'""",
        )
    }


def assert_only_own_rows_were_read(before: dict[str, Any], after: dict[str, Any], *large: str) -> None:
    """Also not of tables that stay small in most databases, and are large in this one."""
    for table, now in after.items():
        then = before.get(table, EMPTY)
        # Only tables that stay small, however much runs, may be read as a whole.
        if table.startswith((*TABLES, *large, "finished_workflows", "checkpoints")):
            assert now.seq_tup_read - then.seq_tup_read <= 100, f"{table} was read as a whole"
        assert now.idx_tup_read - then.idx_tup_read <= 2000, f"an index of {table} was read as a whole"


@pytest.mark.parametrize("analyzed_when", ["never", "empty", "filled"])
@pytest.mark.parametrize("size", [0, 100, 20_000], ids=["empty", "small", "large"])
def test_hot_calls_read_only_their_own_rows(db: Database, size: int, analyzed_when: str) -> None:
    if size == 0 and analyzed_when == "filled":
        analyzed_when = "empty"
    conn = db.connect()
    # It would renew the statistics at some time, and what is dead stays in indexes while it reads.
    for (table,) in rows(
        conn,
        "select c.oid::regclass::text from pg_class c where c.relnamespace = 'durable'::regnamespace and c.relkind = 'r'",
    ):
        conn.execute(f"alter table {table} set (autovacuum_enabled = off)".encode())
    if analyzed_when == "empty":
        conn.execute("vacuum analyze")
    fill(conn, size)
    if analyzed_when == "filled":
        conn.execute("vacuum analyze")
    work(conn, "first, which fills the caches of plans")
    # Now and then a line is read from its beginning, which is not what this is about.
    conn.execute("update durable.line_marks set sweep_at = now() + interval '1 hour'")
    conn.execute("update durable.lines set look_at = now() + interval '1 hour'")
    before = reads(conn)
    work(conn, "second")
    assert_only_own_rows_were_read(before, reads(conn))


def plan(conn: Connection, query: str) -> list[dict[str, Any]]:
    """The nodes of the plan of a query."""
    found: list[dict[str, Any]] = []

    def walk(node: dict[str, Any]) -> None:
        found.append(node)
        for child in node.get("Plans", []):
            walk(child)

    walk(value(conn, f"explain (format json) {query}")[0]["Plan"])
    return found


FAILED_STEPS = """SELECT workflow_id, step_name, error_message, completed_at FROM workflow_steps WHERE status = 'error' AND
completed_at >= now() - interval '1 month' ORDER BY completed_at DESC;"""


def test_the_failed_steps_of_the_last_month_are_found_through_an_index(db: Database) -> None:
    conn = db.connect()
    fill(conn, 4000)
    bad = enqueue(conn, queue="bad")
    (claimed,) = claim(conn, "w", 1, ["bad"])
    call(conn, "fail_step", bad, claimed.lease, "first", {"message": "no luck"})
    call(conn, "fail_step", bad, claimed.lease, "second", {"message": "still none"})
    conn.execute("set search_path = durable")
    conn.execute("analyze")
    found = rows(conn, FAILED_STEPS)
    assert [(row.workflow_id, row.step_name, row.error_message) for row in found] == [
        (bad, "second", "still none"),
        (bad, "first", "no luck"),
    ]
    filled = value(conn, "select tableoid::regclass::text from durable.checkpoints limit 1")
    (scan,) = [node for node in plan(conn, FAILED_STEPS) if node.get("Relation Name") == filled]
    assert scan["Node Type"] in ("Index Scan", "Bitmap Heap Scan")
    # The partial index holds failed steps and no others.
    assert scan["Plan Rows"] < 100


@pytest.fixture(scope="module")
def filled(cluster: Cluster) -> Iterator[Database]:
    """A database for questions that change nothing."""
    database = cluster.create_database()
    conn = database.connect()
    fill(conn, 4000)
    conn.execute("analyze")
    yield database
    database.drop()


@pytest.mark.parametrize(
    "query",
    [
        "select * from durable.workflows where workflow_id = '{id}'",
        "select * from durable.workflow_steps where workflow_id = '{id}'",
        "select * from durable.workflows where status = 'failed' and completed_at > now() - interval '1 day'",
        "select * from durable.workflows where status = 'cancelled' and completed_at < now() order by completed_at desc limit 50",
        "select * from durable.workflows order by workflow_id desc limit 50",
        "select * from durable.finished_workflows where name = 'rare' order by completed_at desc limit 50",
        "select * from durable.finished_workflows where queue = 'rare' order by completed_at desc limit 50",
        "select * from durable.finished_workflows where key = 'fill 7'",
        'select * from durable.finished_workflows where tags @> \'{{"tenant": "acme"}}\'',
        "select * from durable.approvals where approval_id = '{id}'",
        "select * from durable.approvals where workflow_id = '{id}'",
        "select * from durable.approvals where assignee = 'ada' and state = 'pending'",
        "select * from durable.approvals where state = 'pending' order by approval_id desc limit 50",
        "select * from durable.approvals where assignee = 'ada' order by approval_id desc limit 50",
    ],
)
def test_the_usual_questions_of_users_are_answered_through_indexes(filled: Database, query: str) -> None:
    conn = filled.connect()
    workflow_id = value(conn, "select workflow_id from durable.finished_workflows limit 1")
    scans = [node for node in plan(conn, query.format(id=workflow_id)) if node["Node Type"] == "Seq Scan"]
    large = [
        row[0]
        for row in rows(
            conn, "select relname from pg_class where relnamespace = 'durable'::regnamespace and reltuples > 500"
        )
    ]
    assert [node["Relation Name"] for node in scans if node["Relation Name"] in large] == []


def test_a_held_snapshot_does_not_slow_the_claims_down(db: Database) -> None:
    conn, idler = db.connect(), db.connect(autocommit=False)
    enqueue(conn, queue="line")
    claim(conn, "w", 1, ["line"])
    idler.execute("set transaction isolation level repeatable read")
    idler.execute("select count(*) from durable.workflows")
    for _ in range(40):
        conn.execute("select durable.enqueue_many('w', array_fill('{}'::jsonb, array[250]), 'line')")
        claimed = claim(conn, "w", 250, ["line"])
        call(conn, "complete_many", [c.workflow_id for c in claimed], [c.lease for c in claimed], [{}] * len(claimed))
        # The cursor of the claims is allowed to be a little behind.
        conn.execute("select pg_sleep(0.01)")
    conn.execute("select pg_sleep(0.3)")
    call(conn, "tick")
    claim(conn, "w", 1, ["line"])
    call(conn, "enqueue_many", "w", [{}] * 10, "line")
    hits = "select sum(idx_blks_hit + idx_blks_read) from pg_statio_user_indexes where indexrelname = 'live_workflows_ready_idx'"

    def blocks() -> int:
        conn.execute("select pg_stat_force_next_flush()")
        conn.execute("select pg_stat_clear_snapshot()")
        return int(value(conn, hits))

    before = blocks()
    assert len(claim(conn, "w", 10, ["line"])) == 10
    # 10,000 entries of dead rows take some 40 pages of the index, and each would be visited.
    assert blocks() - before < 60
