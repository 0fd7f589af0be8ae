"""Partitions of the history: made ahead, made on demand, and for nothing that does not exist."""

from __future__ import annotations

from datetime import date, timedelta
from uuid import UUID

import pytest

from clusters import Database
from engine import NOBODY, Connection, at_once, call, claim, claim_one, enqueue, rows, steps, value, workflow

PARENTS = ("finished_workflows", "checkpoints")


def partitions(conn: Connection) -> dict[str, list[str]]:
    return {
        parent: [
            row[0]
            for row in rows(
                conn,
                f"select inhrelid::regclass::text from pg_inherits where inhparent = 'durable.{parent}'::regclass order by 1",
            )
        ]
        for parent in PARENTS
    }


def days(conn: Connection) -> dict[str, list[str]]:
    return {parent: [name[-8:] for name in names] for parent, names in partitions(conn).items()}


def drop_partitions(conn: Connection) -> None:
    for names in partitions(conn).values():
        for name in names:
            conn.execute(f"drop table {name}".encode())


def age(conn: Connection, workflow_id: UUID, day: date) -> UUID:
    """The workflow as if it had been enqueued on that day."""
    old = value(conn, "select durable._first_id(%s::timestamptz + interval '12 hours')", f"{day} UTC")
    conn.execute("update durable.live_workflows set workflow_id = %s where workflow_id = %s", [old, workflow_id])
    assert isinstance(old, UUID)
    return old


def test_the_tick_makes_the_partitions_of_today_and_the_next_days(db: Database) -> None:
    conn = db.connect()
    drop_partitions(conn)
    # In one transaction, which has one time.
    with conn.transaction():
        assert value(conn, "select durable.tick()")["partitions"] > 0
        assert value(conn, "select durable.tick()")["partitions"] == 0
        today = value(conn, "select (now() at time zone 'UTC')::date")
    for made in days(conn).values():
        assert f"{today:%Y%m%d}" in made
        assert f"{today + timedelta(days=1):%Y%m%d}" in made


def test_a_missing_partition_is_made_by_whoever_finds_it_missing(db: Database) -> None:
    conn = db.connect()
    drop_partitions(conn)
    one, two, three, four = (enqueue(conn) for _ in range(4))
    leases = [c.lease for c in claim(conn, max_workflows=4)]
    call(conn, "checkpoint", one, leases[0], "s", {})
    assert list(steps(conn, one)) == ["s"]
    drop_partitions(conn)
    call(conn, "complete", one, leases[0])
    drop_partitions(conn)
    call(conn, "fail", two, leases[1], {"message": "no"})
    drop_partitions(conn)
    call(conn, "cancel", three)
    drop_partitions(conn)
    call(conn, "fail_step", four, leases[3], "s", {"message": "no"})
    assert steps(conn, four)["s"].status == "error"
    assert workflow(conn, four).status == "running"


def test_a_workflow_of_long_ago_finds_its_day(db: Database) -> None:
    conn = db.connect()
    long_ago = [date(2024, 2, 29), date(2025, 12, 31), date(2026, 1, 1)]
    ids = [age(conn, enqueue(conn), day) for day in long_ago]
    claimed = {c.workflow_id: c.lease for c in claim(conn, max_workflows=5)}
    recent = enqueue(conn)
    ids.append(recent)
    claimed[recent] = claim_one(conn).lease
    leases = [claimed[i] for i in ids]
    stored = call(conn, "checkpoint_many", ids, leases, ["s"] * 4, [{}] * 4)
    assert [row.outcome for row in stored] == ["ok"] * 4
    assert [row.outcome for row in call(conn, "complete_many", ids, leases, [{}] * 4)] == ["ok"] * 4
    for made in days(conn).values():
        assert {"20240229", "20251231", "20260101"} <= set(made)


def test_many_who_miss_the_same_partition_all_get_through(db: Database) -> None:
    conn = db.connect()
    drop_partitions(conn)
    workflow_ids = [age(conn, enqueue(conn), date(2025, 6, day)) for day in range(1, 9)]
    leases = {c.workflow_id: c.lease for c in claim(conn, max_workflows=20)}
    at_once(*(lambda i=i: call(db.connect(), "complete", i, leases[i]) for i in workflow_ids))
    assert value(conn, "select count(*) from durable.workflows where status = 'completed'") == 8
    assert set(days(conn)["finished_workflows"]) >= {f"2025060{day}" for day in range(1, 9)}


@pytest.mark.parametrize(
    "bogus", [NOBODY, UUID(int=2**128 - 1), UUID(int=0), UUID("f47ac10b-58cc-4372-a567-0e02b2c3d479")], ids=str
)
def test_an_id_that_is_not_stored_makes_no_partition(db: Database, bogus: UUID) -> None:
    conn = db.connect()
    before = partitions(conn)
    call(conn, "complete_many", [bogus], [1], [{}])
    call(conn, "checkpoint_many", [bogus], [1], ["s"], [{}])
    call(conn, "fail_many", [bogus], [1], [{}])
    good = enqueue(conn)
    lease = claim_one(conn).lease
    done = call(conn, "complete_many", [bogus, good], [1, lease], [{}, {}])
    assert [row.outcome for row in done] == ["WF001", "ok"]
    assert partitions(conn) == before


def test_there_is_no_default_partition(db: Database) -> None:
    conn = db.connect()
    call(conn, "tick")
    default = "select 1 from pg_partitioned_table where partdefid <> 0 and partrelid::regclass::text ~ '^durable'"
    assert rows(conn, default) == []


def test_every_partition_has_the_constraints_that_the_guarantees_rest_on(db: Database) -> None:
    conn = db.connect()
    for parent, key in (("finished_workflows", "workflow_id"), ("checkpoints", "workflow_id, step_name")):
        for partition in partitions(conn)[parent]:
            found = rows(
                conn, "select pg_get_constraintdef(oid) from pg_constraint where conrelid = %s::regclass", partition
            )
            assert (f"PRIMARY KEY ({key})",) in found
