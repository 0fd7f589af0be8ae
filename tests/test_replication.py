"""Logical replication: publications refuse nothing, and a replica that takes over hands out no number twice."""

from __future__ import annotations

import re
import signal
from collections.abc import Iterator
from typing import Any
from uuid import UUID

import pytest
from psycopg.types.json import Jsonb

from clusters import Cluster, Database
from engine import Connection, call, claim, claim_one, enqueue, kill_worker, refused, rows, value, wait_until
from test_retention import tick
from test_years import NOT_CALLED, UNCALLED, end_history, everything

pytestmark = pytest.mark.pg(15, 18)

ERROR = {"type": "Oops", "message": "no luck"}
SEQUENCES = (
    "select c.oid::regclass::text from pg_class c where c.relnamespace = 'durable'::regnamespace and c.relkind = 'S'"
)
# What a publication for all tables has of it, and has to tell rows of apart.
PUBLISHED = """select c.oid::regclass::text as table, c.relreplident = 'f' or c.relreplident = 'd' and exists (
                 select from pg_index i where i.indrelid = c.oid and i.indisprimary) as identified
               from pg_class c
               where c.relnamespace = 'durable'::regnamespace and c.relkind = 'r' and c.relpersistence = 'p'"""


def fill(conn: Connection) -> None:
    """A bit of all that is stored: what ended, is under way, in line, waits, was sent, started children, and is scheduled."""
    for name in ("a", "b"):
        call(conn, "enqueue_many", name, [{}] * 5, keys=[f"{name} {n}" for n in range(5)])
    done, parent, waiting, failed = claim(conn, max_workflows=4)
    call(conn, "checkpoint", done.workflow_id, done.lease, "s", {})
    call(conn, "complete", done.workflow_id, done.lease, {})
    call(conn, "start_children", parent.workflow_id, parent.lease, "children", "child", [{}, {}])
    call(conn, "publish", parent.workflow_id, parent.lease, "k", {})
    call(conn, "request_approval", parent.workflow_id, parent.lease, "ask", "may I?")
    call(conn, "wait", waiting.workflow_id, waiting.lease, "wait", Jsonb([{"message": "t"}, {"event": "e"}]))
    call(conn, "start_step", failed.workflow_id, failed.lease, "once")
    call(conn, "fail", failed.workflow_id, failed.lease, ERROR)
    child, late_child = claim(conn, "other", 10)[-2:]
    assert child.name == late_child.name == "child"
    call(conn, "complete", child.workflow_id, child.lease, {})
    for n in range(3):
        call(conn, "send", parent.workflow_id, "t", {"n": n})
    call(conn, "emit", "other")
    call(conn, "retain", "7 days", "mail")
    call(conn, "retain", "8 days", "mail")
    for name in ("one", "two"):
        call(conn, "schedule", name, "@hourly", "w")
        conn.execute("select durable.backfill_schedule(%s, now() - interval '3 hours', now(), false)", [name])
    tick(conn)
    call(conn, "release_many", [parent.workflow_id], [parent.lease])
    call(conn, "enqueue_many", "c", [{}] * 5)
    # What the next tick would look at.
    call(conn, "complete", late_child.workflow_id, late_child.lease, {})


# Publications


def test_every_table_can_be_part_of_a_publication_for_all_tables(db: Database) -> None:
    conn = db.connect()
    assert [row.table for row in rows(conn, PUBLISHED) if not row.identified] == []
    conn.execute("create table durable.forgotten (n integer)")
    assert [row.table for row in rows(conn, PUBLISHED) if not row.identified] == ["durable.forgotten"]


def test_all_that_writes_works_beside_a_publication_for_all_tables(db: Database) -> None:
    conn = db.connect()
    conn.execute("set client_min_messages = error")
    conn.execute("set track_functions = 'all'")
    conn.execute("create publication everything for all tables")
    everything(conn, "once")
    end_history(conn, "once")
    fill(conn)
    # A queue that nobody could list without waiting.
    conn.execute("delete from durable.known_queues")
    conn.execute("update durable.lines set look_at = '-infinity'")
    tick(conn)
    conn.execute("select pg_stat_force_next_flush()")
    assert {row[0] for row in rows(conn, UNCALLED)} - NOT_CALLED == set()


# A replica that takes over


@pytest.fixture
def logical(own_cluster: Cluster) -> Cluster:
    """A server whose log can be decoded."""
    own_cluster.stop(signal.SIGINT)
    with (own_cluster.data / "postgresql.conf").open("a") as file:
        file.write("wal_level = logical\n")
    own_cluster.start()
    return own_cluster


def replicate(origin: Database) -> Iterator[Database]:
    """First a database that gets all changes of another one; then the same when it has them all and gets no more."""
    replica = origin.cluster.create_database()
    conn, copy = origin.connect(), replica.connect()
    conn.execute("create publication everything for all tables")
    # Within one server it would wait for itself.
    conn.execute("select pg_create_logical_replication_slot('everything', 'pgoutput')")
    copy.execute(
        f"create subscription everything connection '{origin.dsn}' publication everything"
        " with (create_slot = false, copy_data = false)".encode()
    )
    yield replica
    lsn = value(conn, "select pg_current_wal_lsn()::text")
    wait_until(conn, "select confirmed_flush_lsn >= %s::pg_lsn from pg_replication_slots", lsn)
    for statement in (
        "alter subscription everything disable",
        "alter subscription everything set (slot_name = none)",
        "drop subscription everything",
    ):
        copy.execute(statement)
    wait_until(conn, "select not active from pg_replication_slots")
    conn.execute("select pg_drop_replication_slot('everything')")
    yield replica


def test_a_logical_replica_that_takes_over_goes_on_with_all_of_it(logical: Cluster) -> None:
    origin = logical.create_database()
    conn = origin.connect()
    steps = replicate(origin)
    next(steps)
    fill(conn)
    copy = next(steps).connect()
    for row in rows(conn, PUBLISHED):
        table = f"select t::text from {row.table} t order by 1"
        assert rows(copy, table) == rows(conn, table), row.table

    assert {row.sequence for row in rows(copy, "select sequence::text from durable._sequences_behind()")} == {
        row[0] for row in rows(conn, SEQUENCES)
    }
    assert value(copy, "select durable.repair_sequences()") == len(rows(conn, SEQUENCES))
    assert value(copy, "select durable.repair_sequences()") == 0
    leases = {row.lease for row in rows(copy, "select lease from durable.live_workflows where lease is not null")}
    # This server has just started.
    call(copy, "configure", "restart_grace", "0")
    for worker in ("worker", "other"):
        kill_worker(copy, worker)
    tick(copy)
    names = set()
    while claimed := claim(copy, "new", 3):
        for each in claimed:
            assert each.lease > max(leases)
            names.add(each.name)
            call(copy, "complete", each.workflow_id, each.lease)
        tick(copy)
    assert names >= {"a", "b", "c", "w"}


# Sequences that are behind their rows


def behind(conn: Connection) -> set[str]:
    return {row.sequence for row in rows(conn, "select sequence::text from durable._sequences_behind()")}


def reset(conn: Connection, sequence: str) -> None:
    conn.execute("select setval(%s, 1, false)", [sequence])


def test_every_sequence_that_is_behind_its_rows_is_found_and_repaired(db: Database) -> None:
    conn = db.connect()
    fill(conn)
    sequences = {row[0] for row in rows(conn, SEQUENCES)}
    assert sequences
    before = {name: value(conn, f"select last_value from {name}") for name in sequences}
    assert behind(conn) == set()
    for name in sequences:
        for is_called in (False, True):
            conn.execute("select setval(%s, 1, %s)", [name, is_called])
            assert behind(conn) == {name}
            assert value(conn, "select durable.repair_sequences()") == 1
            assert behind(conn) == set()
            assert value(conn, "select nextval(%s)", name) > before[name]
    assert value(conn, "select durable.repair_sequences()") == 0


def test_a_sequence_that_is_ahead_stays_where_it_is(db: Database) -> None:
    conn = db.connect()
    fill(conn)
    conn.execute("select setval('durable.ready_seq', 1000000)")
    assert value(conn, "select durable.repair_sequences()") == 0
    assert value(conn, "select nextval('durable.ready_seq')") == 1000001


def test_places_and_leases_are_found_wherever_they_are(db: Database) -> None:
    conn = db.connect()
    ids = [enqueue(conn) for _ in range(6)]
    held, parked, failed, paused, finished, state = claim(conn, max_workflows=6)
    assert ids
    call(conn, "wait", parked.workflow_id, parked.lease, "s", Jsonb([{"message": "t"}]))
    conn.execute("update durable.live_workflows set max_attempts = 9")
    call(conn, "fail", failed.workflow_id, failed.lease, ERROR, "1 hour")
    call(conn, "suspend", paused.workflow_id, paused.lease, "why")
    call(conn, "complete", finished.workflow_id, finished.lease)
    call(conn, "publish", state.workflow_id, state.lease, "k", {})
    call(conn, "complete", state.workflow_id, state.lease)
    last = value(conn, "select last_value from durable.ready_seq")
    everywhere: list[tuple[str, UUID, Any]] = [
        ("live_workflows", held.workflow_id, "lease"),
        ("live_workflows", parked.workflow_id, "parked_lease"),
        ("live_workflows", failed.workflow_id, "failed_lease"),
        ("live_workflows", paused.workflow_id, "paused_lease"),
        ("finished_workflows", finished.workflow_id, "lease"),
        ("workflow_state", state.workflow_id, "lease"),
    ]
    for table, workflow_id, column in everywhere:
        where = f"durable.{table} set {column} = %s where workflow_id = %s"
        old = value(conn, f"select {column} from durable.{table} where workflow_id = %s", workflow_id)
        assert old is not None
        conn.execute(f"update {where}".encode(), [(last + 10) << 20, workflow_id])
        assert value(conn, "select durable._highest_place(true)") == last + 10, (table, column)
        # The newest are found without reading all.
        assert table == "workflow_state" or behind(conn) == {"durable.ready_seq"}
        conn.execute(f"update {where}".encode(), [old, workflow_id])
    assert behind(conn) == set()


def test_a_message_whose_number_is_taken_is_not_lost(db: Database) -> None:
    conn = db.connect()
    workflow_id = enqueue(conn)
    for n in range(3):
        assert call(conn, "send", workflow_id, "t", {"n": n}, f"k{n}") == [(True,)]
    reset(conn, "durable.messages_seq_seq")
    with refused("23505"):
        call(conn, "send", workflow_id, "t", {"n": 3})
    # One that was sent before is the same one all the same.
    assert call(conn, "send", workflow_id, "t", {}, "k2") == [(False,)]
    call(conn, "repair_sequences")
    assert call(conn, "send", workflow_id, "t", {"n": 3}) == [(True,)]
    claimed = claim_one(conn)
    for n in range(4):
        ((outcome, output),) = call(conn, "wait", workflow_id, claimed.lease, f"s{n}", Jsonb([{"message": "t"}]))
        assert (outcome, output["value"]) == ("ok", {"n": n})


def test_a_worker_whose_number_is_taken_is_not_taken_for_another(db: Database) -> None:
    conn = db.connect()
    enqueue(conn)
    claim_one(conn, "first")
    reset(conn, "durable.workers_worker_id_seq")
    with refused("23505"):
        claim(conn, "second")
    # Nor when the row of the one before is gone, whose session lasts.
    reset(conn, "durable.workers_worker_id_seq")
    ghost = db.connect()
    call(ghost, "attach", "first")
    conn.execute("delete from durable.workers")
    call(conn, "attach", "second")
    assert rows(conn, "select name, session_lock from durable.workers") == [("second", False)]


def test_the_first_tick_of_a_replica_that_took_over_repairs_what_nobody_did(db: Database) -> None:
    conn = db.connect()
    conn.execute("select nextval('durable.ready_seq')")
    call(conn, "enqueue_many", "a", [{}] * 5)
    call(conn, "enqueue_many", "b", [{}] * 5)
    conn.execute("select setval('durable.ready_seq', 1)")
    # They stand further on than a place that was ever given.
    assert claim(conn, max_workflows=10) == []
    conn.execute("delete from durable.wake_marks")
    tick(conn)
    assert behind(conn) == set()
    assert len(claim(conn, max_workflows=10)) == 10


def test_ticks_repair_the_sequences_of_a_replica_that_was_ticked_before_it_took_over(db: Database) -> None:
    conn = db.connect()
    fill(conn)
    for (name,) in rows(conn, SEQUENCES):
        reset(conn, name)
    for _ in range(5000):
        if not behind(conn):
            break
        tick(conn)
    assert behind(conn) == set()


def test_no_insert_takes_another_conflict_for_the_one_it_means(db: Database) -> None:
    conn = db.connect()
    inserts = {
        (row.function, table)
        for row in rows(
            conn, "select proname as function, prosrc from pg_proc where pronamespace = 'durable'::regnamespace"
        )
        for table in re.findall(
            r"insert into durable\.(\w+)(?:(?!insert into).)*?on conflict do nothing", row.prosrc, re.DOTALL
        )
    }
    # A partitioned table has no constraint that could be named; each of its partitions has one alone.
    assert {table for _, table in inserts} == {"checkpoints"}
    assert value(
        conn,
        """select array_agg(distinct unique_indexes) from (
             select count(*) filter (where i.indisunique) as unique_indexes
             from pg_inherits h join pg_index i on i.indrelid = h.inhrelid
             where h.inhparent = 'durable.checkpoints'::regclass group by h.inhrelid) p""",
    ) == [1]  # fmt: skip
