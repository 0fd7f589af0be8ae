"""What durable.health() finds, each thing brought about."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from clusters import Cluster, Database
from engine import Connection, advance, call, claim_one, enqueue, kill_worker, rows, value, wait_until

pytestmark = pytest.mark.pg(15, 18)
CHECKS = {
    "ticks", "tick parts", "locks", "partitions", "schedules", "vacuum", "notifications", "clocks", "sequences",
    "commits", "dead workers",
}  # fmt: skip


def found(conn: Connection, check: str) -> Any:
    (row,) = [row for row in call(conn, "health") if row.check == check]
    return row


def test_all_is_well_after_a_tick(db: Database) -> None:
    conn = db.connect()
    call(conn, "tick")
    call(conn, "heartbeat", "nobody")
    findings = call(conn, "health")
    assert {finding.check for finding in findings} == CHECKS
    # What others do on this server is theirs.
    assert [finding for finding in findings if finding.state != "ok" and finding.check != "vacuum"] == []
    for finding in findings:
        assert finding.detail
        assert finding.state != "ok" or (finding.since, finding.remedy) == (None, None)


def test_ticks_that_are_late_are_found(db: Database) -> None:
    conn = db.connect()
    conn.execute("delete from durable.tick_marks")
    assert (found(conn, "ticks").state, found(conn, "ticks").since) == ("critical", None)
    call(conn, "tick")
    last = value(conn, "select looked_at from durable.tick_marks")
    assert found(conn, "ticks").state == "ok"
    advance(conn, "15 seconds")
    assert (found(conn, "ticks").state, found(conn, "ticks").since) == ("warning", last)
    advance(conn, "40 seconds")
    assert found(conn, "ticks").state == "critical"
    call(conn, "tick")
    assert found(conn, "ticks").state == "ok"


def test_parts_of_the_tick_that_fail_are_found_with_when_they_began_and_no_longer_when_they_are_mended(
    db: Database,
) -> None:
    conn = db.connect()
    conn.execute("alter table durable.dropped_days rename to away")
    call(conn, "tick")
    first = found(conn, "tick parts")
    assert (first.state, "forgotten" in first.detail, "dropped_days" in first.detail) == ("warning", True, True)
    advance(conn, "2 minutes")
    call(conn, "tick")
    assert (found(conn, "tick parts").state, found(conn, "tick parts").since) == ("critical", first.since)
    conn.execute("alter table durable.away rename to dropped_days")
    call(conn, "tick")
    assert found(conn, "tick parts").state == "ok"


def test_a_part_that_a_lock_keeps_from_its_work_is_found(db: Database) -> None:
    conn, holder = db.connect(), db.connect(autocommit=False)
    holder.execute("lock table durable.events in access exclusive mode")
    report = call(conn, "tick")[0].tick
    assert "aged" in report["passed_over"]
    assert report["woken"] == 0
    assert "aged" in "".join(row.detail for row in call(conn, "health") if row.check == "tick parts")
    holder.rollback()
    assert "passed_over" not in call(conn, "tick")[0].tick
    assert found(conn, "tick parts").state == "ok"


def test_who_keeps_a_tick_open_is_named(db: Database) -> None:
    conn, holder = db.connect(), db.connect(autocommit=False, application_name="a script")
    call(holder, "tick")
    assert found(conn, "locks").state == "ok"
    advance(conn, "10 seconds")
    findings = [row for row in call(conn, "health") if row.check == "locks"]
    assert any("durable.tick" in row.detail and "'a script'" in row.detail and row.since for row in findings)
    # The ticks of others go on.
    assert "busy" not in call(conn, "tick")[0].tick
    holder.rollback()
    assert found(conn, "locks").state == "ok"


def test_missing_partitions_are_found(db: Database) -> None:
    conn = db.connect()
    advance(conn, "10 days")
    assert found(conn, "partitions").state == "warning"
    call(conn, "tick")
    assert found(conn, "partitions").state == "ok"


def test_the_oldest_transaction_is_named(db: Database) -> None:
    conn, holder = db.connect(), db.connect(autocommit=False, application_name="a report")
    holder.execute("create temp table mine (n int)")
    advance(conn, "20 minutes")
    (finding,) = [row for row in call(conn, "health") if row.check == "vacuum" and row.state == "warning"][:1]
    assert "keeps dead rows" in finding.detail
    advance(conn, "5 hours")
    assert "critical" in [row.state for row in call(conn, "health") if row.check == "vacuum"]


def test_a_worker_whose_clock_is_wrong_is_named(db: Database) -> None:
    conn = db.connect()
    enqueue(conn)
    claim_one(conn, "worker")
    conn.execute("select durable.heartbeat('worker', clock => clock_timestamp() + interval '1 second')")
    assert found(conn, "clocks").state == "ok"
    conn.execute("select durable.heartbeat('worker', clock => clock_timestamp() - interval '1 hour')")
    finding = found(conn, "clocks")
    assert (finding.state, "'worker'" in finding.detail, "behind" in finding.detail) == ("warning", True, True)


def test_a_sequence_that_is_behind_its_rows_is_named(db: Database) -> None:
    conn = db.connect()
    for _ in range(3):
        enqueue(conn)
    conn.execute("alter sequence durable.ready_seq restart")
    assert "ready_seq" in found(conn, "sequences").detail
    call(conn, "repair_sequences")
    assert found(conn, "sequences").state == "ok"


def test_what_a_dead_worker_still_holds_is_named(db: Database) -> None:
    conn, holder = db.connect(), db.connect(autocommit=False)
    workflow_id = enqueue(conn)
    claim_one(conn, "gone")
    call(holder, "cancel", workflow_id)
    kill_worker(conn, "gone")
    call(conn, "recover")
    advance(conn, "15 seconds")
    finding = found(conn, "dead workers")
    assert (finding.state, str(workflow_id) in finding.detail, "'gone'" in finding.detail) == ("warning", True, True)
    holder.rollback()
    call(conn, "recover")
    assert found(conn, "dead workers").state == "ok"
    assert rows(conn, "select from durable.workflows where status = 'pending'")


def test_commits_that_wait_for_a_standby_are_found(own_cluster: Cluster) -> None:
    db = own_cluster.create_database()
    conn = db.connect()
    conn.execute("set synchronous_commit = local")
    waiting = db.connect()
    assert found(conn, "commits").state == "ok"
    conn.execute("alter system set synchronous_standby_names = 'berlin'")
    conn.execute("select pg_reload_conf()")
    wait_until(waiting, "select current_setting('synchronous_standby_names') = 'berlin'")
    with ThreadPoolExecutor(1) as pool:
        enqueued = pool.submit(enqueue, waiting)
        wait_until(conn, "select count(*) = 1 from pg_stat_activity where wait_event = 'SyncRep'")
        advance(conn, "10 seconds")
        finding = found(conn, "commits")
        assert (finding.state, "berlin" in finding.detail, finding.since is None) == ("critical", True, False)
        conn.execute("alter system reset synchronous_standby_names")
        conn.execute("select pg_reload_conf()")
        enqueued.result()
    assert found(conn, "commits").state == "ok"


def test_who_has_locked_a_table_is_named_and_health_does_not_wait(db: Database) -> None:
    conn, holder, waiting = db.connect(), db.connect(autocommit=False, application_name="a migration"), db.connect()
    call(conn, "tick")
    holder.execute("lock table durable.live_workflows, durable.tick_marks in access exclusive mode")
    with ThreadPoolExecutor(1) as pool:
        enqueued = pool.submit(enqueue, waiting)
        wait_until(
            conn,
            "select count(*) > 0 from durable.health() where detail ~ %s",
            "'a migration'.* has locked durable.live_workflows",
        )
        assert found(conn, "ticks").detail == "it cannot look: another transaction has locked a table"
        holder.rollback()
        enqueued.result()


def test_a_prepared_transaction_that_has_locked_a_table_is_told_of(preparing_db: Database) -> None:
    conn, waiting = preparing_db.connect(), preparing_db.connect()
    holder = preparing_db.connect(autocommit=False)
    call(conn, "tick")
    holder.execute("lock table durable.live_workflows in share mode")
    holder.execute("prepare transaction 'left behind'")
    with ThreadPoolExecutor(1) as pool:
        enqueued = pool.submit(enqueue, waiting)
        wait_until(
            conn,
            "select count(*) > 0 from durable.health() where detail ~ %s and remedy ~ %s and remedy !~ 'terminate'",
            "^a prepared transaction has locked durable.live_workflows",
            "rollback prepared",
        )
        conn.execute("rollback prepared 'left behind'")
        enqueued.result()


def test_a_schedule_that_somebody_keeps_from_firing_is_named(db: Database) -> None:
    conn, holder = db.connect(), db.connect(autocommit=False)
    call(conn, "schedule", "held", "1 minute", "w")
    call(holder, "trigger_schedule", "held")
    advance(conn, "2 minutes")
    call(conn, "tick")
    assert "'held'" in found(conn, "schedules").detail
    holder.rollback()
    call(conn, "tick")
    assert found(conn, "schedules").state == "ok"


def test_sessions_that_the_owner_may_not_see_are_told_of(db: Database) -> None:
    admin = db.connect()
    owner, other = f"owner_{db.name}", f"other_{db.name}"
    for role in (owner, other):
        admin.execute(f"create role {role} login".encode())
    try:
        admin.execute(f"alter function durable.health() owner to {owner}".encode())
        admin.execute(f"grant usage on schema durable to {owner}".encode())
        admin.execute(f"grant all on all tables in schema durable to {owner}".encode())
        admin.execute(f"grant all on all functions in schema durable to {owner}".encode())
        admin.execute(f"grant all on all sequences in schema durable to {owner}".encode())
        with db.connect(user=other):
            findings = [row for row in call(admin, "health") if "cannot be seen" in row.detail]
            assert {finding.check for finding in findings} >= {"locks", "commits"}
            for finding in findings:
                assert (finding.state, finding.remedy) == (
                    "warning",
                    f"As a superuser: grant pg_read_all_stats to {owner}",
                )
    finally:
        db.disconnect()
        with db.cluster.connect(db.name) as conn:
            for role in (owner, other):
                conn.execute(f"reassign owned by {role} to postgres; drop owned by {role}; drop role {role}".encode())
