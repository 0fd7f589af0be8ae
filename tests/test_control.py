"""Steering one workflow from outside: pause and resume, fork, retry in bulk; and what it says of itself while it runs."""

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
)

ERROR = {"type": "Oops", "message": "no luck"}


def start(conn: Connection, **named: Any) -> tuple[UUID, int]:
    workflow_id = enqueue(conn, **named)
    claimed = claim_one(conn)
    assert claimed.workflow_id == workflow_id
    return workflow_id, claimed.lease


def run_steps(conn: Connection, held: tuple[UUID, int], *names: str) -> None:
    for name in names:
        call(conn, "checkpoint", *held, name, {"of": name})


def ended(conn: Connection, *names: str, **named: Any) -> UUID:
    """A completed workflow with these steps."""
    held = start(conn, **named)
    run_steps(conn, held, *names)
    call(conn, "complete", *held, {"done": True})
    return held[0]


def names_of(conn: Connection, workflow_id: UUID) -> list[str]:
    return [step.step_name for step in call(conn, "history", workflow_id)]


# Pause and resume


def test_a_paused_workflow_is_claimed_by_nobody_until_it_is_resumed(db: Database) -> None:
    conn = db.connect()
    workflow_id = enqueue(conn)
    assert value(conn, "select durable.pause(%s, 'look first')", workflow_id) is True
    row = workflow(conn, workflow_id)
    assert (row.status, row.pause_reason, row.paused_at is None) == ("pending", "look first", False)
    assert claim(conn) == []
    assert value(conn, "select durable.resume(%s)", workflow_id) is True
    row = workflow(conn, workflow_id)
    assert (row.status, row.pause_reason, row.paused_at) == ("pending", None, None)
    assert claim_one(conn).workflow_id == workflow_id


def test_what_is_paused_or_resumed_twice_or_has_ended_says_so(db: Database) -> None:
    conn = db.connect()
    workflow_id = enqueue(conn)
    assert value(conn, "select durable.resume(%s)", workflow_id) is False
    assert value(conn, "select durable.pause(%s, 'first')", workflow_id) is True
    assert value(conn, "select durable.pause(%s, 'second')", workflow_id) is False
    assert workflow(conn, workflow_id).pause_reason == "first"
    call(conn, "cancel", workflow_id)
    for function in ("pause", "resume"):
        assert value(conn, f"select durable.{function}(%s)", workflow_id) is False
        with refused("WF001"):
            call(conn, function, NOBODY)


def test_a_running_workflow_is_taken_from_its_worker_and_goes_on_after_the_pause(db: Database) -> None:
    conn, listener = db.connect(), db.connect()
    channel = value(listener, "select durable.attach('worker')")
    listener.execute(f'listen "{channel}"'.encode())
    held = start(conn)
    run_steps(conn, held, "one")
    call(conn, "pause", held[0])
    assert [note.payload for note in listener.notifies(timeout=10, stop_after=1)] == ["cancel"]
    before = snapshot(conn)
    for function, *arguments in (("checkpoint", "two", {}), ("complete", {}), ("fail", ERROR), ("publish", "k", {})):
        with refused("WF002"):
            call(conn, function, *held, *arguments)
    assert call(conn, "heartbeat", "worker", [held[0]], [held[1]]) == [(held[0], "WF002", held[1])]
    assert snapshot(conn) == before
    call(conn, "resume", held[0])
    again = claim_one(conn)
    assert (again.workflow_id, again.attempt) == (held[0], 1)
    assert [step["step_name"] for step in again.steps] == ["one"]
    assert again.lease > held[1]


def test_a_death_of_its_worker_does_not_bring_a_paused_workflow_back(db: Database) -> None:
    conn = db.connect()
    held = start(conn)
    call(conn, "pause", held[0])
    kill_worker(conn, "worker")
    assert value(conn, "select durable.recover()") == 0
    assert claim(conn, "another") == []
    assert workflow(conn, held[0]).crashes == 0


@pytest.mark.parametrize("due", ["during", "after"])
def test_a_time_that_comes_during_the_pause_takes_effect_when_it_is_resumed(db: Database, due: str) -> None:
    conn = db.connect()
    workflow_id = value(conn, "select durable.enqueue('w', run_at => clock_timestamp() + interval '1 hour')")
    call(conn, "pause", workflow_id)
    wake = "update durable.live_workflows set wake_at = now() - interval '1 minute'"
    if due == "during":
        conn.execute(wake.encode())
        assert value(conn, "select durable.tick()")["woken"] == 1
        assert value(conn, "select durable.tick()")["woken"] == 0, "it is noticed once"
        assert claim(conn) == []
    call(conn, "resume", workflow_id)
    if due == "after":
        assert claim(conn) == []
        assert workflow(conn, workflow_id).wake_at is not None
        conn.execute(wake.encode())
        assert value(conn, "select durable.tick()")["woken"] == 1
    assert claim_one(conn).workflow_id == workflow_id


@pytest.mark.parametrize("status", ["sleeping", "waiting"])
def test_a_workflow_that_sleeps_or_waits_stays_so_while_it_is_paused(db: Database, status: str) -> None:
    conn = db.connect()
    workflow_id = value(conn, "select durable.enqueue('w', run_at => clock_timestamp() + interval '1 hour')")
    conn.execute("update durable.live_workflows set status = %s", [status])
    call(conn, "pause", workflow_id)
    assert workflow(conn, workflow_id).status == status
    call(conn, "resume", workflow_id)
    row = workflow(conn, workflow_id)
    assert (row.status, row.wake_at is None) == (status, False)
    call(conn, "pause", workflow_id)
    conn.execute("update durable.live_workflows set wake_at = now() - interval '1 minute'")
    call(conn, "tick")
    assert workflow(conn, workflow_id).status == "pending"
    assert claim(conn) == []
    call(conn, "resume", workflow_id)
    assert claim_one(conn).workflow_id == workflow_id


def test_a_paused_workflow_can_be_cancelled_and_times_out(db: Database) -> None:
    conn = db.connect()
    cancelled, late = enqueue(conn), enqueue(conn, timeout="1 hour")
    claim(conn, max_workflows=2)
    for workflow_id in (cancelled, late):
        call(conn, "pause", workflow_id)
    assert value(conn, "select durable.cancel(%s)", cancelled) is True
    conn.execute("update durable.live_workflows set deadline = now() - interval '1 second'")
    call(conn, "tick")
    assert [workflow(conn, each).status for each in (cancelled, late)] == ["cancelled", "failed"]
    call(conn, "retry", late)
    assert claim_one(conn).workflow_id == late, "a retry does not bring the pause back"


def test_a_pause_that_is_rolled_back_never_was(db: Database) -> None:
    conn, other = db.connect(), db.connect()
    held = start(conn)
    with other.transaction(force_rollback=True):
        call(other, "pause", held[0])
    call(conn, "complete", *held, {"done": True})
    assert workflow(conn, held[0]).status == "completed"


def test_a_pause_waits_for_an_open_transactional_step_and_keeps_its_checkpoint(db: Database) -> None:
    conn, worker, other = db.connect(), db.connect(), db.connect()
    held = start(conn)

    def step() -> None:
        wait_until_blocked(conn, other)
        call(worker, "checkpoint", *held, "s", {})
        worker.commit()

    worker.autocommit = False
    call(worker, "begin_step", *held, "s")
    at_once(step, lambda: call(other, "pause", held[0]))
    assert steps(conn, held[0])["s"].status == "completed"
    assert workflow(conn, held[0]).paused_at is not None


@pytest.mark.parametrize("turn", range(4))
def test_of_a_pause_and_an_end_at_once_the_first_stands(db: Database, turn: int) -> None:
    conn = db.connect()
    one, two = db.connect(), db.connect()
    held = start(conn)

    def complete() -> bool:
        return bool(call(one, "complete_many", [held[0]], [held[1]], [{}])[0].outcome == "ok")

    completed, paused = at_once(complete, lambda: value(two, "select durable.pause(%s)", held[0]))
    assert completed is not paused
    row = workflow(conn, held[0])
    assert (row.status, row.paused_at is None) == (("completed", True) if completed else ("pending", False))


def test_a_worker_suspends_what_somebody_has_to_look_at(db: Database) -> None:
    conn = db.connect()
    held = start(conn)
    with refused("WF005"):
        call(conn, "suspend", held[0], None, "why")
    call(conn, "suspend", *held, "why")
    before = snapshot(conn)
    call(conn, "suspend", *held, "sent again")
    assert snapshot(conn) == before
    assert workflow(conn, held[0]).pause_reason == "why"
    call(conn, "resume", held[0])
    with refused("WF002"):
        call(conn, "suspend", *held, "too late")
    assert claim_one(conn).workflow_id == held[0]
    with refused("WF001"):
        call(conn, "suspend", NOBODY, held[1], "why")


# Fork


def test_29_a_fork_copies_the_checkpoints_before_the_step_and_shares_nothing_after_it(db: Database) -> None:
    conn = db.connect()
    source = ended(conn, "one", "two", "three", input={"n": 1}, tags={"t": 1}, priority=3, key="k", timeout="1 hour")
    before = snapshot(conn)
    fork = value(conn, "select durable.fork(%s, 'two')", source)
    row = workflow(conn, fork)
    assert (row.status, row.input, row.tags, row.priority, row.timeout, row.key, row.attempt) == (
        "pending", {"n": 1}, {"t": 1}, 3, timedelta(hours=1), None, 1,
    )  # fmt: skip
    assert (row.forked_from, row.forked_at_step) == (source, "two")
    claimed = claim_one(conn)
    assert claimed.workflow_id == fork
    assert [(step["step_name"], step["output"]) for step in claimed.steps] == [("one", {"of": "one"})]
    held = (fork, claimed.lease)
    call(conn, "checkpoint", *held, "two", {"of": "the fork"})
    call(conn, "complete", *held, {"other": True})
    assert steps(conn, source)["two"].output == {"of": "two"}
    assert [workflow(conn, each).output for each in (source, fork)] == [{"done": True}, {"other": True}]
    assert (workflow(conn, fork).forked_from, workflow(conn, fork).forked_at_step) == (source, "two")
    call(conn, "cancel", source)
    conn.execute("delete from durable.finished_workflows where workflow_id = %s", [fork])
    conn.execute("delete from durable.checkpoints where workflow_id = %s", [fork])
    conn.execute("delete from durable.workers")
    assert [each for each in snapshot(conn) if each] == [each for each in before if each]


def test_29_without_a_step_a_fork_runs_from_the_start_with_another_input_if_there_is_one(db: Database) -> None:
    conn = db.connect()
    source = ended(conn, "one", input={"n": 1})
    forks = [
        value(conn, "select durable.fork(%s)", source),
        value(conn, "select durable.fork(%s, input => '2')", source),
    ]
    assert [(each.workflow_id, each.input, each.steps) for each in claim(conn, max_workflows=2)] == [
        (forks[0], {"n": 1}, []), (forks[1], 2, []),
    ]  # fmt: skip


def test_29_a_fork_of_a_running_workflow_leaves_it_alone(db: Database) -> None:
    conn = db.connect()
    held = start(conn)
    run_steps(conn, held, "one", "two")
    call(conn, "start_step", *held, "three")
    before = workflow(conn, held[0])
    at_two = value(conn, "select durable.fork(%s, 'two')", held[0])
    at_three = value(conn, "select durable.fork(%s, 'three')", held[0])
    assert workflow(conn, held[0]) == before
    run_steps(conn, held, "three")
    call(conn, "complete", *held, {})
    assert (names_of(conn, at_two), names_of(conn, at_three)) == (["one"], ["one", "two"])


def test_29_of_parallel_steps_those_that_ended_first_are_copied(db: Database) -> None:
    conn = db.connect()
    held = start(conn)
    run_steps(conn, held, "first")
    # Ended in one statement, and begun before.
    call(conn, "checkpoint_many", [held[0]] * 2, [held[1]] * 2, ["a", "b"], [{}, {}], None, None, [500, 500])
    call(conn, "checkpoint_many", [held[0]], [held[1]], ["late"], [{}], None, None, [1000])
    run_steps(conn, held, "last")
    copies = {
        step: names_of(conn, value(conn, "select durable.fork(%s, %s)", held[0], step))
        for step in ("a", "late", "last")
    }
    assert copies["a"] == ["first"]
    assert sorted(copies["late"]) == ["a", "b", "first"]
    assert sorted(copies["last"]) == ["a", "b", "first", "late"]


def test_29_outputs_replace_what_steps_returned_before_and_after_the_fork(db: Database) -> None:
    conn = db.connect()
    source = ended(conn, "one", "two", "three")
    fork = value(conn, "select durable.fork(%s, 'two', outputs => %s)", source, '{"one": 1, "three": null}')
    found = steps(conn, fork)
    assert {name: (step.status, step.output) for name, step in found.items()} == {
        "one": ("completed", 1), "three": ("completed", None),
    }  # fmt: skip
    assert names_of(conn, fork) == ["one", "three"]


def test_a_fork_keeps_the_errors_that_the_workflow_has_passed_and_can_replace_them(db: Database) -> None:
    conn = db.connect()
    held = start(conn)
    call(conn, "fail_step", *held, "caught", ERROR)
    run_steps(conn, held, "then")
    call(conn, "fail_step", *held, "fatal", ERROR)
    call(conn, "fail", *held, {**ERROR, "step": "fatal"})
    fork = value(conn, "select durable.fork(%s, 'fatal')", held[0])
    assert {name: step.status for name, step in steps(conn, fork).items()} == {"caught": "error", "then": "completed"}
    fork = value(conn, "select durable.fork(%s, 'then', outputs => %s)", held[0], '{"caught": 5, "fatal": 6}')
    assert {name: (step.status, step.output, step.error) for name, step in steps(conn, fork).items()} == {
        "caught": ("completed", 5, None), "fatal": ("completed", 6, None),
    }  # fmt: skip
    assert workflow(conn, held[0]).status == "failed"


def test_a_fork_that_cannot_be_is_refused_and_writes_nothing(db: Database) -> None:
    conn = db.connect()
    source = ended(conn, "one")
    before = snapshot(conn)
    with refused("WF001"):
        call(conn, "fork", NOBODY)
    with refused("WF005") as missing:
        call(conn, "fork", source, "seven")
    assert "has no step 'seven'" in str(missing.value)
    with refused("WF005"):
        call(conn, "fork", source, outputs={"seven": 1})
    for outputs in ("[]", "null", None):
        with refused("WF005"):
            rows(conn, "select durable.fork(%s, outputs => %s)", source, outputs)
    call(conn, "configure", "max_payload_bytes", "1000")
    for named in ({"input": {"x": "y" * 2000}}, {"outputs": {"one": "y" * 2000}}):
        with refused("WF006"):
            call(conn, "fork", source, **named)
    assert snapshot(conn) == before


def test_a_selection_is_forked_at_once_and_in_its_order(db: Database) -> None:
    conn = db.connect()
    sources = [ended(conn, "one", "two"), ended(conn, "one"), ended(conn, "one", "two")]
    forks = [row[0] for row in call(conn, "fork_many", [sources[2], NOBODY, sources[1], sources[0]], "two")]
    assert [fork is None for fork in forks] == [False, True, True, False]
    assert [workflow(conn, fork).forked_from for fork in forks if fork] == [sources[2], sources[0]]
    assert [names_of(conn, fork) for fork in forks if fork] == [["one"], ["one"]]
    assert rows(conn, "select * from durable.fork_many('{}')") == []
    assert [each.workflow_id for each in claim(conn, max_workflows=9)] == [fork for fork in forks if fork]


# Retry in bulk


def test_29_a_selection_is_retried_at_once_and_goes_on_from_its_checkpoints(db: Database) -> None:
    conn = db.connect()
    held = [start(conn) for _ in range(3)]
    for each in held[:2]:
        run_steps(conn, each, "one")
        call(conn, "fail_step", *each, "two", ERROR)
        call(conn, "fail", *each, {**ERROR, "step": "two"})
    call(conn, "complete", *held[2], {})
    selection = "array(select workflow_id from durable.workflows where error_message = 'no luck' and completed_at > now() - interval '1 hour')"
    assert value(conn, f"select durable.retry_many({selection} || %s || {selection})", [NOBODY, held[2][0]]) == 2
    again = claim(conn, max_workflows=9)
    assert {each.workflow_id for each in again} == {held[0][0], held[1][0]}
    assert all([step["step_name"] for step in each.steps] == ["one"] and each.attempt == 2 for each in again)
    assert value(conn, f"select durable.retry_many({selection})") == 0
    assert workflow(conn, held[2][0]).status == "completed"


def test_a_selection_is_bounded(db: Database) -> None:
    conn = db.connect()
    for call_of in ("retry_many(%s)", "fork_many(%s)"):
        for ids in ([NOBODY] * 10_001, None):
            with refused("WF005"):
                rows(conn, f"select durable.{call_of}", ids)
    assert value(conn, "select durable.retry_many(%s)", [NOBODY] * 10_000) == 0


def test_overlapping_selections_in_opposite_order_do_not_deadlock(db: Database) -> None:
    conn = db.connect()
    ids = [enqueue(conn) for _ in range(100)]
    for each in claim(conn, max_workflows=100):
        call(conn, "fail", each.workflow_id, each.lease, ERROR)
    one, two = db.connect(), db.connect()
    done = at_once(
        lambda: value(one, "select durable.retry_many(%s)", ids),
        lambda: value(two, "select durable.retry_many(%s)", ids[::-1]),
    )
    assert sum(done) == 100
    assert len(claim(conn, max_workflows=200)) == 100


# Continue as new


def test_a_run_continues_as_a_new_one_with_its_place_key_and_tags(db: Database) -> None:
    conn = db.connect()
    held = start(conn, input={"n": 1}, tags={"t": 1}, priority=3, key="k", timeout="1 hour", max_attempts=4)
    run_steps(conn, held, "one")
    following = value(conn, "select durable.continue_as_new(%s, %s, '{\"n\": 2}')", *held)
    old, new = workflow(conn, held[0]), workflow(conn, following)
    assert (old.status, old.output, old.continued_as, old.continued_from) == ("completed", None, following, None)
    assert (new.status, new.input, new.continued_from, new.continued_as) == ("pending", {"n": 2}, held[0], None)
    for column in ("name", "queue", "tags", "priority", "key", "timeout", "max_attempts"):
        assert getattr(old, column) == getattr(new, column), column
    assert enqueue(conn, key="k") == following, "the key goes with it"
    claimed = claim_one(conn)
    assert (claimed.workflow_id, claimed.steps, claimed.attempt) == (following, None, 1)


def test_the_result_of_a_run_that_was_continued_is_that_of_the_last(db: Database) -> None:
    conn = db.connect()
    first, lease = last, _ = start(conn)
    for n in range(3):
        value(conn, "select durable.continue_as_new(%s, %s, %s)", last, lease, str(n))
        assert call(conn, "result", first) == [("pending", None, None)]
        claimed = claim_one(conn)
        last, lease = claimed.workflow_id, claimed.lease
    call(conn, "complete", last, lease, {"done": True})
    assert call(conn, "result", first) == [("completed", {"done": True}, None)]
    assert value(conn, "select durable.status(%s)", first) == "completed"


def test_a_continuation_sent_again_starts_nothing_and_a_stale_one_is_refused(db: Database) -> None:
    conn = db.connect()
    held, other = start(conn), start(conn)
    following = value(conn, "select durable.continue_as_new(%s, %s)", *held)
    call(conn, "complete", *other, {})
    before = snapshot(conn)
    assert value(conn, "select durable.continue_as_new(%s, %s)", *held) == following
    for workflow_id, lease in (other, (held[0], held[1] + 1000)):
        with refused("WF002"):
            call(conn, "continue_as_new", workflow_id, lease)
    with refused("WF001"):
        call(conn, "continue_as_new", NOBODY, held[1])
    call(conn, "configure", "max_payload_bytes", "1000")
    last = claim_one(conn)
    with refused("WF006"):
        call(conn, "continue_as_new", following, last.lease, {"x": "y" * 2000})
    call(conn, "release_many", [following], [last.lease])
    assert [len(each) for each in snapshot(conn)] == [len(each) for each in before]


def test_messages_that_were_not_received_go_over_to_the_next_run(db: Database) -> None:
    conn = db.connect()
    held = start(conn)
    for n in range(3):
        call(conn, "send", held[0], "t", {"n": n}, f"k{n}")
    rows(conn, "select * from durable.wait(%s, %s, 'first', '[{\"message\": \"t\"}]')", *held)
    late = db.connect(autocommit=False)
    call(late, "send", held[0], "t", {"n": 3}, "k3")
    ((second,),) = call(conn, "continue_as_new", *held, {})
    late.commit()
    assert call(conn, "send", held[0], "t", {"n": 4}, "k4")[0].send
    # What was sent before, and is sent again.
    assert not call(conn, "send", held[0], "t", {"n": 0}, "k0")[0].send
    assert not call(conn, "send", held[0], "t", {"n": 1}, "k1")[0].send
    call(conn, "tick")
    lease = claim_one(conn).lease
    received = [
        rows(conn, 'select output from durable.wait(%s, %s, %s, \'[{"message": "t"}]\')', second, lease, f"r{n}")[
            0
        ].output
        for n in range(4)
    ]
    assert [output["value"] for output in received] == [{"n": n} for n in (1, 2, 3, 4)]


def test_a_message_that_comes_while_a_run_is_continued_wakes_the_next_one(db: Database) -> None:
    conn = db.connect()
    held = start(conn)
    late = db.connect(autocommit=False)
    call(late, "send", held[0], "t", {"n": 1})
    ((second,),) = call(conn, "continue_as_new", *held, {})
    lease = claim_one(conn).lease
    rows(conn, "select * from durable.wait(%s, %s, 'r', '[{\"message\": \"t\"}]')", second, lease)
    assert workflow(conn, second).status == "waiting"
    late.commit()
    for _ in range(2):
        call(conn, "tick")
    assert claim_one(conn).workflow_id == second


@pytest.mark.parametrize("runs", [1, 2])
def test_the_id_of_the_first_run_steers_the_last_one(db: Database, runs: int) -> None:
    conn = db.connect()
    first = last = start(conn)
    for _ in range(runs):
        call(conn, "continue_as_new", *last, {})
        claimed = claim_one(conn)
        last = claimed.workflow_id, claimed.lease
    assert value(conn, "select durable.pause(%s, 'a moment')", first[0])
    assert workflow(conn, last[0]).pause_reason == "a moment"
    assert value(conn, "select durable.resume(%s)", first[0])
    assert value(conn, "select durable.cancel(%s)", first[0])
    assert workflow(conn, last[0]).status == "cancelled"
    assert not value(conn, "select durable.cancel(%s)", first[0])
    with refused("WF013") as info:
        call(conn, "send", first[0], "t")
    assert str(last[0]) in str(info.value)


# Published state


def test_the_latest_value_of_each_key_is_read_while_it_runs_and_after_its_end(db: Database) -> None:
    conn = db.connect()
    held = start(conn)
    assert value(conn, "select durable.state(%s)", held[0]) == {}
    for key, number in (("progress", 1), ("progress", 2), ("rows", 3)):
        call(conn, "publish", *held, key, {"n": number})
    call(conn, "publish", *held, "nothing")
    expected = {"progress": {"n": 2}, "rows": {"n": 3}, "nothing": None}
    assert value(conn, "select durable.state(%s)", held[0]) == expected
    call(conn, "complete", *held, {})
    assert value(conn, "select durable.state(%s)", held[0]) == expected
    found = rows(conn, "select key, value from durable.workflow_state where workflow_id = %s order by key", held[0])
    assert found == [("nothing", None), ("progress", {"n": 2}), ("rows", {"n": 3})]
    with refused("WF001"):
        call(conn, "state", NOBODY)


def test_only_the_owner_publishes(db: Database) -> None:
    conn = db.connect()
    stale = start(conn)
    call(conn, "publish", *stale, "k", {"n": 1})
    call(conn, "release_many", [stale[0]], [stale[1]])
    with refused("WF002"):
        call(conn, "publish", *stale, "k", {"n": 2})
    held = (stale[0], claim_one(conn).lease)
    call(conn, "publish", *held, "k", {"n": 3})
    with refused("WF002"):
        call(conn, "publish", *stale, "k", {"n": 4})
    call(conn, "cancel", held[0])
    with refused("WF004"):
        call(conn, "publish", *held, "k", {"n": 5})
    with refused("WF001"):
        call(conn, "publish", NOBODY, 1, "k")
    assert value(conn, "select durable.state(%s)", held[0]) == {"k": {"n": 3}}


def test_what_a_stale_owner_publishes_late_does_not_replace_what_the_next_one_did(db: Database) -> None:
    conn, old, new = db.connect(), db.connect(), db.connect()
    stale = start(conn)
    call(conn, "publish", *stale, "k", {"n": 1})
    new.autocommit = False
    call(new, "release_many", [stale[0]], [stale[1]])
    held = (stale[0], claim_one(new).lease)
    call(new, "publish", *held, "k", {"n": 2})

    def commit() -> None:
        wait_until_blocked(conn, old)
        new.commit()

    def publish() -> None:
        with refused("WF002"):
            call(old, "publish", *stale, "k", {"n": 3})

    at_once(commit, publish)
    assert value(conn, "select durable.state(%s)", held[0]) == {"k": {"n": 2}}


def test_a_bad_key_or_value_is_refused(db: Database) -> None:
    conn = db.connect()
    held = start(conn)
    for key in (None, "", "x" * 201):
        with refused("WF005"):
            call(conn, "publish", *held, key, {})
    call(conn, "configure", "max_payload_bytes", "1000")
    with refused("WF006"):
        call(conn, "publish", *held, "k", {"x": "y" * 2000})
    assert value(conn, "select durable.state(%s)", held[0]) == {}


def test_published_state_goes_with_its_workflow(db: Database) -> None:
    conn = db.connect()
    gone, kept = start(conn), start(conn)
    for held in (gone, kept):
        call(conn, "publish", *held, "k", {})
    call(conn, "complete", *gone, {})
    age(conn, "1 day", [gone[0]])
    # By a rule, for a setting of less than a day would let the tick drop a day, and do nothing else, late in the evening.
    call(conn, "retain", "23 hours", workflow="w")
    assert value(conn, "select durable.tick()")["expired"] == 1
    assert rows(conn, "select workflow_id from durable.workflow_state") == [(kept[0],)]


def test_published_state_of_a_day_that_was_dropped_is_cleared_but_not_that_of_the_living(db: Database) -> None:
    conn = db.connect()
    old = [UUID(str(value(conn, "select durable._first_id(now() - interval '60 days')"))[:-1] + end) for end in "12"]
    for workflow_id in old:
        conn.execute("insert into durable.workflow_state values (%s, 1, now(), 'k', '1')", [workflow_id])
    held = start(conn)
    conn.execute("update durable.live_workflows set workflow_id = %s", [old[1]])
    assert value(conn, "select durable.tick()")["forgotten"] == 1
    assert rows(conn, "select workflow_id from durable.workflow_state") == [(old[1],)]
    assert held


# Warnings


def test_a_warning_shows_on_the_workflow_until_it_is_taken_back(db: Database) -> None:
    conn = db.connect()
    held = start(conn)
    call(conn, "warn", *held, "many steps")
    assert workflow(conn, held[0]).warning == "many steps"
    with refused("WF002"):
        call(conn, "warn", held[0], held[1] + 1000, "stale")
    call(conn, "fail", *held, ERROR)
    assert workflow(conn, held[0]).warning == "many steps"
    call(conn, "retry", held[0])
    call(conn, "warn", held[0], claim_one(conn).lease, None)
    assert workflow(conn, held[0]).warning is None
