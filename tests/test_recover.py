"""Recovery: workers that die, leases that run out, the limit on crashes."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from uuid import UUID

import psycopg
import pytest

from clusters import Cluster, Database
from engine import (
    Connection,
    at_once,
    call,
    claim,
    claim_one,
    enqueue,
    kill_worker,
    refused,
    rows,
    steps,
    value,
    wait_until,
    wait_until_blocked,
    workflow,
)

# What a worker does, in a process of its own: attach, claim, checkpoint one step, then hang in the next.
WORKER = """
import sys, time, psycopg
conn = psycopg.connect(sys.argv[1], autocommit=True)
conn.execute("select durable.attach('doomed')")
workflow_id, lease = conn.execute("select workflow_id, lease from durable.claim('doomed')").fetchone()
conn.execute("select durable.checkpoint(%s, %s, 'one', '1')", [workflow_id, lease])
print("ready", flush=True)
time.sleep(600)
"""


def start_worker(db: Database) -> subprocess.Popen[str]:
    process = subprocess.Popen([sys.executable, "-c", WORKER, db.dsn], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def kill(process: subprocess.Popen[str]) -> None:
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()


def tick_until(conn: Connection, part: str, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if value(conn, "select durable.tick()").get(part):
            return
        conn.execute("select pg_sleep(0.05)")
    raise AssertionError(f"nothing was {part}")


def test_03_after_kill_9_a_worker_goes_on_after_the_last_completed_step(db: Database) -> None:
    conn = db.connect()
    call(conn, "configure", "restart_grace", "0")
    workflow_id = enqueue(conn)
    process = start_worker(db)
    kill(process)
    tick_until(conn, "recovered")
    claimed = claim_one(conn, "next")
    assert (claimed.workflow_id, claimed.attempt) == (workflow_id, 2)
    assert [(step["step_name"], step["output"]) for step in claimed.steps] == [("one", 1)]
    call(conn, "checkpoint", workflow_id, claimed.lease, "two", None)
    call(conn, "complete", workflow_id, claimed.lease)
    assert set(steps(conn, workflow_id)) == {"one", "two"}
    row = workflow(conn, workflow_id)
    assert (row.status, row.crashes, row.failures) == ("completed", 0, 0)


def test_a_killed_process_is_recovered_long_before_its_lease_runs_out(db: Database) -> None:
    conn = db.connect()
    call(conn, "configure", "restart_grace", "0")
    call(conn, "configure", "lease", "1 hour")
    enqueue(conn)
    kill(start_worker(db))
    tick_until(conn, "recovered")
    assert value(conn, "select expires_at > now() from durable.workers where name = 'doomed' and died_at is not null")


def test_a_worker_whose_session_lives_keeps_its_workflows(db: Database) -> None:
    conn = db.connect()
    call(conn, "configure", "restart_grace", "0")
    call(conn, "configure", "session_grace", "0")
    enqueue(conn)
    process = start_worker(db)
    try:
        for _ in range(10):
            assert value(conn, "select durable.tick()")["recovered"] == 0
            conn.execute("select pg_sleep(0.02)")
    finally:
        kill(process)
    tick_until(conn, "recovered")


def test_a_worker_that_reconnects_within_the_grace_keeps_its_workflows(db: Database) -> None:
    conn = db.connect()
    call(conn, "configure", "restart_grace", "0")
    call(conn, "configure", "session_grace", "1 hour")
    call(conn, "configure", "lease", "1 hour")
    workflow_id = enqueue(conn)
    kill(start_worker(db))
    for _ in range(2000):
        call(conn, "tick")
        if value(conn, "select count(lock_lost_at) from durable.workers") == 1:
            break
        conn.execute("select pg_sleep(0.01)")
    again = db.connect()
    call(again, "attach", "doomed")
    assert rows(conn, "select session_lock, lock_lost_at from durable.workers") == [(True, None)]
    call(conn, "tick")
    row = workflow(conn, workflow_id)
    assert (row.status, row.worker) == ("running", "doomed")


def test_attaching_again_from_the_same_session_holds_one_lock(db: Database) -> None:
    conn, other = db.connect(), db.connect()
    for _ in range(3):
        call(conn, "attach", "w")
    assert (
        value(other, "select count(*) from pg_locks where locktype = 'advisory' and pid = %s", conn.info.backend_pid)
        == 1
    )
    assert value(other, "select session_lock from durable.workers")


def test_a_lease_that_is_not_renewed_expires(db: Database) -> None:
    conn = db.connect()
    call(conn, "configure", "lease", "1 second")
    workflow_id = enqueue(conn)
    claimed = claim_one(conn, "silent")
    tick_until(conn, "recovered")
    assert workflow(conn, workflow_id).status == "pending"
    assert call(conn, "heartbeat", "silent", [workflow_id], [claimed.lease]) == [(workflow_id, "WF002", claimed.lease)]


def test_a_heartbeat_renews_the_lease_on_everything_a_worker_holds(db: Database) -> None:
    conn = db.connect()
    held = [enqueue(conn) for _ in range(3)]
    claimed = claim(conn, "w", 3)
    conn.execute("update durable.workers set expires_at = now() + interval '1 millisecond'")
    assert call(conn, "heartbeat", "w", held, [c.lease for c in claimed]) == []
    conn.execute("select pg_sleep(0.01)")
    assert value(conn, "select durable.recover()") == 0


def test_04_two_recoveries_of_the_same_worker_requeue_each_workflow_once(db: Database) -> None:
    conn = db.connect()
    for turn in range(5):
        call(conn, "enqueue_many", "w", [{}] * 50)
        assert len(claim(conn, f"dead {turn}", 50)) == 50
        kill_worker(conn, f"dead {turn}")
        recovered = at_once(*(lambda: value(db.connect(), "select durable.recover()") for _ in range(4)))
        assert sum(recovered) == 50
        claimed = claim(conn, f"heir {turn}", 100)
        assert len(claimed) == 50
        assert {c.attempt for c in claimed} == {2}
        call(conn, "complete_many", [c.workflow_id for c in claimed], [c.lease for c in claimed], [{}] * 50)


def test_04_of_two_who_claim_a_recovered_workflow_one_owns_it(db: Database) -> None:
    conn = db.connect()
    for turn in range(10):
        workflow_id = enqueue(conn)
        claim_one(conn, f"dead {turn}")
        kill_worker(conn, f"dead {turn}")

        def take(worker: str) -> list[tuple[object, int]]:
            own = db.connect()
            call(own, "recover")
            return [(c.workflow_id, c.lease) for c in claim(own, worker)]

        taken = [c for got in at_once(lambda: take("one"), lambda: take("two")) for c in got]
        taken += [(c.workflow_id, c.lease) for c in claim(conn, "three")]
        assert [c[0] for c in taken] == [workflow_id]
        call(conn, "complete", *taken[0])


def test_a_recovery_takes_no_more_than_it_is_told(db: Database) -> None:
    conn = db.connect()
    call(conn, "enqueue_many", "w", [{}] * 25)
    claim(conn, "dead", 25)
    kill_worker(conn, "dead")
    assert [value(conn, "select durable.recover(10)") for _ in range(4)] == [10, 10, 5, 0]


def test_a_claim_that_commits_after_its_worker_was_declared_dead_is_recovered(db: Database) -> None:
    slow, conn = db.connect(autocommit=False), db.connect()
    call(conn, "idle", "w")
    workflow_id = enqueue(conn)
    assert claim_one(slow, "w").workflow_id == workflow_id
    kill_worker(conn, "w")
    assert value(conn, "select durable.recover()") == 0
    slow.commit()
    assert value(conn, "select durable.recover()") == 1
    assert claim_one(conn, "next").workflow_id == workflow_id


def test_a_registration_that_did_not_commit_in_time_holds_up_nobody(db: Database) -> None:
    slow, conn, observer = db.connect(autocommit=False), db.connect(), db.connect()
    workflow_id = enqueue(conn)
    assert claim_one(slow, "w").workflow_id == workflow_id
    with ThreadPoolExecutor(1) as pool:
        twin = pool.submit(claim, conn, "w")
        wait_until_blocked(observer, conn)
        assert value(observer, "select durable.recover()") == 0
        slow.rollback()
        assert [c.workflow_id for c in twin.result()] == [workflow_id]


def test_18_a_workflow_that_crashes_its_workers_is_given_up_at_the_limit_and_says_so(db: Database) -> None:
    conn = db.connect()
    call(conn, "configure", "max_crashes", "2")
    workflow_id, sound = enqueue(conn), enqueue(conn, queue="sound")
    # Two crashes make it a suspect, and from then on they count.
    for crash in range(5):
        assert workflow(conn, workflow_id).crashes == max(0, crash - 2)
        claim_one(conn, "w")
        claim_one(conn, "w", queues=["sound"]) if crash == 4 else None
        kill_worker(conn, "w")
        call(conn, "recover")
    row = workflow(conn, workflow_id)
    assert (row.status, row.crashes, row.failures, row.error["code"]) == ("failed", 3, 0, "WF009")
    assert "3 crashes" in row.error_message
    assert claim(conn, "w") == []
    assert (workflow(conn, sound).status, workflow(conn, sound).crashes) == ("pending", 0)
    assert call(conn, "retry", workflow_id) == [(True,)]
    row = workflow(conn, workflow_id)
    assert (row.status, row.crashes) == ("pending", 0)


def test_leaving_gives_everything_back_without_counting_a_crash(db: Database) -> None:
    conn = db.connect()
    held = {enqueue(conn) for _ in range(3)}
    claim(conn, "w", 3)
    assert value(conn, "select durable.leave('w')") == 3
    assert value(conn, "select durable.leave('w')") == 0
    assert value(conn, "select durable.leave('stranger')") == 0
    claimed = claim(conn, "next", 9)
    assert {c.workflow_id for c in claimed} == held
    assert {workflow(conn, c.workflow_id).crashes for c in claimed} == {0}


def test_a_worker_that_comes_back_under_its_name_is_a_new_registration(db: Database) -> None:
    conn = db.connect()
    call(conn, "idle", "w")
    call(conn, "leave", "w")
    call(conn, "idle", "w")
    assert value(conn, "select count(*) from durable.workers where name = 'w'") == 2
    assert value(conn, "select count(*) from durable.workers where name = 'w' and died_at is null") == 1


def test_dead_workers_are_forgotten_after_their_time_but_not_while_they_hold_anything(db: Database) -> None:
    conn = db.connect()
    enqueue(conn)
    claim_one(conn, "holder")
    call(conn, "idle", "gone")
    conn.execute(
        "update durable.workers set died_at = now() - interval '1 year', expires_at = now() - interval '1 year'"
    )
    call(conn, "recover")
    assert rows(conn, "select name from durable.workers") == [("holder",)]
    call(conn, "recover")
    assert rows(conn, "select name from durable.workers") == []


def test_every_workflow_survives_a_kill_of_the_server_and_ends_once(own_cluster: Cluster) -> None:
    db = own_cluster.create_database()
    conn = db.connect()
    call(conn, "configure", "restart_grace", "0")
    ids = [enqueue(conn, key=f"k{n}") for n in range(20)]
    first = claim(conn, "one", 10)
    for c in first[:5]:
        call(conn, "checkpoint", c.workflow_id, c.lease, "s", {"by": "one"})
    call(conn, "complete", first[0].workflow_id, first[0].lease, {"by": "one"})
    open_transaction = db.connect(autocommit=False)
    enqueue(open_transaction, key="uncommitted")
    own_cluster.kill()
    own_cluster.start()

    conn = db.connect()
    assert value(conn, "select count(*) from durable.workflows") == 20
    assert workflow(conn, ids[0]).output == {"by": "one"}
    assert steps(conn, ids[1])["s"].output == {"by": "one"}
    # The lease outlives the server: the owner may go on.
    call(conn, "complete", first[1].workflow_id, first[1].lease, {"by": "one"})
    kill_worker(conn, "one")
    assert value(conn, "select durable.recover()") == 8
    rest = claim(conn, "two", 100)
    assert {c.workflow_id for c in rest} == set(ids[2:])
    assert min(c.lease for c in rest) > max(c.lease for c in first)
    done = call(conn, "complete_many", [c.workflow_id for c in rest], [c.lease for c in rest], [{"by": "two"}] * 18)
    assert {row.outcome for row in done} == {"ok"}
    assert value(conn, "select count(*) from durable.workflows where status = 'completed'") == 20


def test_after_a_start_of_the_server_only_leases_count_until_workers_could_reconnect(own_cluster: Cluster) -> None:
    db = own_cluster.create_database()
    conn, session = db.connect(), db.connect()
    call(conn, "configure", "restart_grace", "1 hour")
    call(conn, "configure", "session_grace", "0")
    call(conn, "configure", "lease", "1 hour")
    workflow_id = enqueue(conn)
    call(session, "attach", "w")
    claim_one(session, "w")
    own_cluster.kill()
    own_cluster.start()
    conn = db.connect()
    for _ in range(3):
        assert value(conn, "select durable.tick()")["recovered"] == 0
    call(db.connect(), "attach", "w")
    call(conn, "configure", "restart_grace", "0")
    for _ in range(3):
        assert value(conn, "select durable.tick()")["recovered"] == 0
    assert workflow(conn, workflow_id).status == "running"


def test_max_crashes_is_at_least_one(db: Database) -> None:
    with refused("WF005"):
        call(db.connect(), "configure", "max_crashes", "0")


@pytest.mark.parametrize("level", ["repeatable read", "serializable"])
def test_a_part_of_a_tick_that_met_a_concurrent_change_is_for_the_next_tick(db: Database, level: str) -> None:
    conn, ticker = db.connect(), db.connect(autocommit=False)
    workflow_id = enqueue(conn)
    claim_one(conn)
    kill_worker(conn, "worker")
    ticker.execute(f"set transaction isolation level {level}".encode())
    # What it sees from here on: a worker whose lease ran out, which sends a heartbeat meanwhile.
    assert workflow(ticker, workflow_id).status == "running"
    call(conn, "heartbeat", "worker")
    report = value(ticker, "select durable.tick()")
    assert report["recovered"] == 0
    assert not [part for part, done in report.items() if isinstance(done, dict)], report
    ticker.commit()
    kill_worker(conn, "worker")
    assert value(conn, "select durable.tick()")["recovered"] == 1


# Transactional steps of workers that are gone


def open_step(db: Database, worker: str = "worker") -> tuple[Connection, UUID]:
    """A session within a transactional step, and its workflow."""
    conn = db.connect(autocommit=False)
    claimed = claim_one(conn, worker)
    conn.commit()
    call(conn, "begin_step", claimed.workflow_id, claimed.lease, "s")
    return conn, claimed.workflow_id


def fall_silent(conn: Connection, worker: str = "worker") -> None:
    """Returns when nothing was heard of a worker for the time of a lease."""
    call(conn, "configure", "lease", "1 second")
    conn.execute("select pg_sleep(1.2)")
    conn.execute(
        "update durable.workers set heartbeat_at = heartbeat_at - interval '1 hour', expires_at = '-infinity' where name = %s",
        [worker],
    )


def is_open(conn: Connection, step: Connection) -> bool:
    return bool(
        value(
            conn,
            "select exists (select from pg_stat_activity where pid = %s and xact_start is not null)",
            step.info.backend_pid,
        )
    )


def test_a_step_that_a_dead_worker_left_open_is_ended_and_its_workflow_goes_on(db: Database) -> None:
    conn = db.connect()
    enqueue(conn)
    step, workflow_id = open_step(db)
    fall_silent(conn)
    tick_until(conn, "recovered")
    with pytest.raises(psycopg.OperationalError):
        step.execute("select 1")
    claimed = claim_one(conn, "another")
    assert claimed.workflow_id == workflow_id
    call(conn, "begin_step", workflow_id, claimed.lease, "s")


def test_a_cancel_need_not_wait_for_the_step_of_a_dead_worker(db: Database) -> None:
    conn, canceller = db.connect(), db.connect()
    enqueue(conn)
    _, workflow_id = open_step(db)
    fall_silent(conn)

    def tick() -> None:
        wait_until_blocked(conn, canceller)
        while workflow(conn, workflow_id).status != "cancelled":
            value(conn, "select durable.tick()")

    at_once(tick, lambda: call(canceller, "cancel", workflow_id))


@pytest.mark.parametrize("why", ["its lease holds", "it is back", "it runs SQL", "it has just run some"])
def test_a_step_is_left_open_while_its_worker_may_still_commit_it(db: Database, why: str) -> None:
    conn = db.connect()
    enqueue(conn)
    step, workflow_id = open_step(db)
    if why != "its lease holds":
        fall_silent(conn)
    if why == "it is back":
        # It was declared dead when it lost its session.
        conn.execute("update durable.workers set died_at = heartbeat_at")
        call(conn, "attach", "worker")
    elif why == "it has just run some":
        call(conn, "configure", "lease", None)
        step.execute("select 1")
    with ThreadPoolExecutor(1) as pool:
        if why == "it runs SQL":
            sleeping = pool.submit(step.execute, "select pg_sleep(3)")
            wait_until(
                conn, "select wait_event = 'PgSleep' from pg_stat_activity where pid = %s", step.info.backend_pid
            )
        for _ in range(10):
            value(conn, "select durable.tick()")
        assert is_open(conn, step)
        if why == "it runs SQL":
            sleeping.result()
    call(step, "checkpoint", workflow_id, value(conn, "select lease from durable.live_workflows"), "s", {})
    step.commit()
    assert list(steps(conn, workflow_id)) == ["s"]


def test_a_step_that_may_not_be_ended_is_told_of_and_stops_no_tick(db: Database) -> None:
    conn = db.connect()
    enqueue(conn)
    step, workflow_id = open_step(db)
    fall_silent(conn)
    conn.execute("update durable.workers set died_at = now()")
    notices: list[str] = []
    other = db.connect()
    other.add_notice_handler(lambda notice: notices.append(str(notice.message_primary)))
    role = f"limited_{db.name}"
    other.execute(f"create role {role} in role pg_read_all_stats".encode())
    try:
        for grant in ("usage on schema", "select on all tables in schema", "execute on all functions in schema"):
            other.execute(f"grant {grant} durable to {role}".encode())
        other.execute(f"set role {role}".encode())
        other.execute("select durable._end_open_steps(array(select worker_id from durable.workers))")
        other.execute("reset role")
    finally:
        other.execute(f"drop owned by {role}".encode())
        other.execute(f"drop role {role}".encode())
    (notice,) = notices
    assert f"in process {step.info.backend_pid}, which this role may not terminate" in notice
    assert is_open(conn, step)
    assert workflow(conn, workflow_id).status == "running"


KEEPALIVES = [f"tcp_keepalives_{name}" for name in ("idle", "interval", "count")] + ["tcp_user_timeout"]


@pytest.mark.pg(15, 18)
def test_a_transactional_step_has_its_connection_probed_for_as_long_as_it_lasts(own_cluster: Cluster) -> None:
    # The tests share a port, and so each server has an address.
    chance = random.Random(own_cluster.data.parent.name)
    address = ".".join(["127", *(str(chance.randrange(2, 250)) for _ in range(3))])
    own_cluster.stop()
    with (own_cluster.data / "pg_hba.conf").open("a") as file:
        file.write("host all all 127.0.0.0/8 trust\n")
    with (own_cluster.data / "postgresql.conf").open("a") as file:
        file.write(f"listen_addresses = '{address}'\n")
    own_cluster.start()
    database = own_cluster.create_database()
    conn = database.connect()
    enqueue(conn)
    claimed = claim_one(conn)

    def within(step: Connection) -> list[str]:
        call(step, "begin_step", claimed.workflow_id, claimed.lease, "s")
        found = shown(step)
        step.rollback()
        return found

    def shown(step: Connection) -> list[str]:
        return [value(step, f"show {name}") for name in KEEPALIVES]

    with psycopg.connect(f"host={address} port=5432 user=postgres dbname={database.name}") as step:
        before = shown(step)
        step.rollback()
        # A host that vanished is given up after 25 seconds.
        assert within(step) == ["10", "5", "3", "25000"]
        assert shown(step) == before
        step.execute("set tcp_keepalives_idle = 7")
        step.commit()
        assert within(step) == ["7", *before[1:]]
    with database.connect(autocommit=False) as local:
        assert within(local) == ["0", "0", "0", "0"]


def test_a_workflow_of_whose_steps_somebody_holds_one_does_not_keep_others_from_their_timeout(db: Database) -> None:
    conn, holder = db.connect(), db.connect(autocommit=False)
    held, *others = [enqueue(conn, timeout="1 second") for _ in range(4)]
    leases = {each.workflow_id: each.lease for each in claim(conn, max_workflows=4)}
    call(conn, "fail_step", held, leases[held], "s", {"type": "E"}, 1, 3)
    call(holder, "checkpoint_many", [held], [leases[held]], ["s"], [{}])
    conn.execute("update durable.live_workflows set deadline = now() - interval '1 second'")
    report = value(conn, "select durable.tick()")
    assert "passed_over" not in report
    assert {workflow(conn, each).status for each in others} == {"failed"}
    assert workflow(conn, held).status == "running"
    holder.rollback()
    call(conn, "tick")
    assert workflow(conn, held).status == "failed"
