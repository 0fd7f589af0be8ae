"""Children: a parent gets the same ones again, is woken once when all have ended, and takes them along into a cancel."""

from __future__ import annotations

from threading import Event
from typing import Any
from uuid import UUID

import psycopg
import pytest
from psycopg import IsolationLevel

from clusters import Database
from engine import (
    NOBODY,
    Connection,
    advance,
    at_once,
    call,
    claim,
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


def parent(conn: Connection, **named: Any) -> Any:
    enqueue(conn, "parent", queue="parents", **named)
    return claim_one(conn, "boss", ["parents"])


def start(conn: Connection, held: Any, count: int = 3, step: str = "s", **named: Any) -> UUID:
    """Starts children whose inputs count from 0; they wait in the default queue. Returns the first id."""
    inputs = [{"n": n} for n in range(count)]
    ((first,),) = call(
        conn, "start_children", held.workflow_id, held.lease, step, "child", inputs, **{"queue": "default", **named}
    )
    assert isinstance(first, UUID)
    return first


def wait(conn: Connection, held: Any, first: UUID, step: str = "w", **named: Any) -> Any:
    places = "".join(f", {name} => %s" for name in named)
    query = (
        f"select * from durable.wait(%s, %s, %s, jsonb_build_array(jsonb_build_object('children', %s::uuid)){places})"
    )
    ((outcome, output),) = rows(conn, query, held.workflow_id, held.lease, step, first, *named.values())
    return outcome, output


def parked(conn: Connection, count: int = 3, **named: Any) -> tuple[Any, UUID]:
    held = parent(conn)
    first = start(conn, held, count, **named)
    assert wait(conn, held, first) == ("parked", None)
    return held, first


def complete(conn: Connection, *children: Any) -> None:
    """Completes children in one call, each with its input as output."""
    outcomes = rows(
        conn, "select * from durable.complete_many(%s, %s, %s::jsonb[])", [child.workflow_id for child in children],
        [child.lease for child in children], [f'{{"n": {child.input["n"]}}}' for child in children],
    )  # fmt: skip
    assert {outcome for _, outcome in outcomes} == {"ok"}


def fail(conn: Connection, child: Any, message: str = "no") -> None:
    call(conn, "fail", child.workflow_id, child.lease, {"type": "E", "message": message}, None, False)


def status(conn: Connection, held: Any) -> str:
    return str(workflow(conn, held.workflow_id).status)


def notes(conn: Connection) -> int:
    return int(value(conn, "select count(*) from durable.ended_children"))


def joined(first: UUID, count: int, **failed: Any) -> dict[str, Any]:
    return {"first": str(first), "children": count, "failed": failed, "outputs": [{"n": n} for n in range(count)]}


# Starting


def test_children_are_started_once_however_often_the_step_is_called(db: Database) -> None:
    conn = db.connect()
    held = parent(conn, priority=3)
    first = start(conn, held, 3)
    before = snapshot(conn)
    assert start(conn, held, 3) == first
    assert start(conn, held, 5) == first
    assert snapshot(conn) == before
    children = rows(conn, "select * from durable.workflows where name = 'child' order by workflow_id")
    assert [child.input for child in children] == [{"n": 0}, {"n": 1}, {"n": 2}]
    assert {(child.parent_id, child.queue, child.priority, child.status) for child in children} == {
        (held.workflow_id, "default", 3, "pending")
    }
    assert children[0].workflow_id == first
    assert steps(conn, held.workflow_id)["s"].output == {"first": str(first), "children": 3}


def test_a_new_owner_gets_the_same_children(db: Database) -> None:
    conn = db.connect()
    held = parent(conn)
    first = start(conn, held)
    kill_worker(conn, "boss")
    call(conn, "tick")
    again = claim_one(conn, "another", ["parents"])
    assert again.steps[0]["output"]["first"] == str(first)
    assert start(conn, again) == first
    with refused("WF002"):
        start(conn, held, step="t")
    assert len(claim(conn, max_workflows=10)) == 3


def test_two_calls_at_once_start_the_children_once(db: Database) -> None:
    conn, other = db.connect(), db.connect()
    held = parent(conn)
    ids = at_once(lambda: start(conn, held, 100), lambda: start(other, held, 100))
    assert ids[0] == ids[1]
    assert value(conn, "select count(*) from durable.live_workflows where name = 'child'") == 100


def test_a_parent_that_is_taken_away_starts_no_children(db: Database) -> None:
    conn = db.connect()
    held = parent(conn)
    call(conn, "cancel", held.workflow_id)
    before = snapshot(conn)
    with refused("WF004"):
        start(conn, held)
    with refused("WF001"):
        call(conn, "start_children", NOBODY, 1, "s", "child", [{}])
    assert snapshot(conn) == before


@pytest.mark.parametrize(
    "wrong",
    [
        {"count": 0}, {"max_parallel": 0}, {"workflow": ""}, {"step": ""}, {"tags": "[]"}, {"priority": 99999},
        {"max_attempts": 0}, {"timeout": "0 s"},
    ],
    ids=str,
)  # fmt: skip
def test_invalid_arguments_change_nothing(db: Database, wrong: dict[str, Any]) -> None:
    conn = db.connect()
    held = parent(conn)
    before = snapshot(conn)
    with refused("WF005"):
        if "workflow" in wrong:
            call(conn, "start_children", held.workflow_id, held.lease, "s", "", [{}])
        else:
            start(conn, held, **wrong)
    assert snapshot(conn) == before


def test_a_step_that_is_stored_already_is_not_taken_for_children(db: Database) -> None:
    conn = db.connect()
    held = parent(conn)
    for step, first in (("s", str(NOBODY)), ("t", "place")):
        call(conn, "checkpoint", held.workflow_id, held.lease, step, {"first": first})
        with refused("WF005"):
            start(conn, held, step=step)


# Joining


def test_a_parent_is_woken_once_when_its_last_child_has_ended(db: Database) -> None:
    conn = db.connect()
    held, first = parked(conn, 5)
    children = claim(conn, max_workflows=10)
    complete(conn, children[4], children[0])
    assert status(conn, held) == "waiting"
    complete(conn, children[2])
    fail(conn, children[1], "broken")
    assert status(conn, held) == "waiting"
    assert workflow(conn, held.workflow_id).worker is None
    complete(conn, children[3])
    assert status(conn, held) == "pending"
    again = claim_one(conn, "boss", ["parents"])
    outcome, output = wait(conn, again, first)
    assert outcome == "ok"
    failed = {"1": {"status": "failed", "error": {"type": "E", "message": "broken"}}}
    expected = joined(first, 5, **failed)
    expected["outputs"][1] = None
    assert output == {"index": 0, "value": expected}
    assert wait(conn, again, first) == ("exists", output)
    call(conn, "tick")
    assert notes(conn) == 0


def test_children_that_ended_before_the_wait_do_not_park_it(db: Database) -> None:
    conn = db.connect()
    held = parent(conn)
    first = start(conn, held)
    complete(conn, *claim(conn, max_workflows=10))
    assert wait(conn, held, first) == ("ok", {"index": 0, "value": joined(first, 3)})


def test_one_of_several_groups_wakes_whoever_waits_for_any(db: Database) -> None:
    conn = db.connect()
    held = parent(conn)
    one, two = start(conn, held, 1, "one"), start(conn, held, 1, "two")
    query = """select * from durable.wait(%s, %s, 'w', jsonb_build_array(
      jsonb_build_object('children', %s::uuid), jsonb_build_object('children', %s::uuid)), mode => %s)"""
    assert rows(conn, query, held.workflow_id, held.lease, one, two, "any")[0].outcome == "parked"
    complete(conn, claim(conn, max_workflows=2)[1])
    again = claim_one(conn, "boss", ["parents"])
    met = rows(conn, query, again.workflow_id, again.lease, one, two, "any")[0]
    assert (met.outcome, met.output["index"]) == ("ok", 1)


def test_a_wait_for_children_times_out_and_leaves_them(db: Database) -> None:
    conn = db.connect()
    held = parent(conn)
    first = start(conn, held)
    assert wait(conn, held, first, timeout="0 s") == ("timeout", {"timed_out": True})
    assert len(claim(conn, max_workflows=10)) == 3


@pytest.mark.parametrize("wrong", [str(NOBODY), "x", "01900000-0000-7000-8000-0000000000ff"])
def test_only_a_group_of_ones_own_children_can_be_waited_for(db: Database, wrong: str) -> None:
    conn = db.connect()
    held, other = parent(conn), parent(conn)
    foreign = start(conn, other)
    for subject in (wrong, str(foreign)):
        with refused("WF005"):
            conditions = f'[{{"children": "{subject}"}}]'
            rows(conn, "select * from durable.wait(%s, %s, 'w', %s::jsonb)", held.workflow_id, held.lease, conditions)


def test_large_outputs_stay_with_the_children_and_large_errors_are_cut(db: Database) -> None:
    conn = db.connect()
    _, first = parked(conn, 5)
    noise = "select string_agg(md5(random()::text), '') from generate_series(1, 4000)"
    for place, child in enumerate(claim(conn, max_workflows=10)):
        text = value(conn, noise)
        if place < 2:
            call(conn, "complete", child.workflow_id, child.lease, {"text": text})
        else:
            fail(conn, child, text)
    again = claim_one(conn, "boss", ["parents"])
    _, output = wait(conn, again, first)
    assert "outputs" not in output["value"]
    assert {len(failed["error"]["message"]) for failed in output["value"]["failed"].values()} == {200}
    results = call(conn, "child_results", first)
    assert [len((result.output or {"text": ""})["text"]) for result in results] == [128000, 128000, 0, 0, 0]
    assert [result.status for result in results] == ["completed"] * 2 + ["failed"] * 3


def test_child_results_lists_all_children_in_order_also_those_under_way(db: Database) -> None:
    conn = db.connect()
    held = parent(conn)
    first = start(conn, held, 300, max_parallel=2)
    complete(conn, claim(conn, max_workflows=2)[1])
    results = call(conn, "child_results", first)
    assert [result.status for result in results[:4]] == ["running", "completed", "pending", "pending"]
    assert [result.workflow_id for result in results] == sorted(result.workflow_id for result in results)
    assert len(results) == 300
    assert call(conn, "child_results", NOBODY) == []
    assert call(conn, "child_results", held.workflow_id) == []


def test_a_retry_of_a_child_does_not_change_what_a_replay_finds(db: Database) -> None:
    conn = db.connect()
    held, first = parked(conn, 1)
    fail(conn, claim_one(conn))
    again = claim_one(conn, "boss", ["parents"])
    _, output = wait(conn, again, first)
    assert call(conn, "retry", first)[0].retry
    complete(conn, claim_one(conn))
    assert wait(conn, again, first) == ("exists", output)
    assert workflow(conn, first).parent_id == held.workflow_id


def test_a_parent_that_is_retried_has_the_children_whose_failure_it_was_run_again(db: Database) -> None:
    conn = db.connect()
    enqueue(conn, "parent", queue="parents", max_attempts=2)
    held = claim_one(conn, "boss", ["parents"])
    first = start(conn, held, 3)
    assert wait(conn, held, first) == ("parked", None)
    children = claim(conn, max_workflows=10)
    complete(conn, children[0])
    fail(conn, children[1])
    call(conn, "cancel", children[2].workflow_id)
    for turn in ("attempt", "retry"):
        held = claim_one(conn, "boss", ["parents"])
        assert wait(conn, held, first)[0] == "ok"
        call(conn, "fail", held.workflow_id, held.lease, {"type": "ChildFailed", "message": "no", "step": "w"}, "0 s")
        if turn == "retry":
            assert status(conn, held) == "failed"
            assert call(conn, "retry", held.workflow_id)[0].retry
        again = claim(conn, max_workflows=10)
        assert [child.input["n"] for child in again] == [1, 2]
        call(conn, "tick")
        held = claim_one(conn, "boss", ["parents"])
        assert wait(conn, held, first) == ("parked", None)
        if turn == "retry":
            complete(conn, *again)
        else:
            for child in again:
                fail(conn, child)
    held = claim_one(conn, "boss", ["parents"])
    assert wait(conn, held, first) == ("ok", {"index": 0, "value": joined(first, 3)})


@pytest.mark.parametrize("gone", [0, 1, 2])
@pytest.mark.parametrize("retried", [True, False])
def test_a_child_that_has_left_the_history_counts_as_failed_and_shifts_no_other(
    db: Database, gone: int, retried: bool
) -> None:
    """Its parent was retried, or waited for long for another one."""
    conn = db.connect()
    for setting in ("lease", "session_grace"):
        call(conn, "configure", setting, "100 days")
    held, first = parked(conn)
    children = claim(conn, "w", 3)
    fail(conn, children[gone]) if retried else complete(conn, children[gone])
    advance(conn, "10 days")
    complete(conn, *(child for place, child in enumerate(children) if place != gone))
    if retried:
        (held,) = claim(conn, "boss", 1, ["parents"])
        outcome, value_of_wait = wait(conn, held, first)
        assert outcome == "ok"
        assert [*value_of_wait["value"]["failed"]] == [str(gone)]
        call(conn, "fail", held.workflow_id, held.lease, {"message": "no", "step": "w"}, None, False)
    advance(conn, "35 days")
    for _ in range(100):
        call(conn, "tick")
        if workflow_or_none(conn, children[gone].workflow_id) is None:
            break
    if retried:
        # What is stored of the failed one is gone: it cannot run again, and the others are not taken for it.
        assert workflow_or_none(conn, children[gone].workflow_id) is None
        assert call(conn, "retry", held.workflow_id) == [(True,)]
    (held,) = claim(conn, "boss", 1, ["parents"])
    outcome, found = wait(conn, held, first)
    assert outcome == "ok"
    if retried:
        failed = found["value"]["failed"]
        assert failed.keys() == {str(gone)}
        assert failed[str(gone)]["error"]["code"] == "WF001"
        assert str(children[gone].workflow_id) in failed[str(gone)]["error"]["message"]
    else:
        # An unfinished parent keeps them all.
        assert found["value"]["failed"] == {}
    assert found["value"]["children"] == 3
    assert found["value"]["outputs"] == [None if retried and place == gone else {"n": place} for place in range(3)]


def workflow_or_none(conn: Connection, workflow_id: UUID) -> Any:
    found = rows(conn, "select status from durable.workflows where workflow_id = %s", workflow_id)
    return found[0] if found else None


# Races, in each order


def end_last(conn: Connection, children: list[Any], how: str) -> None:
    if how == "complete":
        complete(conn, *children)
    for child in children:
        if how == "fail":
            fail(conn, child)
        elif how == "cancel":
            call(conn, "cancel", child.workflow_id)


@pytest.mark.parametrize("how", ["complete", "fail", "cancel"])
def test_a_wait_that_begins_while_the_last_child_ends_is_woken_by_a_tick(db: Database, how: str) -> None:
    conn, other = db.connect(), db.connect()
    held = parent(conn)
    first = start(conn, held)
    children = claim(conn, max_workflows=10)
    with other.transaction():
        end_last(other, children, how)
        # The end is made known, and finds nobody who waits, before the wait begins.
        other.execute("set constraints all immediate")
        assert wait(conn, held, first) == ("parked", None)
        call(conn, "tick")
        assert status(conn, held) == "waiting"
    assert status(conn, held) == "waiting"
    call(conn, "tick")
    assert status(conn, held) == "pending"
    assert wait(conn, claim_one(conn, "boss", ["parents"]), first)[0] == "ok"


def test_recheck_wakes_a_parent_whose_children_ended_as_it_parked(db: Database) -> None:
    conn, other = db.connect(), db.connect()
    held = parent(conn)
    first = start(conn, held)
    children = claim(conn, max_workflows=10)
    with conn.transaction():
        assert wait(conn, held, first) == ("parked", None)
        complete(other, *children)
    assert status(conn, held) == "waiting"
    assert call(conn, "recheck_waits", [held.workflow_id])[0].recheck_waits == 1
    assert status(conn, held) == "pending"


def test_two_who_end_the_last_two_children_side_by_side_lose_no_wake_up(db: Database) -> None:
    conn, one, two = db.connect(), db.connect(), db.connect()
    held, _ = parked(conn, 2)
    children = claim(conn, max_workflows=2)
    with one.transaction():
        complete(one, children[0])
        with two.transaction():
            complete(two, children[1])
            one.execute("set constraints all immediate")
            two.execute("set constraints all immediate")
    assert status(conn, held) == "waiting"
    call(conn, "tick")
    assert status(conn, held) == "pending"
    assert notes(conn) == 0


def test_a_parent_whose_row_is_held_when_its_children_end_is_woken_later(db: Database) -> None:
    conn, other = db.connect(), db.connect()
    held, _ = parked(conn)
    with other.transaction():
        other.execute("select from durable.live_workflows where workflow_id = %s for update", [held.workflow_id])
        complete(conn, *claim(conn, max_workflows=10))
        call(conn, "tick")
        assert status(conn, held) == "waiting"
    call(conn, "tick")
    assert status(conn, held) == "pending"


def test_an_end_in_repeatable_read_wakes_with_the_next_tick(db: Database) -> None:
    conn, other = db.connect(), db.connect()
    other.isolation_level = IsolationLevel.REPEATABLE_READ
    held, first = parked(conn, 2, max_parallel=1)
    with other.transaction():
        call(other, "cancel", first)
    assert claim(conn) == []
    call(conn, "tick")
    complete(conn, claim_one(conn))
    assert status(conn, held) == "pending"


def test_ends_that_are_rolled_back_wake_nobody(db: Database) -> None:
    conn = db.connect()
    held, _ = parked(conn, 2, max_parallel=1)
    child = claim_one(conn)
    with conn.transaction(force_rollback=True):
        complete(conn, child)
    call(conn, "tick")
    assert claim(conn) == []
    assert status(conn, held) == "waiting"


def test_a_worker_that_lies_down_while_children_end_waits_for_nobody_and_is_rung_for_by_the_next_tick(
    db: Database,
) -> None:
    conn, other = db.connect(), db.connect(autocommit=False)
    parked(conn, 2, max_parallel=1)
    child = claim_one(conn)
    complete(other, child)
    other.execute("set constraints all immediate")
    channel = value(conn, "select durable.idle('worker')")
    assert claim(conn) == []
    conn.execute(f'listen "{channel}"'.encode())
    other.commit()
    assert call(other, "tick")[0].tick["rung"] == 1
    other.commit()
    assert len(list(conn.notifies(timeout=30, stop_after=1))) == 1
    assert [found.input["n"] for found in claim(conn)] == [1]


# At most so many at a time


def test_max_parallel_holds_at_every_moment_and_all_run_in_order(db: Database) -> None:
    conn = db.connect()
    held, first = parked(conn, 10, max_parallel=3)
    order: list[int] = []
    under_way: list[Any] = []
    for turn in range(20):
        under_way += claim(conn, max_workflows=10)
        order = order + [child.input["n"] for child in under_way if child.input["n"] not in order]
        assert len(under_way) <= 3
        if not under_way:
            break
        ending, under_way = under_way[: 1 + turn % 2], under_way[1 + turn % 2 :]
        if turn == 2:
            fail(conn, ending[0])
            ending = ending[1:]
        if ending:
            complete(conn, *ending)
    assert order == list(range(10))
    assert status(conn, held) == "pending"
    again = claim_one(conn, "boss", ["parents"])
    assert list(wait(conn, again, first)[1]["value"]["failed"]) != []


def test_a_child_that_is_held_back_gives_no_place_when_it_is_cancelled(db: Database) -> None:
    conn = db.connect()
    _, first = parked(conn, 4, max_parallel=1)
    (running,) = claim(conn, max_workflows=10)
    second = call(conn, "child_results", first)[1].workflow_id
    call(conn, "cancel", second)
    assert claim(conn, max_workflows=10) == []
    complete(conn, running)
    assert [child.input["n"] for child in claim(conn, max_workflows=10)] == [2]


def test_a_place_that_nobody_could_take_is_not_lost(db: Database) -> None:
    conn, other = db.connect(), db.connect()
    _, first = parked(conn, 2, max_parallel=1)
    second = call(conn, "child_results", first)[1].workflow_id
    with other.transaction(force_rollback=True):
        call(other, "cancel", second)
        complete(conn, claim_one(conn))
        call(conn, "tick")
        assert claim(conn) == []
    call(conn, "tick")
    assert claim_one(conn).workflow_id == second


def test_two_who_end_children_side_by_side_let_in_two(db: Database) -> None:
    conn, other = db.connect(), db.connect()
    parked(conn, 5, max_parallel=2)
    one, two = claim(conn, max_workflows=5)
    with other.transaction():
        complete(other, one)
        other.execute("set constraints all immediate")
        complete(conn, two)
    assert {child.input["n"] for child in claim(conn, max_workflows=5)} == {2, 3}


# Cancelling


def test_cancel_takes_children_and_theirs_along_and_tells_their_workers(db: Database) -> None:
    conn = db.connect()
    held = parent(conn)
    start(conn, held, 4, max_parallel=2)
    child = claim_one(conn)
    grandchild = start(conn, child, 1, queue="deep")
    below = claim_one(conn, "deep worker", ["deep"])
    stranger = enqueue(conn, "stranger")
    listener = db.connect()
    for name in ("worker", "deep worker", "boss"):
        channel = value(conn, "select 'durable_worker_' || worker_id from durable.workers where name = %s", name)
        listener.execute(f'listen "{channel}"'.encode())
    assert call(conn, "cancel", held.workflow_id, "enough")[0].cancel
    assert len(list(listener.notifies(timeout=5, stop_after=3))) == 3
    ended = rows(conn, "select * from durable.workflows where status = 'cancelled'")
    assert len(ended) == 6
    assert {row.error_message for row in ended} == {"enough", f"cancelled with workflow {held.workflow_id}: enough"}
    with refused("WF004"):
        call(conn, "complete", below.workflow_id, below.lease, {})
    assert below.workflow_id == grandchild
    assert [row.workflow_id for row in rows(conn, "select workflow_id from durable.live_workflows")] == [stranger]
    call(conn, "tick")
    assert notes(conn) == 0


def test_children_go_on_when_their_parent_ends_otherwise(db: Database) -> None:
    conn = db.connect()
    held = parent(conn)
    start(conn, held, 3, max_parallel=1)
    call(conn, "complete", held.workflow_id, held.lease, {})
    assert not call(conn, "cancel", held.workflow_id)[0].cancel
    for n in range(3):
        child = claim_one(conn)
        assert child.input == {"n": n}
        complete(conn, child)
    call(conn, "tick")
    assert notes(conn) == 0


def test_a_cancelled_child_is_the_parents_to_handle(db: Database) -> None:
    conn = db.connect()
    held, first = parked(conn, 1)
    call(conn, "cancel", first, "not this one")
    again = claim_one(conn, "boss", ["parents"])
    failed = wait(conn, again, first)[1]["value"]["failed"]["0"]
    assert (failed["status"], failed["error"]["message"]) == ("cancelled", "not this one")
    assert status(conn, held) == "running"


def test_a_cancel_that_waits_for_children_being_started_takes_them_along(db: Database) -> None:
    conn, other, observer = db.connect(), db.connect(), db.connect()
    held = parent(conn)
    started = Event()

    def start_and_commit() -> None:
        with conn.transaction():
            start(conn, held, 5)
            started.set()
            wait_until_blocked(observer, other)

    def cancel() -> bool:
        assert started.wait(60)
        return bool(call(other, "cancel", held.workflow_id)[0].cancel)

    assert at_once(start_and_commit, cancel)[1]
    assert value(conn, "select count(*) from durable.live_workflows") == 0
    assert value(conn, "select count(*) from durable.finished_workflows where status = 'cancelled'") == 6


@pytest.mark.parametrize("commits", [True, False], ids=["commits", "rolls back"])
def test_28_a_cancellation_of_a_parent_waits_for_the_end_of_its_last_child_and_is_final(
    db: Database, commits: bool
) -> None:
    conn, ending, other = db.connect(), db.connect(autocommit=False), db.connect()
    held, first = parked(conn, 1)
    complete(ending, claim_one(conn))

    def end_when_awaited() -> None:
        # Its commit finds the parent held by the cancellation, and must neither wait for it nor fail.
        wait_until_blocked(conn, other)
        if commits:
            ending.commit()
        else:
            ending.rollback()

    assert at_once(end_when_awaited, lambda: call(other, "cancel", held.workflow_id)[0].cancel)[1]
    assert status(conn, held) == "cancelled"
    assert workflow(conn, first).status == ("completed" if commits else "cancelled")
    call(conn, "tick")
    assert claim(conn, "boss", 1, ["parents"]) == []
    assert notes(conn) == 0
    assert value(conn, "select count(*) from durable.waits") == 0


@pytest.mark.parametrize("commits", [True, False], ids=["commits", "rolls back"])
def test_28_the_last_child_that_ends_while_its_parent_is_cancelled_is_cancelled_or_wakes_it(
    db: Database, commits: bool
) -> None:
    conn, cancelling, other = db.connect(), db.connect(autocommit=False), db.connect()
    held, first = parked(conn, 1)
    child = claim_one(conn)
    call(cancelling, "cancel", held.workflow_id)

    def decide_when_awaited() -> None:
        wait_until_blocked(conn, other)
        if commits:
            cancelling.commit()
        else:
            cancelling.rollback()

    def end() -> str | None:
        try:
            call(other, "complete", child.workflow_id, child.lease, child.input)
        except psycopg.Error as error:
            return error.sqlstate
        return "ok"

    assert at_once(decide_when_awaited, end)[1] == ("WF004" if commits else "ok")
    call(conn, "tick")
    if commits:
        assert {status(conn, held), workflow(conn, first).status} == {"cancelled"}
    else:
        assert wait(conn, claim_one(conn, "boss", ["parents"]), first)[0] == "ok"
    assert notes(conn) == 0


def test_a_cancellation_that_is_rolled_back_after_the_last_child_ended_loses_no_wake_up(db: Database) -> None:
    conn, ending, cancelling = db.connect(), db.connect(autocommit=False), db.connect(autocommit=False)
    held, first = parked(conn, 1)
    complete(ending, claim_one(conn))

    def end_when_awaited() -> None:
        wait_until_blocked(conn, cancelling)
        ending.commit()

    assert at_once(end_when_awaited, lambda: call(cancelling, "cancel", held.workflow_id)[0].cancel)[1]
    assert status(conn, held) == "waiting"
    cancelling.rollback()
    call(conn, "tick")
    assert wait(conn, claim_one(conn, "boss", ["parents"]), first)[0] == "ok"
    assert notes(conn) == 0


@pytest.mark.parametrize("commits", [True, False], ids=["commits", "rolls back"])
def test_26_a_timeout_that_wakes_a_parent_while_its_last_child_ends_finds_the_end(db: Database, commits: bool) -> None:
    conn, ticker = db.connect(), db.connect(autocommit=False)
    held = parent(conn)
    first = start(conn, held, 1)
    assert wait(conn, held, first, timeout="1 hour") == ("parked", None)
    conn.execute("update durable.live_workflows set wake_at = clock_timestamp() where wake_at is not null")
    conn.execute("update durable.open_steps set wait_until = wait_until - interval '1 day'")
    assert value(ticker, "select durable.tick()")["woken"] == 1
    complete(conn, claim_one(conn))
    if commits:
        ticker.commit()
    else:
        ticker.rollback()
        call(conn, "tick")
    assert wait(conn, claim_one(conn, "boss", ["parents"]), first, timeout="1 hour")[0] == "ok"
    call(conn, "tick")
    assert notes(conn) == 0


def test_workflows_without_a_parent_leave_no_trace_of_their_end(db: Database) -> None:
    conn = db.connect()
    enqueue(conn)
    held = claim_one(conn)
    call(conn, "complete", held.workflow_id, held.lease, {})
    assert value(conn, "select not is_called from durable.ended_children_seq_seq")
