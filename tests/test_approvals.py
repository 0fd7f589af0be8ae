"""Approvals: what workflows ask people is listed, decided once, and never both decided and expired."""

from __future__ import annotations

from datetime import timedelta
from typing import Any
from uuid import UUID

import pytest

from clusters import Database
from engine import (
    NOBODY,
    Connection,
    age,
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
)  # fmt: skip

pytestmark = pytest.mark.pg(15, 18)


def start(conn: Connection, **named: Any) -> Any:
    enqueue(conn, **named)
    return claim_one(conn)


def request(conn: Connection, held: Any, step: str = "ask", subject: str = "may I?", **named: Any) -> UUID:
    ((approval_id,),) = call(conn, "request_approval", held.workflow_id, held.lease, step, subject, **named)
    assert isinstance(approval_id, UUID)
    return approval_id


def wait(conn: Connection, held: Any, step: str = "ask", conditions: str | None = None, **named: Any) -> Any:
    """(outcome, output) of a wait."""
    places = "".join(f", {name} => %s" for name in named)
    query = f"select * from durable.wait(%s, %s, %s, %s::jsonb{places})"
    ((outcome, output),) = rows(
        conn, query, held.workflow_id, held.lease, step, conditions or f'[{{"approval": "{step}"}}]', *named.values()
    )  # fmt: skip
    return outcome, output


def asked(conn: Connection, **named: Any) -> tuple[Any, UUID]:
    """A workflow that waits for a decision, and the approval."""
    held = start(conn)
    approval_id = request(conn, held, **named)
    assert wait(conn, held) == ("parked", None)
    return held, approval_id


def decide(conn: Connection, approval_id: UUID, decision: str = "approved", **named: Any) -> bool:
    ((first,),) = call(conn, "decide", approval_id, decision, **named)
    return bool(first)


def approval(conn: Connection, approval_id: UUID) -> Any:
    (row,) = rows(conn, "select * from durable.approvals where approval_id = %s", approval_id)
    return row


def state(conn: Connection, approval_id: UUID) -> str:
    return str(approval(conn, approval_id).state)


def status(conn: Connection, held: Any) -> str:
    return str(workflow(conn, held.workflow_id).status)


def pass_time(conn: Connection) -> None:
    """As if all that is to expire had been requested a day earlier."""
    conn.execute(
        "update durable.approval_requests set requested_at = requested_at - interval '1 day', expires_at = expires_at - interval '1 day'"
    )
    conn.execute("update durable.live_workflows set wake_at = clock_timestamp() where wake_at is not null")


# Asking and deciding


def test_an_approval_is_listed_decided_and_handed_to_its_workflow(db: Database) -> None:
    conn = db.connect()
    held, approval_id = asked(
        conn, subject="refund 120 EUR for order 7", assignee="finance", form={"cents": 12000}, expires="2 days"
    )
    listed = approval(conn, approval_id)
    assert (listed.workflow_id, listed.workflow, listed.step_name) == (held.workflow_id, "w", "ask")
    assert (listed.subject, listed.assignee, listed.form) == ("refund 120 EUR for order 7", "finance", {"cents": 12000})
    assert (listed.state, listed.expires_at - listed.requested_at) == ("pending", timedelta(days=2))
    assert (listed.decision, listed.decided_by, listed.comment, listed.decided_at) == (None, None, None, None)
    assert (status(conn, held), workflow(conn, held.workflow_id).wake_at) == ("waiting", listed.expires_at)
    assert decide(conn, approval_id, "approved", by="ada", comment="once", data={"cents": 10000})
    listed = approval(conn, approval_id)
    assert (listed.state, listed.decision, listed.decided_by, listed.comment) == ("decided", "approved", "ada", "once")
    assert value(conn, "select count(*) from durable.waits") == 0
    again = claim_one(conn)
    outcome, output = wait(conn, again)
    come = output["value"]
    assert (outcome, output["index"]) == ("ok", 0)
    assert value(conn, "select %s::timestamptz", come["decided_at"]) == listed.decided_at
    assert come == {
        "approval_id": str(approval_id), "decision": "approved", "data": {"cents": 10000}, "by": "ada", "comment": "once",
        "decided_at": come["decided_at"], "expired": False,
    }  # fmt: skip
    assert wait(conn, again) == ("exists", output)
    assert steps(conn, held.workflow_id)["ask"].output == output


def test_a_replay_gets_the_same_approval_and_what_was_asked_first_stands(db: Database) -> None:
    conn = db.connect()
    held = start(conn)
    first = request(conn, held, subject="old words", expires="1 hour")
    assert request(conn, held, subject="new words", assignee="other", expires="9 hours") == first
    kill_worker(conn, "worker")
    call(conn, "tick")
    again = claim_one(conn, "another")
    assert request(conn, again, subject="new words") == first
    listed = approval(conn, first)
    assert (listed.subject, listed.assignee) == ("old words", None)
    assert listed.expires_at - listed.requested_at == timedelta(hours=1)
    assert request(conn, again, "ask#2") != first
    assert value(conn, "select count(*) from durable.approvals") == 2


def test_the_same_request_twice_at_once_is_one_approval(db: Database) -> None:
    conn = db.connect()
    held = start(conn)
    workers = [db.connect() for _ in range(4)]
    assert len(set(at_once(*(lambda c=c: request(c, held) for c in workers)))) == 1


def test_a_stale_lease_asks_nobody(db: Database) -> None:
    conn = db.connect()
    stale = start(conn)
    kill_worker(conn, "worker")
    call(conn, "tick")
    claim_one(conn, "another")
    with refused("WF002"):
        request(conn, stale)
    cancelled = start(conn)
    call(conn, "cancel", cancelled.workflow_id)
    with refused("WF004"):
        request(conn, cancelled)
    with refused("WF001"):
        call(conn, "request_approval", NOBODY, 1, "ask", "may I?")
    assert value(conn, "select count(*) from durable.approvals") == 0


@pytest.mark.parametrize(
    "named",
    [
        {"subject": ""}, {"subject": None}, {"subject": "x" * 1001}, {"step": ""}, {"step": "x" * 501}, {"assignee": ""},
        {"assignee": "x" * 201}, {"expires": "-1 s"}, {"expires": "101 years"},
    ],
    ids=str,
)  # fmt: skip
def test_a_request_that_cannot_be_is_refused(db: Database, named: dict[str, Any]) -> None:
    conn = db.connect()
    held = start(conn)
    with refused("WF005"):
        request(conn, held, **named)


def test_a_decision_is_part_of_the_transaction_of_its_caller(db: Database) -> None:
    conn, person = db.connect(), db.connect(autocommit=False)
    held, approval_id = asked(conn)
    decide(person, approval_id, "rejected")
    person.rollback()
    assert (state(conn, approval_id), status(conn, held)) == ("pending", "waiting")
    decide(person, approval_id, "approved")
    assert (state(conn, approval_id), status(conn, held)) == ("pending", "waiting")
    person.commit()
    assert (state(conn, approval_id), status(conn, held)) == ("decided", "pending")


def test_a_decision_may_come_before_the_workflow_waits_for_it(db: Database) -> None:
    conn = db.connect()
    held = start(conn)
    assert decide(conn, request(conn, held), "rejected")
    outcome, output = wait(conn, held)
    assert (outcome, output["value"]["decision"]) == ("ok", "rejected")


def test_who_decides_is_the_role_of_the_session_unless_it_is_said(db: Database) -> None:
    conn = db.connect()
    _, approval_id = asked(conn)
    decide(conn, approval_id)
    assert approval(conn, approval_id).decided_by == value(conn, "select session_user")


def test_the_first_decision_stands_and_the_same_again_is_harmless(db: Database) -> None:
    conn = db.connect()
    held, approval_id = asked(conn)
    assert decide(conn, approval_id, "approved", by="ada", comment="fine", data={"a": 1})
    before = snapshot(conn)
    assert not decide(conn, approval_id, "approved", by="ada", comment="fine", data={"a": 1})
    # Whoever was second agrees.
    assert not decide(conn, approval_id, "approved", by="bob", data={"a": 1})
    assert not decide(conn, approval_id, "approved", by="bob")
    for decision, data in (("rejected", {"a": 1}), ("rejected", None), ("approved", {"a": 2})):
        with refused("WF015") as info:
            call(conn, "decide", approval_id, decision, data=data)
        assert "approved, by ada" in str(info.value)
    assert snapshot(conn) == before
    # Also when the workflow has gone on and ended.
    again = claim_one(conn)
    wait(conn, again)
    call(conn, "complete", held.workflow_id, again.lease)
    assert not decide(conn, approval_id, "approved", data={"a": 1})
    assert state(conn, approval_id) == "decided"


@pytest.mark.parametrize("ends", ["commit", "rollback"])
def test_of_two_that_decide_at_once_one_is_first_and_the_other_is_told(db: Database, ends: str) -> None:
    conn, first, second = db.connect(), db.connect(autocommit=False), db.connect()
    _, approval_id = asked(conn)
    decide(first, approval_id, "approved")

    def other() -> None:
        if ends == "commit":
            with refused("WF015"):
                decide(second, approval_id, "rejected")
        else:
            assert decide(second, approval_id, "rejected")

    def end() -> None:
        wait_until_blocked(conn, second)
        getattr(first, ends)()

    at_once(other, end)
    stands = "approved" if ends == "commit" else "rejected"
    assert wait(conn, claim_one(conn))[1]["value"]["decision"] == stands


@pytest.mark.parametrize(
    ("decision", "named"),
    [
        ("", {}), (None, {}), ("x" * 201, {}), ("approve", {}), ("Approved", {}), ("reject", {}), ("REJECTED", {}),
        ("approved", {"by": ""}), ("approved", {"by": "x" * 201}), ("approved", {"comment": "x" * 10001}),
    ],
)  # fmt: skip
def test_a_decision_that_cannot_be_is_refused(db: Database, decision: Any, named: dict[str, Any]) -> None:
    conn = db.connect()
    _, approval_id = asked(conn)
    with refused("WF005"):
        decide(conn, approval_id, decision, **named)
    with refused("WF001"):
        decide(conn, NOBODY)
    assert state(conn, approval_id) == "pending"


def test_any_other_word_is_a_decision_too(db: Database) -> None:
    conn = db.connect()
    _, approval_id = asked(conn)
    assert decide(conn, approval_id, "ask the board")
    assert wait(conn, claim_one(conn))[1]["value"]["decision"] == "ask the board"


def test_what_is_too_large_is_refused_by_whoever_says_it(db: Database) -> None:
    conn = db.connect()
    call(conn, "configure", "max_payload_bytes", "1000")
    held = start(conn)
    with refused("WF006"):
        request(conn, held, form={"x": "x" * 1000})
    approval_id = request(conn, held)
    with refused("WF006"):
        decide(conn, approval_id, data={"x": "x" * 1000})
    with refused("WF006"):
        decide(conn, approval_id, comment="x" * 1000)
    assert decide(conn, approval_id, data={"x": "x" * 600})
    assert wait(conn, held)[0] == "ok"


# Among other conditions


def test_an_approval_is_one_of_several_conditions_of_a_wait(db: Database) -> None:
    conn = db.connect()
    held = start(conn)
    approval_id = request(conn, held)
    either = '[{"approval": "ask"}, {"event": "news"}]'
    assert wait(conn, held, "any", either) == ("parked", None)
    call(conn, "emit", "news")
    held = claim_one(conn)
    assert wait(conn, held, "any", either) == ("ok", {"index": 1, "value": None})
    # Still open: the workflow may ask for it again.
    assert state(conn, approval_id) == "pending"
    both = '[{"event": "news"}, {"approval": "ask"}, {"message": "topic"}]'
    assert wait(conn, held, "all", both, mode="all") == ("parked", None)
    decide(conn, approval_id)
    held = claim_one(conn)
    assert wait(conn, held, "all", both, mode="all") == ("parked", None)
    call(conn, "send", held.workflow_id, "topic")
    outcome, output = wait(conn, claim_one(conn), "all", both, mode="all")
    assert (outcome, output["values"][1]["decision"]) == ("ok", "approved")


def test_a_reminder_does_not_end_the_approval(db: Database) -> None:
    conn = db.connect()
    held = start(conn)
    approval_id = request(conn, held, expires="1 hour")
    reminded = '[{"approval": "ask"}, {"timer": 60}]'
    assert wait(conn, held, "first", reminded) == ("parked", None)
    assert workflow(conn, held.workflow_id).wake_at < approval(conn, approval_id).expires_at
    conn.execute(
        """update durable.open_steps
           set waits_for = jsonb_set(waits_for, '{1,timer_at}', to_jsonb(extract(epoch from now()) - 1))"""
    )
    conn.execute("update durable.live_workflows set wake_at = clock_timestamp()")
    call(conn, "tick")
    held = claim_one(conn)
    assert wait(conn, held, "first", reminded) == ("ok", {"index": 1, "value": None})
    assert wait(conn, held, "second", reminded) == ("parked", None)
    decide(conn, approval_id)
    assert wait(conn, claim_one(conn), "second", reminded)[1]["value"]["decision"] == "approved"


# Expiry


@pytest.mark.parametrize("mode", ["any", "all"])
def test_an_approval_that_nobody_decides_in_time_expires(db: Database, mode: str) -> None:
    conn = db.connect()
    held = start(conn)
    approval_id = request(conn, held, expires="1 day")
    assert wait(conn, held, mode=mode) == ("parked", None)
    pass_time(conn)
    assert state(conn, approval_id) == "expired"
    # The workflow has not heard of it yet, and still nobody decides it.
    with refused("WF015") as info:
        decide(conn, approval_id)
    assert "expired" in str(info.value)
    call(conn, "tick")
    held = claim_one(conn)
    outcome, output = wait(conn, held, mode=mode)
    come = output["value"] if mode == "any" else output["values"][0]
    assert (outcome, come["expired"], come["decision"], come["by"]) == ("ok", True, None, None)
    assert wait(conn, held, mode=mode) == ("exists", output)
    with refused("WF015"):
        decide(conn, approval_id)
    assert state(conn, approval_id) == "expired"


def test_the_expiry_counts_from_the_first_request_also_after_a_crash(db: Database) -> None:
    conn = db.connect()
    held, approval_id = asked(conn, expires="1 day")
    due = approval(conn, approval_id).expires_at
    conn.execute("update durable.live_workflows set wake_at = clock_timestamp()")
    call(conn, "tick")
    claim_one(conn, "dies")
    kill_worker(conn, "dies")
    call(conn, "tick")
    again = claim_one(conn, "another")
    request(conn, again, expires="9 days")
    assert wait(conn, again) == ("parked", None)
    assert workflow(conn, held.workflow_id).wake_at == due


def test_what_was_decided_in_time_counts_when_the_workflow_comes_late(db: Database) -> None:
    conn = db.connect()
    _, approval_id = asked(conn, expires="1 day")
    decide(conn, approval_id)
    conn.execute(
        """update durable.approval_requests set requested_at = requested_at - interval '1 day',
             decided_at = decided_at - interval '1 day', expires_at = expires_at - interval '1 day'"""
    )
    assert wait(conn, claim_one(conn))[1]["value"]["decision"] == "approved"
    assert state(conn, approval_id) == "decided"


@pytest.mark.parametrize("ends", ["commit", "rollback"])
def test_an_expiry_lets_a_decision_that_is_under_way_come_first_and_waits_for_nobody(db: Database, ends: str) -> None:
    conn, person, late = db.connect(), db.connect(autocommit=False), db.connect()
    held, approval_id = asked(conn, expires="3 s")
    assert decide(person, approval_id)
    conn.execute("select pg_sleep(extract(epoch from expires_at - clock_timestamp())) from durable.approvals")
    call(conn, "tick")
    again = claim_one(conn)
    conn.execute("set statement_timeout = '5s'")
    assert wait(conn, again) == ("parked", None)
    getattr(person, ends)()
    if ends == "rollback":
        # Nothing tells of that, so it looks again by itself.
        assert status(conn, held) == "waiting"
        conn.execute("update durable.live_workflows set wake_at = clock_timestamp() where wake_at is not null")
        call(conn, "tick")
    outcome, output = wait(conn, claim_one(conn))
    decided = ends == "commit"
    assert (outcome, output["value"]["expired"], output["value"]["decision"]) == (
        "ok", not decided, "approved" if decided else None,
    )  # fmt: skip
    assert state(conn, approval_id) == ("decided" if decided else "expired")
    with refused("WF015"):
        decide(late, approval_id, "rejected")


@pytest.mark.parametrize("ends", ["commit", "rollback"])
def test_a_decision_that_comes_while_the_workflow_notices_the_expiry_is_too_late(db: Database, ends: str) -> None:
    conn, worker, person = db.connect(), db.connect(autocommit=False), db.connect()
    _, approval_id = asked(conn, expires="1 day")
    pass_time(conn)
    call(conn, "tick")
    held = claim_one(conn)
    assert wait(worker, held)[1]["value"]["expired"]

    def late() -> None:
        with refused("WF015"):
            decide(person, approval_id)

    def end() -> None:
        wait_until_blocked(conn, person)
        getattr(worker, ends)()

    at_once(late, end)
    assert wait(conn, held)[1]["value"]["expired"]
    assert state(conn, approval_id) == "expired"


# The end of the workflow


def end(conn: Connection, how: str) -> UUID:
    """A workflow that ended with an open approval."""
    if how in ("completed", "failed"):
        held = start(conn)
        approval_id = request(conn, held)
        if how == "completed":
            call(conn, "complete", held.workflow_id, held.lease)
        else:
            call(conn, "fail", held.workflow_id, held.lease, {"message": "no"})
        return approval_id
    held = start(conn, timeout="1 hour")
    approval_id = request(conn, held)
    assert wait(conn, held) == ("parked", None)
    if how == "cancelled":
        call(conn, "cancel", held.workflow_id)
    else:
        conn.execute("update durable.live_workflows set deadline = now() - interval '1 second'")
        call(conn, "tick")
    return approval_id


@pytest.mark.parametrize("how", ["completed", "failed", "cancelled", "timed out"])
def test_the_end_of_a_workflow_withdraws_what_nobody_decided(db: Database, how: str) -> None:
    conn = db.connect()
    decided = asked(conn)[1]
    decide(conn, decided)
    again = claim_one(conn)
    wait(conn, again)
    call(conn, "complete", again.workflow_id, again.lease)
    approval_id = end(conn, how)
    assert (state(conn, approval_id), state(conn, decided)) == ("withdrawn", "decided")
    with refused("WF015") as info:
        decide(conn, approval_id)
    assert "withdrawn" in str(info.value)
    assert value(conn, "select count(*) from durable.waits") == 0


@pytest.mark.parametrize("how", ["failed", "cancelled", "timed out"])
def test_a_retry_opens_what_the_end_withdrew(db: Database, how: str) -> None:
    conn = db.connect()
    approval_id = end(conn, how)
    call(conn, "retry", approval(conn, approval_id).workflow_id)
    assert state(conn, approval_id) == "pending"
    held = claim_one(conn)
    assert request(conn, held) == approval_id
    assert wait(conn, held) == ("parked", None)
    decide(conn, approval_id)
    assert wait(conn, claim_one(conn))[1]["value"]["decision"] == "approved"


def test_a_retry_of_a_workflow_keeps_what_was_decided(db: Database) -> None:
    conn = db.connect()
    held, approval_id = asked(conn)
    decide(conn, approval_id)
    held = claim_one(conn)
    wait(conn, held)
    call(conn, "fail", held.workflow_id, held.lease, {"message": "no", "step": "later"})
    call(conn, "retry", held.workflow_id)
    assert wait(conn, claim_one(conn))[0] == "exists"


def test_a_decision_and_the_end_of_the_workflow_do_not_wait_for_each_other(db: Database) -> None:
    conn, person = db.connect(), db.connect(autocommit=False)
    held, approval_id = asked(conn)
    decide(person, approval_id)
    conn.execute("set statement_timeout = '5s'")
    call(conn, "cancel", held.workflow_id)
    person.commit()
    assert (state(conn, approval_id), status(conn, held)) == ("decided", "cancelled")


# Retention


def test_approvals_go_with_the_history_of_their_workflow_and_never_while_it_lives(db: Database) -> None:
    conn = db.connect()
    call(conn, "configure", "retention", "1 hour")
    kept = asked(conn)[1]
    for how in ("completed", "failed", "cancelled"):
        end(conn, how)
    call(conn, "tick")
    assert value(conn, "select count(*) from durable.approvals") == 4
    age(conn, "1 day", [row[0] for row in rows(conn, "select workflow_id from durable.finished_workflows")])
    for _ in range(20):
        call(conn, "tick")
    assert value(conn, "select array_agg(approval_id) from durable.approvals") == [kept]


# Pauses and forks


def test_a_decision_during_a_pause_takes_effect_after_it(db: Database) -> None:
    conn = db.connect()
    held, approval_id = asked(conn)
    call(conn, "pause", held.workflow_id)
    assert (state(conn, approval_id), decide(conn, approval_id)) == ("pending", True)
    assert call(conn, "claim", "worker") == []
    call(conn, "resume", held.workflow_id)
    assert wait(conn, claim_one(conn))[1]["value"]["decision"] == "approved"


def test_a_fork_from_before_a_decision_asks_anew_and_one_from_after_it_keeps_it(db: Database) -> None:
    conn = db.connect()
    held, approval_id = asked(conn)
    call(conn, "fork", held.workflow_id, "ask")
    fork = claim_one(conn)
    anew = request(conn, fork)
    assert anew != approval_id
    assert wait(conn, fork) == ("parked", None)
    decide(conn, approval_id, "rejected")
    assert state(conn, anew) == "pending"
    again = claim_one(conn)
    assert again.workflow_id == held.workflow_id
    _, output = wait(conn, again)
    call(conn, "checkpoint", again.workflow_id, again.lease, "later")
    call(conn, "fork", held.workflow_id, "later")
    assert wait(conn, claim_one(conn)) == ("exists", output)
    assert value(conn, "select count(*) from durable.approvals") == 2
