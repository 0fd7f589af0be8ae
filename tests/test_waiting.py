"""Waiting: sleeps, messages, events and decisions, and that no order of a wait and what it waits for loses a wake-up."""

from __future__ import annotations

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
    steps,
    value,
    wait_until_blocked,
    workflow,
)  # fmt: skip

pytestmark = pytest.mark.pg(15, 18)

MESSAGE = '[{"message": "topic"}]'
EVENT = '[{"event": "news"}]'
APPROVAL = '[{"approval": "request"}]'


def wait(conn: Connection, held: Any, step: str = "s", conditions: str = "[]", **named: Any) -> Any:
    """(outcome, output) of a wait."""
    places = "".join(f", {name} => %s" for name in named)
    query = f"select * from durable.wait(%s, %s, %s, %s::jsonb{places})"
    ((outcome, output),) = rows(conn, query, held.workflow_id, held.lease, step, conditions, *named.values())
    return outcome, output


def start(conn: Connection, **named: Any) -> Any:
    enqueue(conn, **named)
    return claim_one(conn)


def parked(conn: Connection, conditions: str, **named: Any) -> Any:
    held = start(conn)
    assert wait(conn, held, "s", conditions, **named) == ("parked", None)
    return held


def status(conn: Connection, held: Any) -> str:
    return str(workflow(conn, held.workflow_id).status)


def message(value: Any, index: int = 0) -> tuple[str, Any]:
    return "ok", {"index": index, "value": value}


def send(conn: Connection, held: Any, payload: Any, key: str | None = None, topic: str = "topic") -> bool:
    query = "select durable.send(%s, %s, to_jsonb(%s::text), %s)"
    return bool(value(conn, query, held.workflow_id, topic, payload, key))


def emit(conn: Connection, payload: str = "p", event: str = "news") -> bool:
    return bool(value(conn, "select durable.emit(%s, to_jsonb(%s::text))", event, payload))


def wake_early(conn: Connection) -> None:
    conn.execute("update durable.live_workflows set wake_at = clock_timestamp() where wake_at is not null")


def expire(conn: Connection) -> None:
    """Lets the time of every wait have passed; the next tick wakes those that wait."""
    wake_early(conn)
    conn.execute("update durable.open_steps set wait_until = wait_until - interval '1 day'")


def pass_time(conn: Connection) -> None:
    expire(conn)
    call(conn, "tick")


def waits(conn: Connection) -> int:
    return int(value(conn, "select count(*) from durable.waits"))


# Sleeping


def test_a_sleeping_workflow_is_a_row_and_holds_nothing(db: Database) -> None:
    conn = db.connect()
    held = start(conn)
    assert wait(conn, held, timeout="3 days") == ("parked", None)
    asleep = workflow(conn, held.workflow_id)
    assert (asleep.status, asleep.worker) == ("sleeping", None)
    assert value(conn, "select lease is null and ready_seq is null from durable.live_workflows")
    assert waits(conn) == 0
    assert claim(conn) == []
    assert asleep.wake_at == steps(conn, held.workflow_id)["s"].wait_until


def test_a_sleep_ends_at_the_time_that_its_first_call_stored(db: Database) -> None:
    conn = db.connect()
    held = start(conn)
    wait(conn, held, timeout="1 hour")
    until = workflow(conn, held.workflow_id).wake_at
    # As after a spurious wake-up, and a crash of whoever claimed it then.
    wake_early(conn)
    call(conn, "tick")
    again = claim_one(conn, "dies")
    kill_worker(conn, "dies")
    call(conn, "tick")
    again = claim_one(conn, "another")
    assert wait(conn, again, timeout="9 hours") == ("parked", None)
    assert workflow(conn, held.workflow_id).wake_at == until
    pass_time(conn)
    woken = claim_one(conn)
    assert wait(conn, woken, timeout="9 hours") == ("ok", None)
    assert steps(conn, held.workflow_id)["s"].status == "completed"


def test_a_sleep_that_is_over_at_once_does_not_park(db: Database) -> None:
    conn = db.connect()
    held = start(conn)
    assert wait(conn, held, "a", timeout="0") == ("ok", None)
    assert wait(conn, held, "b", until="2020-01-01") == ("ok", None)
    call(conn, "complete", held.workflow_id, held.lease)


def test_a_workflow_that_sleeps_past_its_timeout_fails(db: Database) -> None:
    conn = db.connect()
    enqueue(conn, timeout="1 second")
    held = claim_one(conn)
    wait(conn, held, "s", EVENT, timeout="1 day")
    conn.execute("update durable.live_workflows set deadline = now() - interval '1 second'")
    call(conn, "tick")
    assert status(conn, held) == "failed"
    assert waits(conn) == 0


# Messages


def test_messages_sent_before_during_and_after_the_wait_are_received_once_and_in_order(db: Database) -> None:
    conn = db.connect()
    workflow_id = enqueue(conn)
    # It has not started yet.
    assert value(conn, "select durable.send(%s, 'topic', '\"first\"')", workflow_id)
    assert value(conn, "select durable.send(%s, 'other', '\"elsewhere\"')", workflow_id)
    held = claim_one(conn)
    assert wait(conn, held, "a", MESSAGE) == message("first")
    assert wait(conn, held, "b", MESSAGE) == ("parked", None)
    assert send(conn, held, "second")
    assert send(conn, held, "third")
    assert waits(conn) == 0
    held = claim_one(conn)
    assert wait(conn, held, "a", MESSAGE) == ("exists", {"index": 0, "value": "first"})
    assert wait(conn, held, "b", MESSAGE) == message("second")
    assert wait(conn, held, "c", MESSAGE) == message("third")
    assert wait(conn, held, "d", MESSAGE) == ("parked", None)
    assert status(conn, held) == "waiting"
    by = rows(conn, "select received_by from durable.messages order by seq")
    assert [row[0] for row in by] == ["a", None, "b", "c"]


def test_a_message_for_another_topic_does_not_wake(db: Database) -> None:
    conn = db.connect()
    held = parked(conn, MESSAGE)
    send(conn, held, "x", topic="other")
    assert status(conn, held) == "waiting"


def test_a_message_with_the_same_key_is_sent_once_also_after_it_was_received(db: Database) -> None:
    conn = db.connect()
    held = start(conn)
    assert send(conn, held, "one", "k")
    assert not send(conn, held, "two", "k")
    assert wait(conn, held, "a", MESSAGE) == message("one")
    assert not send(conn, held, "three", "k")
    assert not send(conn, held, "three", "k", topic="other")
    assert wait(conn, held, "b", MESSAGE) == ("parked", None)
    other = start(conn)
    assert send(conn, other, "one", "k")
    call(conn, "complete", other.workflow_id, other.lease)
    # Its sender did not hear that the first one had arrived.
    assert not send(conn, other, "one", "k")


def test_the_same_key_sent_twice_at_once_is_one_message(db: Database) -> None:
    conn = db.connect()
    held = start(conn)
    senders = [db.connect() for _ in range(4)]
    sent = at_once(*(lambda c=c: send(c, held, "x", "k") for c in senders))
    assert sorted(sent) == [False, False, False, True]


def test_to_a_workflow_that_has_ended_or_is_unknown_nothing_can_be_sent(db: Database) -> None:
    conn = db.connect()
    held = start(conn)
    call(conn, "complete", held.workflow_id, held.lease)
    with refused("WF013"):
        send(conn, held, "x")
    with refused("WF001"):
        call(conn, "send", NOBODY, "topic")
    assert value(conn, "select count(*) from durable.messages") == 0


def test_a_message_is_sent_with_the_transaction_of_its_sender(db: Database) -> None:
    conn, sender = db.connect(), db.connect(autocommit=False)
    held = parked(conn, MESSAGE)
    send(sender, held, "never")
    sender.rollback()
    assert status(conn, held) == "waiting"
    send(sender, held, "now")
    assert status(conn, held) == "waiting"
    sender.commit()
    assert wait(conn, claim_one(conn), "s", MESSAGE) == message("now")


def test_a_failed_workflow_keeps_its_mail_for_a_retry(db: Database) -> None:
    conn = db.connect()
    held = start(conn)
    send(conn, held, "kept")
    call(conn, "fail", held.workflow_id, held.lease, {"message": "no"})
    (aged,) = age(conn, "1 day", [held.workflow_id])
    call(conn, "tick")
    call(conn, "tick")
    call(conn, "retry", aged)
    assert wait(conn, claim_one(conn), "s", MESSAGE) == message("kept")


def test_the_mail_of_a_completed_workflow_goes_after_a_while(db: Database) -> None:
    conn = db.connect()
    call(conn, "tick")
    ended = [start(conn) for _ in range(3)]
    living = start(conn)
    for held in (*ended, living):
        for n in range(3):
            send(conn, held, str(n))
    for held in ended:
        call(conn, "complete", held.workflow_id, held.lease)
    for _ in range(2):
        conn.execute("update durable.wake_marks set sweep_at = now()")
        call(conn, "tick", 8)
    assert value(conn, "select count(*) from durable.messages") == 12
    age(conn, "1 day", [held.workflow_id for held in ended])
    conn.execute("update durable.wake_marks set sweep_at = now(), swept_id = null")
    for _ in range(7):
        call(conn, "tick", 8)
    assert value(conn, "select array_agg(distinct workflow_id) from durable.messages") == [living.workflow_id]
    assert value(conn, "select sweep_at > now() from durable.wake_marks")


# Events


def test_an_event_wakes_those_that_wait_and_those_that_come_later(db: Database) -> None:
    conn = db.connect()
    before = [parked(conn, EVENT) for _ in range(3)]
    unconcerned = parked(conn, '[{"event": "other"}]')
    assert emit(conn, "first")
    assert not emit(conn, "second")
    woken = claim(conn, "w", 10)
    assert {row.workflow_id for row in woken} == {held.workflow_id for held in before}
    for held in woken:
        assert wait(conn, held, "s", EVENT) == message("first")
    assert wait(conn, start(conn), "s", EVENT) == message("first")
    assert status(conn, unconcerned) == "waiting"
    assert waits(conn) == 1


def test_the_same_event_emitted_twice_at_once_has_one_payload(db: Database) -> None:
    conn = db.connect()
    emitters = [db.connect() for _ in range(4)]
    first = at_once(*(lambda c=c, n=n: emit(c, str(n)) for n, c in enumerate(emitters)))
    assert sorted(first) == [False, False, False, True]
    assert wait(conn, start(conn), "s", EVENT) == message(str(first.index(True)))


def test_events_age_out_by_a_setting(db: Database) -> None:
    conn = db.connect()
    emit(conn, event="old")
    conn.execute("update durable.events set emitted_at = now() - interval '29 days'")
    call(conn, "tick")
    assert not emit(conn, event="old")
    call(conn, "configure", "event_retention", "28 days")
    emit(conn, event="new")
    call(conn, "tick")
    assert rows(conn, "select event from durable.events") == [("new",)]


# Timeouts, any, all


@pytest.mark.parametrize("conditions", [MESSAGE, EVENT])
def test_a_wait_times_out_by_the_time_of_its_first_call(db: Database, conditions: str) -> None:
    conn = db.connect()
    held = parked(conn, conditions, timeout="1 hour")
    until = workflow(conn, held.workflow_id).wake_at
    wake_early(conn)
    call(conn, "tick")
    assert wait(conn, claim_one(conn), "s", conditions, timeout="5 hours") == ("parked", None)
    assert workflow(conn, held.workflow_id).wake_at == until
    pass_time(conn)
    assert waits(conn) == 0
    held = claim_one(conn)
    assert wait(conn, held, "s", conditions, timeout="5 hours") == ("timeout", {"timed_out": True})
    assert wait(conn, held, "s", conditions, timeout="5 hours") == ("exists", {"timed_out": True})
    # What comes afterwards is for the next wait.
    send(conn, held, "late")
    emit(conn, "late")
    assert wait(conn, held, "s", conditions) == ("exists", {"timed_out": True})
    assert wait(conn, held, "s#2", conditions) == message("late")


def test_what_has_come_when_the_workflow_looks_counts_before_its_timeout(db: Database) -> None:
    conn = db.connect()
    held = parked(conn, EVENT, timeout="1 hour")
    pass_time(conn)
    emit(conn, "just in time")
    assert wait(conn, claim_one(conn), "s", EVENT, timeout="1 hour") == message("just in time")
    assert status(conn, held) == "running"


def test_any_returns_the_first_in_the_list_that_has_come_and_takes_nothing_else(db: Database) -> None:
    conn = db.connect()
    held = start(conn)
    send(conn, held, "mail")
    emit(conn, "now")
    both = '[{"event": "other"}, {"event": "news"}, {"message": "topic"}]'
    assert wait(conn, held, "a", both) == message("now", 1)
    assert wait(conn, held, "b", MESSAGE) == message("mail")


def test_all_waits_for_each_and_takes_all_of_them_together(db: Database) -> None:
    conn = db.connect()
    conditions = '[{"event": "news"}, {"message": "topic"}, {"timer": 3600}]'
    held = start(conn)
    send(conn, held, "mail")
    assert wait(conn, held, "s", conditions, mode="all") == ("parked", None)
    emit(conn, "now")
    held = claim_one(conn)
    assert wait(conn, held, "s", conditions, mode="all") == ("parked", None)
    assert value(conn, "select received_by from durable.messages") is None
    assert status(conn, held) == "sleeping"
    wake_early(conn)
    conn.execute(
        """update durable.open_steps
           set waits_for = jsonb_set(waits_for, '{2,timer_at}', to_jsonb(extract(epoch from now()) - 1))"""
    )
    call(conn, "tick")
    held = claim_one(conn)
    assert wait(conn, held, "s", conditions, mode="all") == ("ok", {"values": ["now", "mail", None]})
    assert value(conn, "select received_by from durable.messages") == "s"


def test_a_timer_keeps_the_time_of_the_first_call(db: Database) -> None:
    conn = db.connect()
    held = parked(conn, '[{"event": "news"}, {"timer": 3600}]')
    at = workflow(conn, held.workflow_id).wake_at
    wake_early(conn)
    call(conn, "tick")
    assert wait(conn, claim_one(conn), "s", '[{"event": "news"}, {"timer": 7200}]') == ("parked", None)
    assert workflow(conn, held.workflow_id).wake_at == at


def test_waits_that_are_under_way_together_park_together_and_the_first_wakes(db: Database) -> None:
    conn = db.connect()
    held = start(conn)

    def ask(parks: bool = True) -> list[str]:
        found = rows(
            conn,
            """select w.outcome from durable.wait_many(array_fill(%s::uuid, '{3}'), array_fill(%s::bigint, '{3}'),
                 '{a,b,c}', array[%s, %s, '[]']::jsonb[], array[null, '1 hour', '2 hours']::interval[],
                 parks => array_fill(%s, '{3}')) w order by w.item""",
            held.workflow_id, held.lease, EVENT, MESSAGE, parks,
        )  # fmt: skip
        return [row[0] for row in found]

    assert ask(parks=False) == ["waiting"] * 3
    assert status(conn, held) == "running"
    assert ask() == ["parked"] * 3
    assert ask() == ["parked"] * 3
    assert workflow(conn, held.workflow_id).wake_at == steps(conn, held.workflow_id)["b"].wait_until
    send(conn, held, "x")
    held = claim_one(conn)
    assert ask() == ["waiting", "ok", "waiting"]
    assert ask() == ["parked", "exists", "parked"] or status(conn, held) == "running"


def test_two_waits_for_one_topic_receive_a_message_each(db: Database) -> None:
    conn = db.connect()
    held = start(conn)
    send(conn, held, "one")
    send(conn, held, "two")

    def ask() -> list[Any]:
        return rows(
            conn,
            """select w.outcome, w.output ->> 'value' from durable.wait_many(array_fill(%s::uuid, '{2}'),
                 array_fill(%s::bigint, '{2}'), '{a,b}', array[%s, %s]::jsonb[]) w order by w.item""",
            held.workflow_id, held.lease, MESSAGE, MESSAGE,
        )  # fmt: skip

    assert ask() == [("ok", "one"), ("waiting", None)]
    assert ask() == [("exists", "one"), ("ok", "two")]


# Leases


def test_a_stale_lease_waits_for_nothing_and_receives_nothing(db: Database) -> None:
    conn = db.connect()
    stale = start(conn)
    send(conn, stale, "mail")
    kill_worker(conn, "worker")
    call(conn, "tick")
    owner = claim_one(conn, "another")
    with refused("WF002"):
        wait(conn, stale, "s", MESSAGE)
    with refused("WF002"):
        wait(conn, stale, "s", timeout="1 day")
    assert wait(conn, owner, "s", MESSAGE) == message("mail")


def test_a_cancelled_workflow_waits_for_nothing(db: Database) -> None:
    conn = db.connect()
    held = start(conn)
    call(conn, "cancel", held.workflow_id)
    with refused("WF004"):
        wait(conn, held, "s", MESSAGE)
    with refused("WF001"):
        call(conn, "wait", NOBODY, 1, "s", timeout="1 s")


def test_a_waiting_workflow_can_be_cancelled(db: Database) -> None:
    conn = db.connect()
    held = parked(conn, EVENT)
    assert call(conn, "cancel", held.workflow_id) == [(True,)]
    assert waits(conn) == 0
    emit(conn)
    assert status(conn, held) == "cancelled"


def test_a_call_whose_answer_was_lost_reports_the_same_again(db: Database) -> None:
    conn = db.connect()
    held = parked(conn, MESSAGE)
    assert wait(conn, held, "s", MESSAGE) == ("parked", None)
    # Not one that it must stop: the answer will say so.
    assert call(conn, "heartbeat", "worker", [held.workflow_id], [held.lease]) == []
    send(conn, held, "mail")
    assert wait(conn, held, "s", MESSAGE) == ("parked", None)
    owner = claim_one(conn, "another")
    assert wait(conn, held, "s", MESSAGE) == ("parked", None)
    assert wait(conn, owner, "s", MESSAGE) == message("mail")
    assert wait(conn, owner, "s", MESSAGE) == ("exists", {"index": 0, "value": "mail"})
    assert value(conn, "select count(*) from durable.messages where received_by is not null") == 1


def test_a_wait_that_was_shown_as_a_long_step_keeps_its_end(db: Database) -> None:
    conn = db.connect()
    held = start(conn)
    conn.execute(
        """select durable.heartbeat('worker', array[%(id)s]::uuid[], array[%(lease)s]::bigint[],
             jsonb_build_array(jsonb_build_object(
               'workflow_id', %(id)s::uuid, 'lease', %(lease)s::bigint, 'step_name', 's', 'elapsed_ms', 5)))""",
        {"id": held.workflow_id, "lease": held.lease},
    )
    assert wait(conn, held, timeout="1 hour") == ("parked", None)
    assert steps(conn, held.workflow_id)["s"].wait_until is not None


def test_one_bad_item_does_not_stop_the_others(db: Database) -> None:
    conn = db.connect()
    good, bad, gone = start(conn), start(conn), start(conn)
    call(conn, "complete", gone.workflow_id, gone.lease)
    found = rows(
        conn,
        "select w.outcome from durable.wait_many(%s, %s, '{s,s,s}', array[%s, '[{\"what\": 1}]', '[]']::jsonb[],"
        " array[null, null, '1 hour']::interval[]) w order by w.item",
        [good.workflow_id, bad.workflow_id, gone.workflow_id], [good.lease, bad.lease, gone.lease], EVENT,
    )  # fmt: skip
    assert [row[0] for row in found] == ["parked", "WF005", "WF002"]
    assert [status(conn, held) for held in (good, bad)] == ["waiting", "running"]


@pytest.mark.parametrize(
    ("conditions", "named"),
    [
        ("[]", {}),
        ("{}", {"timeout": "1 s"}),
        ('["news"]', {}),
        ('[{"event": ""}]', {}),
        ('[{"event": 1}]', {}),
        ('[{"message": null}]', {}),
        ('[{"approval": 1}]', {}),
        ('[{"approval": "never requested"}]', {}),
        ('[{"event": "a", "message": "b"}]', {}),
        ('[{"event": "a"}, {"event": "a"}]', {}),
        ('[{"timer": "1 s"}]', {}),
        ('[{"timer": -1}]', {}),
        ('[{"timer_at": 1e300}]', {}),
        (EVENT, {"mode": "some"}),
        (EVENT, {"timeout": "-1 s"}),
        (EVENT, {"timeout": "101 years"}),
        (EVENT, {"until": "infinity"}),
    ],
)
def test_a_wait_that_cannot_be_is_refused(db: Database, conditions: str, named: dict[str, Any]) -> None:
    conn = db.connect()
    held = start(conn)
    with refused("WF005"):
        wait(conn, held, "s", conditions, **named)
    with refused("WF005"):
        wait(conn, held, "", EVENT)
    assert status(conn, held) == "running"


def test_what_is_too_large_is_refused_by_whoever_sends_it(db: Database) -> None:
    conn = db.connect()
    call(conn, "configure", "max_payload_bytes", "1000")
    held = start(conn)
    largest = "x" * 880
    with refused("WF006"):
        send(conn, held, "x" * 1000)
    with refused("WF006"):
        emit(conn, "x" * 1000)
    assert send(conn, held, largest)
    assert wait(conn, held, "s", MESSAGE) == message(largest)


# Each order of a wait and what it waits for


def fact(conn: Connection, held: Any, conditions: str) -> None:
    if conditions == MESSAGE:
        send(conn, held, "fact")
    elif conditions == EVENT:
        emit(conn, "fact")
    else:
        asked = "select approval_id from durable.approvals where workflow_id = %s"
        assert call(conn, "decide", value(conn, asked, held.workflow_id), "fact") == [(True,)]


def ready(conn: Connection, conditions: str) -> Any:
    """A workflow that has all that it needs to wait."""
    held = start(conn)
    if conditions == APPROVAL:
        call(conn, "request_approval", held.workflow_id, held.lease, "request", "may I?")
    return held


def come(waited: tuple[str, Any], conditions: str) -> Any:
    """What a wait that is over ended with."""
    outcome, output = waited
    assert (outcome, output["index"]) == ("ok", 0)
    return output["value"]["decision"] if conditions == APPROVAL else output["value"]


def seen_in_the_end(conn: Connection, held: Any, conditions: str) -> None:
    assert status(conn, held) == "pending"
    assert come(wait(conn, claim_one(conn), "s", conditions), conditions) == "fact"


EACH = pytest.mark.parametrize("conditions", [MESSAGE, EVENT, APPROVAL], ids=["message", "event", "approval"])


@EACH
def test_a_fact_that_is_committed_after_the_wait_wakes_it_at_its_commit(db: Database, conditions: str) -> None:
    conn, sender = db.connect(), db.connect(autocommit=False)
    held = ready(conn, conditions)
    fact(sender, held, conditions)
    assert wait(conn, held, "s", conditions) == ("parked", None)
    sender.commit()
    seen_in_the_end(conn, held, conditions)


@EACH
@pytest.mark.parametrize("first", ["the wait", "the fact"])
def test_a_wait_and_a_fact_that_do_not_see_each_other_are_brought_together_by_the_tick(
    db: Database, conditions: str, first: str
) -> None:
    conn, waiter, sender = db.connect(), db.connect(autocommit=False), db.connect(autocommit=False)
    held = ready(conn, conditions)
    call(conn, "tick")
    fact(sender, held, conditions)
    assert wait(waiter, held, "s", conditions) == ("parked", None)
    # What a commit does first, and then it takes its time.
    sender.execute("set constraints all immediate")
    call(conn, "tick")
    for one in (waiter, sender) if first == "the wait" else (sender, waiter):
        one.commit()
        # As often as it likes: it must look again when it sees the other one, too.
        if one is (waiter if first == "the wait" else sender):
            call(conn, "tick")
            call(conn, "tick")
    assert status(conn, held) == "waiting"
    call(conn, "tick")
    seen_in_the_end(conn, held, conditions)


@EACH
def test_the_worker_that_parked_looks_again_and_need_not_wait_for_a_tick(db: Database, conditions: str) -> None:
    conn, waiter = db.connect(), db.connect(autocommit=False)
    held = ready(conn, conditions)
    assert wait(waiter, held, "s", conditions) == ("parked", None)
    fact(conn, held, conditions)
    waiter.commit()
    assert status(conn, held) == "waiting"
    assert call(conn, "recheck_waits", [held.workflow_id, NOBODY]) == [(1,)]
    assert call(conn, "recheck_waits", [held.workflow_id]) == [(0,)]
    seen_in_the_end(conn, held, conditions)


@EACH
@pytest.mark.parametrize("level", ["repeatable read", "serializable"])
def test_a_sender_with_an_old_snapshot_wakes_by_the_tick(db: Database, conditions: str, level: str) -> None:
    conn, sender = db.connect(), db.connect(autocommit=False)
    held = ready(conn, conditions)
    sender.execute(f"set transaction isolation level {level}".encode())
    sender.execute("select 1")
    assert wait(conn, held, "s", conditions) == ("parked", None)
    call(conn, "tick")
    fact(sender, held, conditions)
    sender.commit()
    call(conn, "tick")
    seen_in_the_end(conn, held, conditions)


@EACH
def test_a_fact_of_a_prepared_transaction_wakes_by_the_tick(preparing_db: Database, conditions: str) -> None:
    db = preparing_db
    conn, sender, waiter = db.connect(), db.connect(autocommit=False), db.connect(autocommit=False)
    held = ready(conn, conditions)
    assert wait(waiter, held, "s", conditions) == ("parked", None)
    fact(sender, held, conditions)
    sender.execute(f"prepare transaction 'fact {db.name}'".encode())
    waiter.commit()
    for _ in range(3):
        call(conn, "tick")
    assert status(conn, held) == "waiting"
    conn.execute(f"commit prepared 'fact {db.name}'".encode())
    call(conn, "tick")
    seen_in_the_end(conn, held, conditions)


@EACH
def test_a_fact_of_a_subtransaction_is_seen_by_the_tick(db: Database, conditions: str) -> None:
    conn, sender, waiter = db.connect(), db.connect(autocommit=False), db.connect(autocommit=False)
    held = ready(conn, conditions)
    sender.execute("savepoint one")
    sender.execute("create temp table mine (n int)")
    sender.execute("savepoint two")
    fact(sender, held, conditions)
    sender.execute("release savepoint two")
    wait(waiter, held, "s", conditions)
    sender.execute("set constraints all immediate")
    call(conn, "tick")
    sender.commit()
    call(conn, "tick")
    waiter.commit()
    call(conn, "tick")
    seen_in_the_end(conn, held, conditions)


def test_an_unrelated_transaction_that_stays_open_delays_no_wake_up(db: Database) -> None:
    conn, waiter, unrelated = db.connect(), db.connect(autocommit=False), db.connect(autocommit=False)
    unrelated.execute("select pg_current_xact_id()")
    held = start(conn)
    wait(waiter, held, "s", EVENT)
    emit(conn, "fact")
    waiter.commit()
    call(conn, "tick")
    seen_in_the_end(conn, held, EVENT)
    unrelated.rollback()


def test_a_sender_holds_no_row_before_its_commit(db: Database) -> None:
    conn, sender = db.connect(), db.connect(autocommit=False)
    running, both = start(conn), parked(conn, '[{"message": "topic"}, {"event": "news"}]')
    send(sender, both, "uncommitted")
    send(sender, running, "uncommitted")
    sender.execute("select durable.emit('another')")
    conn.execute("set statement_timeout = '5s'")
    # Neither the end of the one, nor another wake-up of the other waits for it.
    call(conn, "checkpoint", running.workflow_id, running.lease, "s")
    call(conn, "complete", running.workflow_id, running.lease)
    emit(conn, "fact")
    assert wait(conn, claim_one(conn), "s", '[{"message": "topic"}, {"event": "news"}]') == message("fact", 1)
    sender.commit()


def test_a_workflow_whose_row_is_held_is_woken_when_it_is_free(db: Database) -> None:
    conn, other = db.connect(), db.connect(autocommit=False)
    held = parked(conn, EVENT)
    call(other, "cancel", held.workflow_id)
    conn.execute("set statement_timeout = '5s'")
    emit(conn, "fact")
    for _ in range(3):
        call(conn, "tick")
    other.rollback()
    assert status(conn, held) == "waiting"
    call(conn, "tick")
    seen_in_the_end(conn, held, EVENT)
    assert value(conn, "select count(*) from durable.late_wakes") == 0


@EACH
@pytest.mark.parametrize("how", ["for update", "for share"])
def test_a_workflow_of_whose_waits_somebody_has_locked_one_is_woken_when_it_is_free(
    db: Database, conditions: str, how: str
) -> None:
    conn, others = db.connect(), [db.connect(autocommit=False) for _ in range(2)]
    held, neighbor = ready(conn, conditions), ready(conn, conditions)
    late = start(conn)
    for each in (held, neighbor):
        assert wait(conn, each, "s", conditions) == ("parked", None)
    assert wait(conn, late, "s", '[{"message": "never"}]', timeout="1 hour") == ("parked", None)
    for other in others[: 1 if how == "for update" else 2]:
        other.execute(f"select from durable.waits where workflow_id <> %s {how}".encode(), [neighbor.workflow_id])
    conn.execute("set statement_timeout = '5s'")
    fact(conn, held, conditions)
    if conditions != EVENT:
        fact(conn, neighbor, conditions)
    seen_in_the_end(conn, neighbor, conditions)
    expire(conn)
    for _ in range(3):
        assert "passed_over" not in call(conn, "tick")[0].tick
    assert [status(conn, each) for each in (held, late)] == ["waiting", "waiting"]
    for other in others:
        other.rollback()
    call(conn, "tick")
    assert [status(conn, each) for each in (held, late)] == ["pending", "pending"]
    call(conn, "tick")
    assert value(conn, "select count(*) from durable.late_wakes") == 0


def test_a_wait_does_not_wait_for_a_transaction_that_holds_its_workflow(db: Database) -> None:
    conn, other = db.connect(), db.connect(autocommit=False)
    held = start(conn)
    call(other, "cancel", held.workflow_id)
    conn.execute("set statement_timeout = '5s'")
    assert wait(conn, held, "s", EVENT) == ("waiting", None)
    other.rollback()
    assert wait(conn, held, "s", EVENT) == ("parked", None)


def test_more_waiters_than_a_tick_may_wake_are_woken_by_several(db: Database) -> None:
    conn, emitter = db.connect(), db.connect(autocommit=False)
    for _ in range(12):
        parked(conn, EVENT)
    call(conn, "tick")
    emitter.execute("set transaction isolation level repeatable read")
    emit(emitter, "fact")
    emitter.commit()
    reports = [value(conn, "select durable.tick(5)") for _ in range(3)]
    assert [report["signalled"] for report in reports] == [5, 5, 2]
    # What is left is due at once, or nearly so.
    assert [report["next_in_ms"] is None for report in reports] == [False, False, True]
    assert len(claim(conn, "w", 20)) == 12


def test_after_a_crash_the_tick_looks_at_everything_once(db: Database) -> None:
    conn, waiter = db.connect(), db.connect(autocommit=False)
    held = start(conn)
    wait(waiter, held, "s", EVENT)
    emit(conn, "fact")
    waiter.commit()
    # The marks are unlogged.
    conn.execute("truncate durable.wake_marks, durable.late_wakes")
    call(conn, "tick")
    seen_in_the_end(conn, held, EVENT)


def test_a_wait_that_is_satisfied_in_part_is_not_woken_over_and_over(db: Database) -> None:
    conn = db.connect()
    emit(conn)
    held = start(conn)
    assert wait(conn, held, "s", '[{"event": "news"}, {"event": "other"}]', mode="all") == ("parked", None)
    for _ in range(3):
        assert value(conn, "select durable.tick()")["signalled"] == 0
    assert call(conn, "recheck_waits", [held.workflow_id]) == [(0,)]
    assert status(conn, held) == "waiting"


def test_workflows_that_never_wait_do_not_touch_what_waiting_needs(db: Database) -> None:
    conn = db.connect()

    def touched() -> Any:
        conn.execute("select pg_stat_force_next_flush()")
        conn.execute("select pg_stat_clear_snapshot()")
        return rows(
            conn,
            """select relname, seq_scan, idx_scan, n_tup_ins, n_tup_del from pg_stat_user_tables
               where schemaname = 'durable' and relname in ('waits', 'messages', 'events', 'approval_requests') order by 1""",
        )

    before = touched()
    ids: list[UUID] = [enqueue(conn) for _ in range(5)]
    leases = {row.workflow_id: row.lease for row in claim(conn, "w", 5)}
    call(conn, "checkpoint_many", ids, [leases[i] for i in ids], ["s"] * 5, [{}] * 5)
    call(conn, "fail", ids[0], leases[ids[0]], {"message": "no"})
    call(conn, "complete_many", ids[1:], [leases[i] for i in ids[1:]], [{}] * 4)
    assert touched() == before


# Each order of a timeout and what it waits for


def kept_waiting(conn: Connection, conditions: str, **named: Any) -> Any:
    held = ready(conn, conditions)
    assert wait(conn, held, "s", conditions, **named) == ("parked", None)
    return held


@EACH
@pytest.mark.parametrize("commits", [True, False], ids=["commits", "rolls back"])
def test_a_fact_that_wakes_before_the_timeout_does_stands_once_it_is_committed(
    db: Database, conditions: str, commits: bool
) -> None:
    conn, sender = db.connect(), db.connect(autocommit=False)
    held = kept_waiting(conn, conditions, timeout="1 hour")
    fact(sender, held, conditions)
    expire(conn)
    # What a commit does first; it then holds the row, and the timeout passes it over.
    sender.execute("set constraints all immediate")
    assert value(conn, "select durable.tick()")["woken"] == 0
    if commits:
        sender.commit()
        seen_in_the_end(conn, held, conditions)
    else:
        sender.rollback()
        assert value(conn, "select durable.tick()")["woken"] == 1
        assert wait(conn, claim_one(conn), "s", conditions) == ("timeout", {"timed_out": True})
    assert waits(conn) == 0


@EACH
@pytest.mark.parametrize("commits", [True, False], ids=["commits", "rolls back"])
def test_a_fact_that_comes_while_the_timeout_wakes_is_seen_by_who_was_woken(
    db: Database, conditions: str, commits: bool
) -> None:
    conn, ticker = db.connect(), db.connect(autocommit=False)
    held = kept_waiting(conn, conditions, timeout="1 hour")
    expire(conn)
    assert value(ticker, "select durable.tick()")["woken"] == 1
    conn.execute("set statement_timeout = '5s'")
    fact(conn, held, conditions)
    if commits:
        ticker.commit()
    else:
        ticker.rollback()
        assert status(conn, held) == "waiting"
        call(conn, "tick")
    # It has come by the time at which the workflow looks, and that is what counts.
    seen_in_the_end(conn, held, conditions)
    assert waits(conn) == 0


@EACH
@pytest.mark.parametrize("first", ["the timeout", "the fact"])
def test_a_timeout_that_was_stored_before_the_fact_was_committed_stands(
    db: Database, conditions: str, first: str
) -> None:
    conn, worker, sender = db.connect(), db.connect(autocommit=False), db.connect(autocommit=False)
    held = kept_waiting(conn, conditions, timeout="1 hour")
    expire(conn)
    call(conn, "tick")
    held = claim_one(conn)
    fact(sender, held, conditions)
    assert wait(worker, held, "s", conditions) == ("timeout", {"timed_out": True})
    for one in (worker, sender) if first == "the timeout" else (sender, worker):
        one.commit()
    assert wait(conn, held, "s", conditions) == ("exists", {"timed_out": True})
    # What came is there for the next wait.
    assert come(wait(conn, held, "s#2", conditions), conditions) == "fact"


# Each order of a cancellation and what happens to the workflow meanwhile


@EACH
@pytest.mark.parametrize("commits", [True, False], ids=["commits", "rolls back"])
def test_a_fact_does_not_wait_for_a_cancellation_of_its_waiter_nor_bring_it_back(
    db: Database, conditions: str, commits: bool
) -> None:
    conn, other = db.connect(), db.connect(autocommit=False)
    held = kept_waiting(conn, conditions)
    call(other, "cancel", held.workflow_id)
    conn.execute("set statement_timeout = '5s'")
    fact(conn, held, conditions)
    if commits:
        other.commit()
        call(conn, "tick")
        assert status(conn, held) == "cancelled"
    else:
        other.rollback()
        call(conn, "tick")
        seen_in_the_end(conn, held, conditions)
    assert waits(conn) == value(conn, "select count(*) from durable.late_wakes") == 0


@EACH
@pytest.mark.parametrize("commits", [True, False], ids=["commits", "rolls back"])
def test_a_cancellation_of_a_workflow_that_is_being_woken_waits_and_ends_it(
    db: Database, conditions: str, commits: bool
) -> None:
    conn, sender, other = db.connect(), db.connect(autocommit=False), db.connect()
    held = kept_waiting(conn, conditions)
    fact(sender, held, conditions)
    sender.execute("set constraints all immediate")

    def commit_when_awaited() -> None:
        wait_until_blocked(conn, other)
        if commits:
            sender.commit()
        else:
            sender.rollback()

    assert at_once(commit_when_awaited, lambda: call(other, "cancel", held.workflow_id))[1] == [(True,)]
    assert status(conn, held) == "cancelled"
    call(conn, "tick")
    assert claim(conn) == []
    assert waits(conn) == 0


def test_a_cancellation_waits_for_a_workflow_that_parks_and_leaves_no_wait(db: Database) -> None:
    conn, waiter, other = db.connect(), db.connect(autocommit=False), db.connect()
    held = start(conn)
    assert wait(waiter, held, "s", EVENT, timeout="1 hour") == ("parked", None)

    def commit_when_awaited() -> None:
        wait_until_blocked(conn, other)
        waiter.commit()

    assert at_once(commit_when_awaited, lambda: call(other, "cancel", held.workflow_id))[1] == [(True,)]
    assert status(conn, held) == "cancelled"
    assert waits(conn) == value(conn, "select count(*) from durable.open_steps") == 0


def test_mail_that_cannot_be_forwarded_yet_does_not_keep_others_from_waking(db: Database) -> None:
    conn, early, late = db.connect(), db.connect(autocommit=False), db.connect(autocommit=False)
    first = enqueue(conn)
    held = claim_one(conn)
    call(early, "send", first, "mail", "1", "k")
    call(conn, "continue_as_new", first, held.lease)
    call(late, "send", first, "mail", "2", "k")
    early.commit()
    other = ready(conn, MESSAGE)
    sender = db.connect(autocommit=False)
    sender.execute("set transaction isolation level repeatable read")
    sender.execute("select 1")
    assert wait(conn, other, "s", MESSAGE) == ("parked", None)
    fact(sender, other, MESSAGE)
    sender.commit()
    assert "passed_over" not in value(conn, "select durable.tick()")
    seen_in_the_end(conn, other, MESSAGE)
