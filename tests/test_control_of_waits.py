"""Pause, retry, fork and continue_as_new of workflows that wait, and of parents and children."""

from __future__ import annotations

from typing import Any
from uuid import UUID

import pytest
from psycopg.types.json import Jsonb

from clusters import Database
from engine import Connection, call, claim, claim_one, enqueue, refused, rows, snapshot, value, workflow

pytestmark = pytest.mark.pg(15, 18)


def started(conn: Connection, count: int, **named: Any) -> tuple[Any, UUID]:
    """A parent that runs, with its children in the default queue, and the id of the first of them."""
    enqueue(conn, "parent", queue="parents")
    held = claim_one(conn, "boss", ["parents"])
    inputs = [{"n": n} for n in range(count)]
    ((first,),) = call(
        conn, "start_children", held.workflow_id, held.lease, "start", "child", inputs, queue="default", **named
    )
    return held, first


def wait(conn: Connection, held: Any, condition: dict[str, Any], step: str = "wait") -> Any:
    ((outcome, output),) = rows(
        conn, "select * from durable.wait(%s, %s, %s, %s)", held.workflow_id, held.lease, step, Jsonb([condition])
    )
    return outcome, output


@pytest.mark.parametrize("what", ["message", "event", "children"])
def test_what_a_paused_workflow_waits_for_wakes_it_when_it_is_resumed(db: Database, what: str) -> None:
    conn = db.connect()
    held, first = started(conn, 1)
    subject = str(first) if what == "children" else "x"
    assert wait(conn, held, {what: subject})[0] == "parked"
    call(conn, "pause", held.workflow_id)
    if what == "message":
        call(conn, "send", held.workflow_id, "x")
    elif what == "event":
        call(conn, "emit", "x")
    else:
        child = claim_one(conn)
        call(conn, "complete", child.workflow_id, child.lease)
    call(conn, "tick")
    assert workflow(conn, held.workflow_id).status == "pending"
    assert claim(conn, "boss", 10, ["parents"]) == []
    assert value(conn, "select durable.resume(%s)", held.workflow_id)
    again = claim_one(conn, "boss", ["parents"])
    assert wait(conn, again, {what: subject})[0] == "ok"


def test_a_child_that_is_paused_while_it_is_held_back_takes_its_turn_when_it_is_resumed(db: Database) -> None:
    conn = db.connect()
    _, first = started(conn, 3, max_parallel=1)
    second = rows(conn, "select workflow_id from durable.child_results(%s)", first)[1].workflow_id
    call(conn, "pause", second)
    ahead = claim_one(conn)
    call(conn, "complete", ahead.workflow_id, ahead.lease)
    # Its turn has come, and it keeps it: nobody goes ahead of it.
    call(conn, "tick")
    assert claim(conn, "worker", 10) == []
    call(conn, "resume", second)
    assert claim_one(conn).workflow_id == second


def test_a_retry_in_bulk_runs_the_children_again_whose_failure_it_was(db: Database) -> None:
    conn = db.connect()
    parents = []
    for _ in range(2):
        held, first = started(conn, 2)
        good, bad = claim(conn, "worker", 2)
        call(conn, "complete", good.workflow_id, good.lease, Jsonb("good"))
        call(conn, "fail", bad.workflow_id, bad.lease, Jsonb({"message": "bad"}))
        assert wait(conn, held, {"children": str(first)})[0] == "ok"
        call(conn, "fail", held.workflow_id, held.lease, Jsonb({"message": "a child", "step": "wait"}))
        parents.append((held.workflow_id, first, bad.workflow_id))
    assert value(conn, "select durable.retry_many(%s)", [workflow_id for workflow_id, *_ in parents]) == 2
    for workflow_id, first, bad in parents:
        assert workflow(conn, bad).status == "pending"
        again = claim_one(conn, "boss", ["parents"])
        assert again.workflow_id == workflow_id
        assert wait(conn, again, {"children": str(first)})[0] == "parked"


def test_29_a_fork_starts_children_of_its_own_unless_the_end_of_the_others_was_seen(db: Database) -> None:
    conn = db.connect()
    held, first = started(conn, 1)
    call(conn, "checkpoint", held.workflow_id, held.lease, "between", Jsonb(1))
    child = claim_one(conn)
    call(conn, "complete", child.workflow_id, child.lease, Jsonb("done"))
    output = wait(conn, held, {"children": str(first)})
    call(conn, "checkpoint", held.workflow_id, held.lease, "after", Jsonb(2))

    before = value(conn, "select durable.fork(%s, 'between')", held.workflow_id)
    assert [step.step_name for step in call(conn, "history", before)] == []
    fork = claim_one(conn, "boss", ["parents"])
    ((own,),) = call(conn, "start_children", before, fork.lease, "start", "child", [{"n": 0}], queue="default")
    assert own != first
    assert wait(conn, fork, {"children": str(own)})[0] == "parked"

    after = value(conn, "select durable.fork(%s, 'after')", held.workflow_id)
    assert {step.step_name for step in call(conn, "history", after)} == {"start", "between", "wait"}
    fork = claim_one(conn, "boss", ["parents"])
    assert wait(conn, fork, {"children": str(first)}) == ("exists", output[1])


def test_a_child_does_not_continue_as_new(db: Database) -> None:
    conn = db.connect()
    started(conn, 1)
    child = claim_one(conn)
    before = snapshot(conn)
    with refused("WF005") as info:
        call(conn, "continue_as_new", child.workflow_id, child.lease)
    assert "is a child" in str(info.value)
    assert snapshot(conn) == before
