"""How a workflow ends: completed, failed, cancelled, timed out; and goes on after retry."""

from __future__ import annotations

import random
from collections.abc import Callable
from datetime import timedelta
from functools import partial
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
    claim,
    claim_one,
    enqueue,
    kill_worker,
    refused,
    snapshot,
    steps,
    value,
    workflow,
)

ERROR = {"type": "Oops", "message": "no luck"}


def start(conn: Connection, **named: Any) -> tuple[UUID, int]:
    workflow_id = enqueue(conn, **named)
    claimed = claim_one(conn)
    assert claimed.workflow_id == workflow_id
    return workflow_id, claimed.lease


def test_a_completed_workflow_keeps_its_output_and_its_history(db: Database) -> None:
    conn = db.connect()
    workflow_id, lease = start(conn, input={"order": 7}, tags={"tenant": "acme"}, priority=3)
    call(conn, "checkpoint", workflow_id, lease, "s", {"v": 1})
    call(conn, "complete", workflow_id, lease, {"done": True})
    row = workflow(conn, workflow_id)
    assert (row.status, row.input, row.output, row.error, row.tags, row.priority, row.worker) == (
        "completed", {"order": 7}, {"done": True}, None, {"tenant": "acme"}, 3, "worker",
    )  # fmt: skip
    assert row.created_at <= row.started_at <= row.completed_at
    assert call(conn, "result", workflow_id) == [("completed", {"done": True}, None)]
    assert [step.step_name for step in call(conn, "history", workflow_id)] == ["s"]
    assert value(conn, "select count(*) from durable.live_workflows") == 0


def test_06_a_completion_sent_again_is_a_no_op(db: Database) -> None:
    conn = db.connect()
    workflow_id, lease = start(conn)
    call(conn, "complete", workflow_id, lease, {"v": 1})
    before = snapshot(conn)
    call(conn, "complete", workflow_id, lease, {"v": 2})
    assert call(conn, "complete_many", [workflow_id], [lease], [{"v": 3}]) == [(1, "ok")]
    assert snapshot(conn) == before
    assert workflow(conn, workflow_id).output == {"v": 1}


def test_06_a_final_failure_sent_again_is_a_no_op(db: Database) -> None:
    conn = db.connect()
    workflow_id, lease = start(conn)
    call(conn, "fail", workflow_id, lease, ERROR)
    before = snapshot(conn)
    call(conn, "fail", workflow_id, lease, ERROR)
    assert call(conn, "fail_many", [workflow_id], [lease], [ERROR]) == [(1, "ok")]
    assert snapshot(conn) == before


def test_06_a_failure_with_attempts_left_sent_again_is_counted_once(db: Database) -> None:
    conn = db.connect()
    workflow_id, lease = start(conn, max_attempts=5)
    call(conn, "fail", workflow_id, lease, ERROR, "1 hour")
    before = snapshot(conn)
    call(conn, "fail", workflow_id, lease, ERROR, "1 hour")
    assert call(conn, "fail_many", [workflow_id], [lease], [ERROR]) == [(1, "ok")]
    assert snapshot(conn) == before


def test_the_first_end_that_a_worker_reports_stands(db: Database) -> None:
    conn = db.connect()
    completed, failed = start(conn), start(conn)
    call(conn, "complete", *completed, {"v": 1})
    call(conn, "fail", *failed, ERROR)
    before = snapshot(conn)
    with refused("WF002"):
        call(conn, "fail", *completed, ERROR)
    with refused("WF002"):
        call(conn, "complete", *failed, {"v": 1})
    with refused("WF002"):
        call(conn, "checkpoint", *completed, "late", {})
    assert snapshot(conn) == before


def test_a_failed_attempt_is_tried_again_after_its_wait_until_none_is_left(db: Database) -> None:
    conn = db.connect()
    workflow_id = enqueue(conn, max_attempts=3)
    for attempt in (1, 2, 3):
        claimed = claim_one(conn)
        assert claimed.attempt == attempt
        call(conn, "fail", workflow_id, claimed.lease, {**ERROR, "n": attempt}, "0")
        if attempt < 3:
            row = workflow(conn, workflow_id)
            assert (row.status, row.failures, row.error["n"]) == ("pending", attempt, attempt)
            assert claim(conn) == []
            assert value(conn, "select durable.tick()")["woken"] == 1
    row = workflow(conn, workflow_id)
    assert (row.status, row.failures, row.error_message) == ("failed", 3, "no luck")
    assert call(conn, "result", workflow_id) == [("failed", None, {**ERROR, "n": 3})]


def test_the_wait_between_attempts_of_a_workflow_grows_with_jitter_up_to_its_limit(db: Database) -> None:
    conn = db.connect()
    for name, setting in (("retry_initial", "10 seconds"), ("retry_backoff", "3"), ("retry_max", "60 seconds")):
        call(conn, "configure", name, setting)
    workflow_id = enqueue(conn, max_attempts=9)
    for full in (10, 30, 60, 60):
        call(conn, "fail", workflow_id, claim_one(conn).lease, ERROR)
        wait = value(conn, "select wake_at - clock_timestamp() from durable.workflows")
        assert full / 2 - 2 < wait.total_seconds() <= full
        conn.execute("update durable.live_workflows set wake_at = now()")
        call(conn, "tick")


def test_a_failure_that_is_not_retryable_is_final(db: Database) -> None:
    conn = db.connect()
    workflow_id, lease = start(conn, max_attempts=5)
    call(conn, "fail", workflow_id, lease, ERROR, retryable=False)
    assert workflow(conn, workflow_id).status == "failed"


def test_the_next_attempt_runs_the_failed_step_again_and_no_completed_one(db: Database) -> None:
    conn = db.connect()
    workflow_id, lease = start(conn, max_attempts=2)
    call(conn, "checkpoint", workflow_id, lease, "good", {"v": 1})
    call(conn, "fail_step", workflow_id, lease, "bad", ERROR)
    call(conn, "fail", workflow_id, lease, {**ERROR, "step": "bad"}, "0")
    call(conn, "tick")
    claimed = claim_one(conn)
    assert [step["step_name"] for step in claimed.steps] == ["good"]
    assert call(conn, "checkpoint", workflow_id, claimed.lease, "bad", {"v": 2}) == [({"v": 2},)]


def test_an_error_that_the_workflow_caught_stays_the_outcome_of_its_step(db: Database) -> None:
    conn = db.connect()
    workflow_id, lease = start(conn, max_attempts=2)
    call(conn, "fail_step", workflow_id, lease, "caught", ERROR)
    call(conn, "checkpoint", workflow_id, lease, "fallback", {})
    call(conn, "fail_step", workflow_id, lease, "bad", ERROR)
    call(conn, "fail", workflow_id, lease, {**ERROR, "step": "bad"}, "0")
    assert {name: step.status for name, step in steps(conn, workflow_id).items()} == {
        "caught": "error",
        "fallback": "completed",
    }


def test_a_batch_of_failures_reports_each_item_and_one_bad_item_fails_no_other(db: Database) -> None:
    conn = db.connect()
    good, stale, huge, cancelled, far = (start(conn, max_attempts=2) for _ in range(5))
    call(conn, "cancel", cancelled[0])
    done = call(
        conn,
        "fail_many",
        [stale[0], good[0], NOBODY, huge[0], cancelled[0], None, far[0]],
        [stale[1] + 1000, good[1], 1, huge[1], cancelled[1], 1, far[1]],
        [ERROR, ERROR, ERROR, None, ERROR, ERROR, ERROR],
        [None, timedelta(hours=1), None, None, None, None, timedelta(days=999_999_999)],
    )
    assert [row.outcome for row in done][:6] == ["WF002", "ok", "WF001", "WF005", "WF004", "WF001"]
    assert done[6].outcome in ("ok", "WF005")
    assert workflow(conn, good[0]).failures == 1
    assert workflow(conn, stale[0]).status == workflow(conn, huge[0]).status == "running"


def test_a_batch_of_completions_reports_each_item_and_one_bad_item_fails_no_other(db: Database) -> None:
    conn = db.connect()
    good, stale, cancelled, again = start(conn), start(conn), start(conn), start(conn)
    call(conn, "cancel", cancelled[0])
    call(conn, "complete", *again, {"v": 0})
    done = call(
        conn,
        "complete_many",
        [stale[0], good[0], NOBODY, cancelled[0], again[0], None, good[0]],
        [stale[1] + 1000, good[1], 1, cancelled[1], again[1], 1, good[1] + 1000],
        [{"v": n} for n in range(1, 8)],
    )
    assert [row.outcome for row in done] == ["WF002", "ok", "WF001", "WF004", "ok", "WF001", "WF002"]
    assert workflow(conn, good[0]).output == {"v": 2}
    assert workflow(conn, again[0]).output == {"v": 0}
    assert workflow(conn, stale[0]).status == "running"


def test_overlapping_batches_in_opposite_order_do_not_deadlock(db: Database) -> None:
    conn = db.connect()
    for round_ in range(5):
        call(conn, "enqueue_many", "w", [{}] * 300)
        held = [(c.workflow_id, c.lease) for c in claim(conn, max_workflows=300)]

        def report(function: str, payload: dict[str, Any], held: list[Any] = held, seed: int = round_) -> list[str]:
            items = random.Random(f"{seed} {payload}").sample(held, 250)
            ids, leases = [item[0] for item in items], [item[1] for item in items]
            return [row.outcome for row in call(db.connect(), function, ids, leases, [payload] * len(ids))]

        outcomes = at_once(
            partial(report, "complete_many", {"v": 1}),
            partial(report, "fail_many", ERROR),
            partial(report, "complete_many", {"v": 2}),
        )
        assert {outcome for batch in outcomes for outcome in batch} <= {"ok", "WF002", "busy"}
        report("complete_many", {"v": 3})
        assert value(conn, "select count(*) from durable.live_workflows where lease is not null") <= 50


def test_28_cancel_ends_a_workflow_in_any_state_and_is_final(db: Database) -> None:
    conn = db.connect()
    delayed = enqueue(conn, run_at="2200-01-01")
    retried, lease = start(conn, max_attempts=2)
    call(conn, "fail", retried, lease, ERROR, "1 hour")
    running, lease = start(conn)
    pending = enqueue(conn)
    for workflow_id in (delayed, retried, running, pending):
        assert call(conn, "cancel", workflow_id, "not wanted") == [(True,)]
        assert call(conn, "cancel", workflow_id) == [(False,)]
        row = workflow(conn, workflow_id)
        assert (row.status, row.error["code"], row.error_message) == ("cancelled", "WF004", "not wanted")
    before = snapshot(conn)
    reports: list[tuple[Any, ...]] = [
        ("checkpoint", "s"), ("complete", {"v": 1}), ("fail", ERROR), ("begin_step", "s"), ("start_step", "s"),
        ("fail_step", "s", ERROR),
    ]  # fmt: skip
    for function, *arguments in reports:
        with refused("WF004"):
            call(conn, function, running, lease, *arguments)
    assert call(conn, "heartbeat", "worker", [running], [lease]) == [(running, "WF004", lease)]
    assert snapshot(conn) == before
    assert claim(conn, max_workflows=9) == []


def test_28_a_completed_workflow_stays_completed(db: Database) -> None:
    conn = db.connect()
    workflow_id, lease = start(conn)
    call(conn, "complete", workflow_id, lease, {"v": 1})
    before = snapshot(conn)
    assert call(conn, "cancel", workflow_id) == [(False,)]
    assert call(conn, "retry", workflow_id) == [(False,)]
    assert snapshot(conn) == before


def test_28_a_cancel_that_is_rolled_back_never_was(db: Database) -> None:
    conn, other = db.connect(), db.connect(autocommit=False)
    workflow_id, lease = start(conn)
    call(other, "cancel", workflow_id)
    other.rollback()
    call(conn, "complete", workflow_id, lease)
    assert workflow(conn, workflow_id).status == "completed"


def test_28_the_worker_is_told_of_the_cancel(db: Database) -> None:
    conn, worker = db.connect(), db.connect()
    channel = value(worker, "select durable.attach('worker')")
    worker.execute(f'listen "{channel}"'.encode())
    workflow_id, _ = start(conn)
    call(conn, "cancel", workflow_id)
    assert [n.channel for n in worker.notifies(timeout=30, stop_after=1)] == [channel]


def test_29_retry_goes_on_from_the_last_checkpoint(db: Database) -> None:
    conn = db.connect()
    workflow_id, lease = start(conn, key="k")
    call(conn, "checkpoint", workflow_id, lease, "good", {"v": 1})
    call(conn, "fail_step", workflow_id, lease, "bad", ERROR)
    call(conn, "fail", workflow_id, lease, {**ERROR, "step": "bad"})
    assert call(conn, "retry", workflow_id) == [(True,)]
    assert call(conn, "retry", workflow_id) == [(False,)]
    row = workflow(conn, workflow_id)
    assert (row.status, row.failures, row.key, row.error) == ("pending", 0, "k", None)
    claimed = claim_one(conn)
    assert claimed.lease != lease
    assert claimed.attempt == 2
    assert [step["step_name"] for step in claimed.steps] == ["good"]
    with refused("WF002"):
        call(conn, "complete", workflow_id, lease)
    call(conn, "complete", workflow_id, claimed.lease, {"v": 2})
    assert workflow(conn, workflow_id).output == {"v": 2}


def test_a_timeout_ends_the_workflow_and_its_lease(db: Database) -> None:
    conn = db.connect()
    workflow_id = enqueue(conn, timeout="1 second")
    assert workflow(conn, workflow_id).deadline is None, "it runs from the first start"
    claimed = claim_one(conn)
    assert claimed.deadline == claimed.claimed_at + timedelta(seconds=1)
    assert 0 <= value(conn, "select durable.tick()")["next_in_ms"] <= 1000
    conn.execute("select pg_sleep(1.05)")
    assert value(conn, "select durable.tick()")["timed_out"] == 1
    row = workflow(conn, workflow_id)
    assert (row.status, row.error["code"]) == ("failed", "WF010")
    assert row.error_message
    for report in (("complete",), ("checkpoint", "s"), ("fail", ERROR)):
        with refused("WF002"):
            call(conn, report[0], workflow_id, claimed.lease, *report[1:])
    assert call(conn, "heartbeat", "worker", [workflow_id], [claimed.lease]) == [(workflow_id, "WF002", claimed.lease)]


def test_a_timeout_is_not_prolonged_by_a_crash_or_a_retry_of_the_attempt(db: Database) -> None:
    conn = db.connect()
    workflow_id = enqueue(conn, timeout="1 hour", max_attempts=3)
    deadline = claim_one(conn, "one").deadline
    kill_worker(conn, "one")
    call(conn, "recover")
    claimed = claim_one(conn, "two")
    assert claimed.deadline == deadline
    call(conn, "fail", workflow_id, claimed.lease, ERROR, "0")
    conn.execute("update durable.live_workflows set deadline = now() - interval '1 second'")
    call(conn, "tick")
    row = workflow(conn, workflow_id)
    assert (row.status, row.error["code"]) == ("failed", "WF010")


def race(db: Database, *reports: Callable[[Connection], Any]) -> list[str]:
    """Runs the reports at once and tells how each went: ok, or its SQLSTATE."""

    def attempt(report: Callable[[Connection], Any]) -> str:
        try:
            report(db.connect())
        except psycopg.Error as error:
            return error.sqlstate or ""
        return "ok"

    return at_once(*(lambda report=report: attempt(report) for report in reports))


@pytest.mark.parametrize("turn", range(5))
def test_of_ends_reported_at_once_exactly_one_stands(db: Database, turn: int) -> None:
    conn = db.connect()
    workflow_id, lease = start(conn)

    def cancel(own: Connection) -> None:
        ((cancelled,),) = call(own, "cancel", workflow_id)
        if not cancelled:
            own.execute("do $$ begin raise sqlstate 'LATE0'; end $$")

    outcomes = race(
        db,
        lambda c: call(c, "complete", workflow_id, lease, {"v": 1}),
        lambda c: call(c, "fail", workflow_id, lease, ERROR),
        cancel,
    )
    assert sorted(outcomes).count("ok") == 1, outcomes
    expected = {0: "completed", 1: "failed", 2: "cancelled"}[outcomes.index("ok")]
    assert workflow(conn, workflow_id).status == expected
    assert {outcome for outcome in outcomes if outcome != "ok"} <= {"WF002", "WF004", "LATE0"}
