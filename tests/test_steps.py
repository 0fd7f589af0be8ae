"""Steps: checkpoints, transactional steps, at-most-once steps, retries of steps."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import timedelta
from typing import Any
from uuid import UUID

import psycopg
import pytest

from clusters import Database
from engine import (
    NOBODY,
    Connection,
    at_once,
    call,
    claim_one,
    enqueue,
    kill_worker,
    refused,
    rows,
    snapshot,
    steps,
    value,
    wait_until_blocked,
    workflow,
)

ERROR = {"type": "Oops", "message": "no luck"}


def start(conn: Connection, worker: str = "worker") -> tuple[UUID, int]:
    workflow_id = enqueue(conn)
    claimed = claim_one(conn, worker)
    assert claimed.workflow_id == workflow_id
    return workflow_id, claimed.lease


def take_over(conn: Connection, workflow_id: UUID, loser: str = "worker", winner: str = "winner") -> Any:
    kill_worker(conn, loser)
    call(conn, "recover")
    claimed = claim_one(conn, winner)
    assert claimed.workflow_id == workflow_id
    return claimed


def test_05_a_stale_owner_changes_nothing_and_the_owner_is_undisturbed(db: Database) -> None:
    conn = db.connect()
    workflow_id, stale = start(conn)
    call(conn, "start_step", workflow_id, stale, "begun")
    owner = take_over(conn, workflow_id)
    before = snapshot(conn)
    attempts: list[tuple[Any, ...]] = [
        ("checkpoint", workflow_id, stale, "s", {"late": True}),
        ("complete", workflow_id, stale, {"late": True}),
        ("fail", workflow_id, stale, ERROR),
        ("fail_step", workflow_id, stale, "s", ERROR, 1, 3),
        ("fail_step", workflow_id, stale, "s", ERROR, 1, 1),
        ("start_step", workflow_id, stale, "s"),
        ("start_step", workflow_id, stale, "begun"),
        ("begin_step", workflow_id, stale, "s"),
    ]
    for function, *arguments in attempts:
        with refused("WF002"):
            call(conn, function, *arguments)
    assert rows(conn, "select outcome from durable.checkpoint_many(%s, %s, '{s}', '{1}')", [workflow_id], [stale]) == [
        ("WF002",)
    ]
    assert rows(conn, "select outcome from durable.complete_many(%s, %s, '{1}')", [workflow_id], [stale]) == [
        ("WF002",)
    ]
    assert [row.outcome for row in call(conn, "fail_many", [workflow_id], [stale], [ERROR])] == ["WF002"]
    assert value(conn, "select durable.release_many(%s, %s)", [workflow_id], [stale]) == 0
    assert snapshot(conn) == before
    assert call(conn, "checkpoint", workflow_id, owner.lease, "s", {"v": 1})[0][0] == {"v": 1}
    call(conn, "complete", workflow_id, owner.lease)
    assert workflow(conn, workflow_id).status == "completed"


def test_05_a_dead_worker_does_not_heartbeat_back_to_life(db: Database) -> None:
    conn = db.connect()
    workflow_id, stale = start(conn)
    take_over(conn, workflow_id)
    running = [{"workflow_id": str(workflow_id), "lease": stale, "step_name": "s", "attempt": 1, "elapsed_ms": 60_000}]
    lost = call(conn, "heartbeat", "worker", [workflow_id], [stale], running_steps=psycopg.types.json.Jsonb(running))
    assert lost == [(workflow_id, "WF002", stale)]
    assert steps(conn, workflow_id) == {}
    assert value(conn, "select count(*) from durable.workers where name = 'worker' and died_at is null") == 0
    row = workflow(conn, workflow_id)
    assert (row.status, row.worker) == ("running", "winner")


def test_06_a_checkpoint_sent_again_returns_the_first_output(db: Database) -> None:
    conn = db.connect()
    workflow_id, lease = start(conn)
    first = call(conn, "checkpoint", workflow_id, lease, "s", {"v": 1})
    before = snapshot(conn)
    assert call(conn, "checkpoint", workflow_id, lease, "s", {"v": 2}) == first == [({"v": 1},)]
    again = call(conn, "checkpoint_many", [workflow_id], [lease], ["s"], [{"v": 3}])
    assert [(row.item, row.outcome, row.output) for row in again] == [(1, "exists", {"v": 1})]
    assert snapshot(conn) == before


def test_06_starting_an_at_most_once_step_again_under_the_same_lease_is_harmless(db: Database) -> None:
    conn = db.connect()
    workflow_id, lease = start(conn)
    call(conn, "start_step", workflow_id, lease, "s")
    before = snapshot(conn)
    call(conn, "start_step", workflow_id, lease, "s")
    assert snapshot(conn) == before


def test_06_a_failed_attempt_reported_again_counts_once(db: Database) -> None:
    conn = db.connect()
    workflow_id, lease = start(conn)
    ((wait,),) = call(conn, "fail_step", workflow_id, lease, "s", ERROR, attempt=1, max_attempts=3, initial="1 hour")
    before = snapshot(conn)
    ((again,),) = call(conn, "fail_step", workflow_id, lease, "s", ERROR, attempt=1, max_attempts=3, initial="1 hour")
    assert snapshot(conn) == before
    assert timedelta(0) < again <= wait


def test_06_the_last_failed_attempt_reported_again_is_the_same_outcome(db: Database) -> None:
    conn = db.connect()
    workflow_id, lease = start(conn)
    for _ in range(2):
        assert call(conn, "fail_step", workflow_id, lease, "s", ERROR, attempt=3, max_attempts=3) == [(None,)]
    step = steps(conn, workflow_id)["s"]
    assert (step.status, step.error, step.attempt) == ("error", ERROR, 3)


def test_the_first_of_two_owners_to_checkpoint_wins_and_the_other_adopts(db: Database) -> None:
    slow, fast, observer = db.connect(autocommit=False), db.connect(), db.connect()
    workflow_id, lease = start(fast)
    call(slow, "checkpoint", workflow_id, lease, "s", {"by": "slow"})
    owner = take_over(fast, workflow_id)
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(call, fast, "checkpoint", workflow_id, owner.lease, "s", {"by": "fast"})
        wait_until_blocked(observer, fast)
        slow.commit()
        assert answer.result() == [({"by": "slow"},)]


def test_a_checkpoint_over_a_failed_step_tells_that_it_failed(db: Database) -> None:
    conn = db.connect()
    workflow_id, lease = start(conn)
    call(conn, "fail_step", workflow_id, lease, "s", ERROR)
    with refused("WF007") as error:
        call(conn, "checkpoint", workflow_id, lease, "s", {})
    assert error.value.diag.message_detail == "no luck"


def test_a_failed_attempt_never_replaces_a_completed_step(db: Database) -> None:
    conn = db.connect()
    workflow_id, lease = start(conn)
    call(conn, "checkpoint", workflow_id, lease, "s", {"v": 1})
    for attempt in (1, 3):
        wait = None
        with suppress(psycopg.Error):
            ((wait,),) = call(conn, "fail_step", workflow_id, lease, "s", ERROR, attempt=attempt, max_attempts=3)
        assert wait is None, "a completed step is to be tried again"
    assert steps(conn, workflow_id)["s"].output == {"v": 1}
    assert value(conn, "select count(*) from durable.open_steps") == 0


def test_20_each_turn_of_a_loop_is_a_checkpoint_of_its_own(db: Database) -> None:
    conn = db.connect()
    workflow_id, lease = start(conn)
    names = ["s", "s#2", "s#3"]
    for n, name in enumerate(names):
        call(conn, "checkpoint", workflow_id, lease, name, {"n": n})
    claimed = take_over(conn, workflow_id)
    assert [(s["step_name"], s["output"]["n"]) for s in claimed.steps] == list(zip(names, range(3), strict=True))


def test_08_an_output_over_the_limit_fails_its_own_item_and_no_other(db: Database) -> None:
    conn = db.connect()
    call(conn, "configure", "max_payload_bytes", "1000")
    good, bad, other = start(conn), start(conn), start(conn)
    ids, leases = [good[0], bad[0], other[0]], [good[1], bad[1], other[1]]
    outputs: list[object] = [{"v": 1}, {"v": "x" * 2000}, {"v": 3}]
    done = call(conn, "checkpoint_many", ids, leases, ["s"] * 3, outputs)
    assert [row.outcome for row in done] == ["ok", "WF006", "ok"]
    assert [list(steps(conn, i)) for i in ids] == [["s"], [], ["s"]]
    done = call(conn, "complete_many", ids, leases, outputs)
    assert [row.outcome for row in done] == ["ok", "WF006", "ok"]
    assert [workflow(conn, i).status for i in ids] == ["completed", "running", "completed"]
    with refused("WF006"):
        call(conn, "checkpoint", *bad, "s", outputs[1])
    with refused("WF006"):
        call(conn, "complete", *bad, outputs[1])
    with refused("WF006"):
        call(conn, "fail", *bad, outputs[1])
    call(conn, "fail", *bad, ERROR)
    assert workflow(conn, bad[0]).status == "failed"


def test_09_the_wait_between_attempts_grows_has_jitter_and_a_limit(db: Database) -> None:
    conn = db.connect()
    workflow_id, lease = start(conn)
    for attempt, full in ((1, 10), (2, 30), (3, 90), (4, 100), (5, 100)):
        waits = set()
        for n in range(8):
            ((wait,),) = call(
                conn, "fail_step", workflow_id, lease, f"s{n}", ERROR,
                attempt=attempt, max_attempts=9, initial="10 seconds", backoff=3.0, max_delay="100 seconds",
            )  # fmt: skip
            assert full / 2 - 1 <= wait.total_seconds() <= full
            waits.add(wait)
        assert len(waits) > 1
    assert {step.attempt for step in steps(conn, workflow_id).values()} == {6}


def test_09_the_count_and_the_time_of_the_next_attempt_survive_a_crash(db: Database) -> None:
    conn = db.connect()
    workflow_id, lease = start(conn)
    call(
        conn,
        "fail_step",
        workflow_id,
        lease,
        "s",
        ERROR,
        attempt=1,
        max_attempts=9,
        initial="1 hour",
        max_delay="9 hours",
    )
    call(
        conn,
        "fail_step",
        workflow_id,
        lease,
        "s",
        ERROR,
        attempt=2,
        max_attempts=9,
        initial="1 hour",
        max_delay="9 hours",
    )
    retry_at = steps(conn, workflow_id)["s"].retry_at
    claimed = take_over(conn, workflow_id)
    (step,) = claimed.steps
    assert (step["step_name"], step["status"], step["attempt"], step["error"]) == ("s", "running", 3, ERROR)
    assert 3_000_000 < step["retry_in_ms"] <= 7_200_000
    assert steps(conn, workflow_id)["s"].retry_at == retry_at


def test_09_there_is_no_wait_after_the_last_attempt(db: Database) -> None:
    conn = db.connect()
    workflow_id, lease = start(conn)
    call(conn, "fail_step", workflow_id, lease, "s", ERROR, attempt=1, max_attempts=2, initial="1 hour")
    assert call(conn, "fail_step", workflow_id, lease, "s", ERROR, attempt=2, max_attempts=2, initial="1 hour") == [
        (None,)
    ]
    step = steps(conn, workflow_id)["s"]
    assert (step.status, step.retry_at, step.error) == ("error", None, ERROR)
    assert value(conn, "select count(*) from durable.open_steps") == 0


def test_09_an_attempt_that_succeeds_at_last_leaves_no_trace_of_the_waits(db: Database) -> None:
    conn = db.connect()
    workflow_id, lease = start(conn)
    call(conn, "fail_step", workflow_id, lease, "s", ERROR, attempt=1, max_attempts=2)
    call(conn, "checkpoint_many", [workflow_id], [lease], ["s"], [{"v": 1}], attempts=[2])
    step = steps(conn, workflow_id)["s"]
    assert (step.status, step.attempt, step.output) == ("completed", 2, {"v": 1})
    assert value(conn, "select count(*) from durable.open_steps") == 0


def test_10_a_transactional_step_commits_its_rows_and_its_checkpoint_together(db: Database) -> None:
    conn = db.connect()
    conn.execute("create table receipts (id int)")
    workflow_id, lease = start(conn)
    with conn.transaction():
        call(conn, "begin_step", workflow_id, lease, "s")
        conn.execute("insert into receipts values (1)")
        call(conn, "checkpoint", workflow_id, lease, "s", {"v": 1})
    assert value(conn, "select count(*) from receipts") == 1
    assert steps(conn, workflow_id)["s"].output == {"v": 1}


def test_10_a_transactional_step_that_fails_leaves_neither_rows_nor_checkpoint(db: Database) -> None:
    conn = db.connect()
    conn.execute("create table receipts (id int primary key)")
    workflow_id, lease = start(conn)
    conn.autocommit = False
    call(conn, "begin_step", workflow_id, lease, "s")
    conn.execute("insert into receipts values (1)")
    call(conn, "checkpoint", workflow_id, lease, "s", {"v": 1})
    with pytest.raises(psycopg.errors.UniqueViolation):
        conn.execute("insert into receipts values (1)")
    conn.rollback()
    assert value(conn, "select count(*) from receipts") == 0
    assert steps(conn, workflow_id) == {}


def test_10_a_transactional_step_whose_lease_was_lost_commits_nothing(db: Database) -> None:
    conn, other = db.connect(autocommit=False), db.connect()
    other.execute("create table receipts (id int)")
    workflow_id, lease = start(other)
    conn.execute("insert into receipts values (1)")
    owner = take_over(other, workflow_id)
    with refused("WF002"):
        call(conn, "begin_step", workflow_id, lease, "s")
    conn.rollback()
    assert value(other, "select count(*) from receipts") == 0
    call(other, "complete", workflow_id, owner.lease)


def test_10_a_lease_is_not_taken_away_while_a_transactional_step_is_open(db: Database) -> None:
    conn, other = db.connect(autocommit=False), db.connect()
    other.execute("create table receipts (id int)")
    workflow_id, lease = start(other)
    call(conn, "begin_step", workflow_id, lease, "s")
    conn.execute("insert into receipts values (1)")
    kill_worker(other, "worker")
    assert value(other, "select durable.recover()") == 0
    call(conn, "checkpoint", workflow_id, lease, "s", {"v": 1})
    conn.commit()
    assert value(other, "select durable.recover()") == 1
    (step,) = claim_one(other, "winner").steps
    assert step["output"] == {"v": 1}
    assert value(other, "select count(*) from receipts") == 1


def test_10_a_cancel_waits_for_the_open_transactional_step(db: Database) -> None:
    conn, canceller, observer = db.connect(autocommit=False), db.connect(), db.connect()
    observer.execute("create table receipts (id int)")
    workflow_id, lease = start(observer)
    call(conn, "begin_step", workflow_id, lease, "s")
    conn.execute("insert into receipts values (1)")
    with ThreadPoolExecutor(1) as pool:
        cancelled = pool.submit(call, canceller, "cancel", workflow_id)
        wait_until_blocked(observer, canceller)
        call(conn, "checkpoint", workflow_id, lease, "s")
        conn.commit()
        assert cancelled.result() == [(True,)]
    assert value(observer, "select count(*) from receipts") == 1
    assert list(steps(observer, workflow_id)) == ["s"]


def test_10_two_transactional_steps_of_one_workflow_run_side_by_side(db: Database) -> None:
    one, two = db.connect(autocommit=False), db.connect(autocommit=False)
    workflow_id, lease = start(db.connect())
    call(one, "begin_step", workflow_id, lease, "a")
    call(two, "begin_step", workflow_id, lease, "b")
    call(one, "checkpoint", workflow_id, lease, "a")
    call(two, "checkpoint", workflow_id, lease, "b")
    one.commit()
    two.commit()
    assert set(steps(one, workflow_id)) == {"a", "b"}


def test_11_a_transactional_step_whose_answer_was_lost_is_not_run_again(db: Database) -> None:
    conn = db.connect()
    workflow_id, lease = start(conn)
    with conn.transaction():
        call(conn, "begin_step", workflow_id, lease, "s")
        call(conn, "checkpoint", workflow_id, lease, "s", {"v": 1})
    with refused("WF008"):
        call(conn, "begin_step", workflow_id, lease, "s")
    owner = take_over(conn, workflow_id)
    with refused("WF008"):
        call(conn, "begin_step", workflow_id, owner.lease, "s")
    assert call(conn, "step_result", workflow_id, "s") == [("completed", {"v": 1}, None)]


def test_11_a_transactional_step_that_failed_for_good_says_so(db: Database) -> None:
    conn = db.connect()
    workflow_id, lease = start(conn)
    call(conn, "fail_step", workflow_id, lease, "s", ERROR)
    with refused("WF008"):
        call(conn, "begin_step", workflow_id, lease, "s")
    assert call(conn, "step_result", workflow_id, "s") == [("error", None, ERROR)]


def test_12_a_transactional_step_that_hit_a_serialization_failure_can_be_run_again(db: Database) -> None:
    one, two = db.connect(autocommit=False), db.connect()
    two.execute("create table stock (item text primary key, n int)")
    two.execute("insert into stock values ('a', 10)")
    workflow_id, lease = start(two)

    def run_step() -> None:
        one.execute("set transaction isolation level serializable")
        call(one, "begin_step", workflow_id, lease, "s")
        one.execute("select n from stock")

    run_step()
    two.execute("update stock set n = n - 1")
    with pytest.raises(psycopg.errors.SerializationFailure):
        one.execute("update stock set n = n - 5")
    one.rollback()
    run_step()
    one.execute("update stock set n = n - 5")
    call(one, "checkpoint", workflow_id, lease, "s")
    one.commit()
    assert value(two, "select n from stock") == 4
    call(two, "complete", workflow_id, lease)


def test_12_a_transactional_step_that_was_the_victim_of_a_deadlock_can_be_run_again(db: Database) -> None:
    conn = db.connect()
    conn.execute("create table stock (item text primary key, n int)")
    conn.execute("insert into stock values ('a', 0), ('b', 0)")
    conn.execute("set deadlock_timeout = '20ms'")
    begun = [start(conn), start(conn)]
    barrier, is_through = threading.Barrier(2), threading.Event()

    def run(order: str, workflow_id: UUID, lease: int) -> int:
        own, victim = db.connect(autocommit=False), 0
        for turn in range(20):
            try:
                call(own, "begin_step", workflow_id, lease, "s")
                own.execute("update stock set n = n + 1 where item = %s", [order[0]])
                if turn == 0:
                    barrier.wait(30)
                own.execute("update stock set n = n + 1 where item = %s", [order[1]])
                call(own, "checkpoint", workflow_id, lease, "s")
                own.commit()
            except psycopg.errors.DeadlockDetected:
                own.rollback()
                victim += 1
                # Else it may have its first lock again before the other has woken up, and they meet once more.
                assert is_through.wait(30)
            else:
                is_through.set()
                return victim
        raise AssertionError("never got through")

    victims = at_once(lambda: run("ab", *begun[0]), lambda: run("ba", *begun[1]))
    assert sum(victims) == 1
    assert rows(conn, "select n from stock") == [(2,), (2,)]


def test_an_at_most_once_step_that_was_interrupted_is_reported_and_not_run_again(db: Database) -> None:
    conn = db.connect()
    workflow_id, lease = start(conn)
    call(conn, "start_step", workflow_id, lease, "s")
    owner = take_over(conn, workflow_id)
    for _ in range(2):
        with refused("WF008"):
            call(conn, "start_step", workflow_id, owner.lease, "s")
    call(conn, "checkpoint", workflow_id, owner.lease, "s", {"found": "out"})
    assert steps(conn, workflow_id)["s"].output == {"found": "out"}


def test_an_at_most_once_step_with_an_outcome_cannot_be_started(db: Database) -> None:
    conn = db.connect()
    workflow_id, lease = start(conn)
    call(conn, "start_step", workflow_id, lease, "s")
    call(conn, "checkpoint", workflow_id, lease, "s", {"v": 1})
    # The claim of a new owner may have read the steps before that checkpoint of the old one was committed.
    owner = take_over(conn, workflow_id)
    with pytest.raises(psycopg.Error) as error:
        call(conn, "start_step", workflow_id, owner.lease, "s")
    assert (error.value.sqlstate or "").startswith("WF")


def test_an_at_most_once_step_is_not_tried_again(db: Database) -> None:
    conn = db.connect()
    workflow_id, lease = start(conn)
    call(conn, "start_step", workflow_id, lease, "s")
    wait = None
    with suppress(psycopg.Error):
        ((wait,),) = call(conn, "fail_step", workflow_id, lease, "s", ERROR, attempt=1, max_attempts=3)
    assert wait is None, "it is to be tried again"
    owner = take_over(conn, workflow_id)
    with refused("WF008"):
        call(conn, "start_step", workflow_id, owner.lease, "s")


@pytest.mark.parametrize("end", ["cancel", "fail"])
def test_an_at_most_once_step_that_was_begun_is_not_run_again_by_retry(db: Database, end: str) -> None:
    conn = db.connect()
    workflow_id, lease = start(conn)
    call(conn, "start_step", workflow_id, lease, "s")
    if end == "cancel":
        call(conn, "cancel", workflow_id)
    else:
        call(conn, "fail", workflow_id, lease, ERROR)
    assert call(conn, "retry", workflow_id) == [(True,)]
    claimed = claim_one(conn)
    with refused("WF008"):
        call(conn, "start_step", workflow_id, claimed.lease, "s")


def test_a_step_that_runs_for_long_is_seen_through_the_heartbeat(db: Database) -> None:
    conn = db.connect()
    workflow_id, lease = start(conn)
    running = [{"workflow_id": str(workflow_id), "lease": lease, "step_name": "s", "attempt": 2, "elapsed_ms": 60_000}]
    for _ in range(2):
        assert call(conn, "heartbeat", "worker", [workflow_id], [lease], psycopg.types.json.Jsonb(running)) == []
    step = steps(conn, workflow_id)["s"]
    assert (step.status, step.attempt) == ("running", 2)
    assert value(conn, "select now() - started_at > interval '59 seconds' from durable.workflow_steps")
    call(conn, "checkpoint", workflow_id, lease, "s")
    call(conn, "heartbeat", "worker", [workflow_id], [lease], psycopg.types.json.Jsonb(running))
    assert steps(conn, workflow_id)["s"].status == "completed"
    call(conn, "complete", workflow_id, lease)
    assert value(conn, "select count(*) from durable.open_steps") == 0


@pytest.mark.parametrize("end", ["complete", "flush", "fail", "cancel", "time out"])
def test_a_heartbeat_at_the_same_moment_leaves_no_step_of_a_workflow_that_has_ended(db: Database, end: str) -> None:
    conn, heart = db.connect(), db.connect(autocommit=False)
    workflow_id, lease = start(conn)
    running = [
        {"workflow_id": str(workflow_id), "lease": lease, "step_name": name, "attempt": 1, "elapsed_ms": 60_000}
        for name in ("stored", "given up")
    ]
    # It sees the workflow, and none of what ends it sees what it lists.
    call(heart, "heartbeat", "worker", [workflow_id], [lease], psycopg.types.json.Jsonb(running))
    if end == "flush":
        args = [workflow_id], [lease]
        assert call(conn, "flush", *args, ["stored"], [{}], [1], [5], *args, [{}]) == []
    elif end == "time out":
        conn.execute("update durable.live_workflows set deadline = now() - interval '1 second'")
        call(conn, "tick")
    else:
        call(conn, end, workflow_id, *{"complete": [lease], "fail": [lease, ERROR], "cancel": []}[end])
    heart.commit()
    assert value(conn, "select count(*) from durable.open_steps") == 2
    assert {step.status for step in steps(conn, workflow_id).values()} == ({"completed"} if end == "flush" else set())
    for _ in range(1000):
        if value(conn, "select count(*) from durable.open_steps") == 0:
            break
        call(conn, "tick")
    assert value(conn, "select count(*) from durable.open_steps") == 0


def test_a_tick_forgets_no_step_that_is_under_way(db: Database) -> None:
    conn = db.connect()
    workflow_id, lease = start(conn)
    running = [{"workflow_id": str(workflow_id), "lease": lease, "step_name": "s", "attempt": 1, "elapsed_ms": 60_000}]
    call(conn, "heartbeat", "worker", [workflow_id], [lease], psycopg.types.json.Jsonb(running))
    assert value(conn, "select durable._forget_running(10)") == 0
    assert list(steps(conn, workflow_id)) == ["s"]


def test_a_batch_reports_each_item_and_one_bad_item_fails_no_other(db: Database) -> None:
    conn = db.connect()
    one, two = start(conn), start(conn)
    call(conn, "checkpoint", *one, "done", {"v": "first"})
    done = call(
        conn,
        "checkpoint_many",
        [one[0], one[0], two[0], NOBODY, one[0], None],
        [one[1], one[1], two[1] + 1000, 1, one[1], one[1]],
        ["new", "done", "s", "s", "", "s"],
        [{"v": 1}, {"v": 2}, {}, {}, {}, {}],
    )
    assert [(row.item, row.outcome) for row in done] == [
        (1, "ok"), (2, "exists"), (3, "WF002"), (4, "WF001"), (5, "WF005"), (6, "WF001"),
    ]  # fmt: skip
    assert done[1].output == {"v": "first"}
    assert set(steps(conn, one[0])) == {"new", "done"}


def test_the_same_step_twice_in_a_batch_is_stored_once(db: Database) -> None:
    conn = db.connect()
    workflow_id, lease = start(conn)
    done = call(conn, "checkpoint_many", [workflow_id] * 2, [lease] * 2, ["s"] * 2, [{"v": 1}, {"v": 2}])
    assert [row.outcome for row in done] in (["ok", "ok"], ["ok", "exists"], ["exists", "ok"])
    assert steps(conn, workflow_id)["s"].output in ({"v": 1}, {"v": 2})


def test_a_flush_reports_only_what_went_wrong(db: Database) -> None:
    conn = db.connect()
    one, two, three = start(conn), start(conn), start(conn)
    call(conn, "cancel", two[0])
    wrong = call(
        conn,
        "flush",
        [one[0], two[0]], [one[1], two[1]], ["s", "s"], [{"v": 1}, {"v": 1}], [1, 1], [5, 5],
        [one[0], two[0], three[0]], [one[1], two[1], three[1] + 1000], [{"v": 1}, {"v": 2}, {"v": 3}],
    )  # fmt: skip
    assert [(row.kind, row.item, row.outcome) for row in wrong] == [
        ("checkpoint", 2, "WF004"),
        ("complete", 2, "WF004"),
        ("complete", 3, "WF002"),
    ]
    assert [workflow(conn, i).status for i in (one[0], two[0], three[0])] == ["completed", "cancelled", "running"]
