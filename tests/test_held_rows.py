"""Rows of some workflows and schedules that somebody has locked by hand, for as long as the transaction lasts: the others go on.

There are more of them than a tick does at a time, so that they must not take the places of the others either.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any
from uuid import UUID

import pytest

from clusters import Database
from engine import Connection, advance, age, call, claim, enqueue, rows, value

pytestmark = pytest.mark.pg(15, 18)
FEW = 5
MANY = 2 * FEW + 1


@pytest.fixture
def conn(db: Database) -> Connection:
    conn = db.connect()
    # As the connections of a worker.
    conn.execute("set lock_timeout = '200ms'")
    return conn


@pytest.fixture
def holder(db: Database) -> Connection:
    return db.connect(autocommit=False)


def status(conn: Connection, workflow_id: UUID) -> str:
    return str(value(conn, "select durable.status(%s)", workflow_id))


def started(conn: Connection, count: int = 1, **named: Any) -> list[Any]:
    for _ in range(count):
        enqueue(conn, **named)
    return claim(conn, "worker", count, [named.get("queue", "default")])


def park(conn: Connection, held: list[Any], conditions: str, timeout: str | None = None) -> list[UUID]:
    """Lets workflows that are held wait for a condition."""
    ids, count = [each.workflow_id for each in held], len(held)
    outcomes = call(
        conn, "wait_many", ids, [each.lease for each in held], ["s"] * count, [conditions] * count,
        timeouts=[timeout] * count,
    )  # fmt: skip
    assert [outcome[1] for outcome in outcomes] == ["parked"] * count
    return ids


def parked(
    conn: Connection, conditions: str, count: int = 1, *, timeout_of_wait: str | None = None, **named: Any
) -> list[UUID]:
    """New workflows that wait for a condition."""
    return park(conn, started(conn, count, **named), conditions, timeout_of_wait)


def ticks(conn: Connection, times: int = 1, most: int = FEW) -> Any:
    for _ in range(times):
        report = call(conn, "tick", most)[0].tick
        assert "passed_over" not in report
    return report


def until(conn: Connection, reached: Callable[[], object], most: int = FEW) -> None:
    """Ticks until it is so: of many that are held, some are tried each time."""
    for _ in range(200):
        ticks(conn, most=most)
        if reached():
            return
    raise AssertionError("this never came true")


def let_pass(conn: Connection, columns: str = "wake_at") -> None:
    conn.execute(
        f"update durable.live_workflows set {columns} = clock_timestamp() where {columns} is not null".encode()
    )


MESSAGE = '[{"message": "topic"}]'


@pytest.mark.parametrize("table", ["messages", "open_steps", "waits"])
def test_a_wait_of_which_somebody_holds_something_is_waiting_and_the_others_of_the_call_are_answered(
    conn: Connection, holder: Connection, table: str
) -> None:
    one, other = started(conn, 2)
    for each in (one, other):
        assert call(conn, "wait", each.workflow_id, each.lease, "s", MESSAGE)[0].outcome == "parked"
        call(conn, "send", each.workflow_id, "topic", "1")
    one, other = claim(conn, "worker", 2)
    if table == "waits":
        # There is none left of what was waited for; this is one that somebody has put there.
        conn.execute("insert into durable.waits values (%s, 'event', 'another')", [one.workflow_id])
    holder.execute(f"select from durable.{table} where workflow_id = %s for update".encode(), [one.workflow_id])

    def ask() -> list[str]:
        both = (one, other)
        found = call(
            conn,
            "wait_many",
            [each.workflow_id for each in both],
            [each.lease for each in both],
            ["s", "s"],
            [MESSAGE] * 2,
        )
        return [row.outcome for row in found]

    assert ask() == ["waiting", "ok"]
    assert ask() == ["waiting", "exists"]
    holder.rollback()
    assert ask() == ["ok", "exists"]


@pytest.mark.parametrize("how", ["a lock by hand", "a sender of the same"])
def test_mail_of_a_run_that_went_on_as_a_new_one_follows_it_when_nobody_is_in_the_way_any_more(
    db: Database, conn: Connection, holder: Connection, how: str
) -> None:
    sender = db.connect(autocommit=False)
    lasts = []
    for n in range(MANY):
        (each,) = started(conn, queue=f"queue {n}")
        assert value(sender, "select durable.send(%s, 'topic', '1', key => 'key')", each.workflow_id)
        call(conn, "continue_as_new", each.workflow_id, each.lease)
        (last,) = claim(conn, "worker", 1, [f"queue {n}"])
        assert call(conn, "wait", last.workflow_id, last.lease, "s", MESSAGE)[0].outcome == "parked"
        lasts.append(last.workflow_id)
        if how == "a sender of the same" and n > 0:
            call(holder, "send", last.workflow_id, "topic", "2", key="key")
    sender.commit()
    if how == "a lock by hand":
        holder.execute("select from durable.messages where seq > (select min(seq) from durable.messages) for update")
    # A few at a time, for each that is in the way takes as long as a lock is waited for.
    until(conn, lambda: status(conn, lasts[0]) == "pending")
    assert {status(conn, last) for last in lasts[1:]} == {"waiting"}
    holder.rollback()
    ticks(conn, 2, most=1000)
    assert {status(conn, last) for last in lasts} == {"pending"}
    ticks(conn)
    assert value(conn, "select count(*) from durable.late_wakes") == 0
    assert (
        value(conn, "select count(*) from durable.messages m join durable.live_workflows l using (workflow_id)") == MANY
    )


def test_timers_and_timeouts_pass_over_what_is_held_to_what_is_not(conn: Connection, holder: Connection) -> None:
    waiting = parked(conn, MESSAGE, MANY, timeout_of_wait="1 hour")
    late = parked(conn, MESSAGE, MANY, timeout="1 hour")
    holder.execute("select from durable.waits for share")
    let_pass(conn)
    let_pass(conn, "deadline")
    (sleeper,) = parked(conn, "[]", timeout_of_wait="1 hour")
    (free,) = started(conn, timeout="1 hour")
    # One whose row of a wait has the mark of a transaction that is over.
    (stale,) = parked(conn, MESSAGE, timeout_of_wait="1 hour")
    with conn.transaction():
        conn.execute("select from durable.waits where workflow_id = %s for update", [stale])
    let_pass(conn)
    let_pass(conn, "deadline")
    ticks(conn)
    assert (status(conn, sleeper), status(conn, free.workflow_id)) == ("pending", "failed")
    assert {status(conn, each) for each in waiting + late} == {"waiting"}
    holder.rollback()
    ticks(conn, 8)
    assert {status(conn, each) for each in [*waiting, stale]} == {"pending"}
    assert {status(conn, each) for each in late} == {"failed"}


def test_wake_ups_that_are_held_do_not_take_the_place_of_others(
    db: Database, conn: Connection, holder: Connection
) -> None:
    for event in ("a", "b", "c"):
        parked(conn, f'[{{"event": "{event}"}}]', FEW - 1)
        ticks(conn)
    holder.execute("select from durable.waits for share")
    for event in ("a", "b", "c"):
        call(conn, "emit", event)
        ticks(conn)
    assert value(conn, "select count(*) from durable.late_wakes") == 3 * (FEW - 1)
    (one,) = parked(conn, MESSAGE)
    with db.connect(autocommit=False) as other:
        other.execute("select from durable.live_workflows where workflow_id = %s for update", [one])
        call(conn, "send", one, "topic", "1")
        ticks(conn)
    assert status(conn, one) == "waiting"
    until(conn, lambda: status(conn, one) == "pending")
    holder.rollback()
    ticks(conn, 4)
    assert value(conn, "select count(*) from durable.live_workflows where status = 'waiting'") == 0


def test_schedules_that_would_have_to_cancel_what_is_held_do_not_keep_others_from_firing(
    conn: Connection, holder: Connection
) -> None:
    for n in range(MANY):
        call(conn, "schedule", f"cancels {n}", "1 hour", "w", overlap="cancel", catchup="100 days")
    conn.execute("update durable.schedules set next_at = next_at - interval '1 hour'")
    ticks(conn, 3)
    park(conn, claim(conn, "worker", MANY), MESSAGE)
    holder.execute("select from durable.waits for share")
    call(conn, "schedule", "z", "1 hour", "w", catchup="100 days")
    advance(conn, "1 hour")
    ticks(conn, 3, most=1000)
    fired = "select count(*) from durable.schedule_firings where schedule ~ %s and outcome = 'fired'"
    assert (value(conn, fired, "^z"), value(conn, fired, "^cancels")) == (1, MANY)
    holder.rollback()
    ticks(conn, 1, most=1000)
    assert (value(conn, fired, "^z"), value(conn, fired, "^cancels")) == (1, 2 * MANY)


def test_a_queued_firing_that_can_neither_start_nor_be_given_up_does_not_keep_others_from_starting(
    conn: Connection, holder: Connection
) -> None:
    for name in ("a", "b"):
        call(conn, "schedule", name, "1 hour", f"w {name}", overlap="queue_all", catchup="100 days")
    conn.execute("update durable.schedules set next_at = next_at - interval '2 hours'")
    ticks(conn)
    conn.execute(
        """create function no() returns trigger language plpgsql as $$ begin raise exception 'no'; end $$;
           create trigger no before insert on durable.live_workflows for each row when (new.name = 'w a') execute function no()"""
    )
    for each in claim(conn, "worker", 10):
        call(conn, "complete", each.workflow_id, each.lease)
    holder.execute("select from durable.schedule_firings where schedule = 'a' for update")
    before = "select name, waiting from durable.schedules order by name"
    (_, of_a), (_, of_b) = rows(conn, before)
    ticks(conn)
    assert rows(conn, before) == [("a", of_a), ("b", of_b - 1)]
    holder.rollback()
    ticks(conn)
    assert rows(conn, before)[0] == ("a", of_a - 1)
    assert value(conn, "select count(*) from durable.schedule_firings where schedule = 'a' and outcome = 'failed'") == 1


@pytest.mark.parametrize("how", ["under way", "held"])
def test_a_hundred_backfills_do_not_keep_another_one_from_starting(
    conn: Connection, holder: Connection, how: str
) -> None:
    hour = value(conn, "select date_trunc('hour', clock_timestamp())")
    for name in ("own", "other"):
        call(conn, "schedule", name, "@hourly", "w")
    for n in range(100):
        begin = hour - timedelta(hours=2 * n + 2)
        call(conn, "backfill_schedule", "own", begin, begin + timedelta(hours=1), dry_run=False)
    call(conn, "backfill_schedule", "other", hour - timedelta(hours=2), hour, dry_run=False)
    if how == "held":
        call(holder, "pause_schedule", "own")
    begun = "select count(*) from durable.schedule_firings where schedule = 'other' and outcome = 'backfilled'"
    until(conn, lambda: value(conn, begun), most=1000)


def test_failures_of_a_schedule_that_is_held_do_not_keep_others_from_being_paused(
    conn: Connection, holder: Connection
) -> None:
    call(conn, "schedule", "own", "1 hour", "w", overlap="allow", pause_on_failure=True, catchup="100 days")
    call(conn, "schedule", "z", "1 hour", "w", overlap="allow", pause_on_failure=True, catchup="100 days")
    conn.execute(
        "update durable.schedules set next_at = next_at - interval '1 hour' * case name when 'own' then 20 else 1 end"
    )
    ticks(conn, 3, most=1000)
    call(holder, "pause_schedule", "own")
    for each in claim(conn, "worker", 100):
        call(conn, "fail", each.workflow_id, each.lease, {"message": "no luck"})
    until(conn, lambda: value(conn, "select paused_at is not null from durable.schedules where name = 'z'"))


def test_one_message_that_is_held_does_not_keep_the_rest_from_aging_out(conn: Connection, holder: Connection) -> None:
    for each in started(conn, 2):
        call(conn, "send", each.workflow_id, "topic", "1")
        call(conn, "complete", each.workflow_id, each.lease)
    call(conn, "emit", "old")
    conn.execute("update durable.events set emitted_at = emitted_at - interval '400 days'")
    conn.execute("update durable.finished_workflows set completed_at = completed_at - interval '2 hours'")
    sweep = "update durable.wake_marks set sweep_at = '-infinity'"
    ticks(conn)
    conn.execute(sweep)
    holder.execute("select from durable.messages where seq = (select min(seq) from durable.messages) for update")
    ticks(conn, most=1000)
    left = "select (select count(*) from durable.messages) as messages, (select count(*) from durable.events) as events"
    assert rows(conn, left) == [(1, 0)]
    holder.rollback()
    conn.execute(sweep)
    ticks(conn, most=1000)
    assert rows(conn, left) == [(0, 0)]


def continued(conn: Connection, held: Any) -> UUID:
    """The run after this one, which waits for a message."""
    call(conn, "continue_as_new", held.workflow_id, held.lease)
    (last,) = park(conn, claim(conn, "worker"), MESSAGE)
    ticks(conn, most=1000)
    return last


def test_mail_that_a_tick_takes_on_wakes_also_when_the_tick_had_done_something_before(
    db: Database, conn: Connection
) -> None:
    sender, ticker = db.connect(autocommit=False), db.connect(autocommit=False)
    ticks(conn)
    (each,) = started(conn)
    call(sender, "send", each.workflow_id, "topic", "1")
    last = continued(conn, each)
    sender.commit()
    ticker.execute("select pg_current_xact_id()")
    # Somebody's later transaction ends before the tick looks.
    conn.execute("select pg_current_xact_id()")
    call(ticker, "tick")
    ticker.commit()
    ticks(conn, 2)
    assert status(conn, last) == "pending"


def test_what_is_sent_in_the_transaction_of_a_tick_wakes(db: Database, conn: Connection, holder: Connection) -> None:
    (waiting,) = parked(conn, MESSAGE)
    ticks(conn)
    sender = db.connect(autocommit=False)
    sender.execute("select pg_current_xact_id()")
    conn.execute("select pg_current_xact_id()")
    call(sender, "tick")
    holder.execute("select from durable.live_workflows where workflow_id = %s for update", [waiting])
    call(sender, "send", waiting, "topic", "1")
    sender.commit()
    holder.rollback()
    ticks(conn, 2)
    assert status(conn, waiting) == "pending"


def test_mail_that_a_tick_sees_before_its_receiver_has_gone_on_goes_on_too(
    conn: Connection, holder: Connection
) -> None:
    (each,) = started(conn)
    ticks(conn)
    call(holder, "continue_as_new", each.workflow_id, each.lease)
    assert value(conn, "select durable.send(%s, 'topic', '1')", each.workflow_id)
    ticks(conn, 2)
    holder.commit()
    (last,) = park(conn, claim(conn, "worker"), MESSAGE)
    ticks(conn, 2)
    assert status(conn, last) == "pending"
    ticks(conn)
    assert value(conn, "select count(*) from durable.late_wakes") == 0


@pytest.mark.parametrize("how", ["a sender of the same", "ticks that cannot look"])
def test_mail_of_a_run_that_was_continued_long_ago_does_not_age_out_on_its_way(
    db: Database, conn: Connection, holder: Connection, how: str
) -> None:
    sender = db.connect(autocommit=False)
    (each,) = started(conn)
    call(sender, "send", each.workflow_id, "topic", "1", key="key")
    last = continued(conn, each)
    conn.execute("update durable.finished_workflows set completed_at = completed_at - interval '2 hours'")
    conn.execute("update durable.wake_marks set sweep_at = '-infinity'")
    if how == "a sender of the same":
        call(holder, "send", last, "topic", "2", key="key")
    else:
        holder.execute("lock table durable.late_wakes in share mode")
    sender.commit()
    for _ in range(2):
        call(conn, "tick")
    holder.rollback()
    ticks(conn, 3)
    assert status(conn, last) == "pending"


@pytest.mark.parametrize("how", ["update", "share"])
def test_a_mark_that_is_held_does_not_stop_the_claims_of_its_queue(
    conn: Connection, holder: Connection, how: str
) -> None:
    def work() -> int:
        call(conn, "enqueue_many", "w", ["1"] * 50)
        # For marks are moved after 20 milliseconds, and by a claim that need not register its worker.
        conn.execute("select pg_sleep(0.05)")
        return len(claim(conn, "worker", 50))

    for _ in range(5):
        work()
    assert value(conn, "select count(*) > 0 from durable.line_marks where queue = 'default'")
    holder.execute(f"select from durable.line_marks for {how}".encode())
    assert [work() for _ in range(20)] == [50] * 20
    ticks(conn, 3)


def test_many_queued_firings_that_are_held_do_not_keep_others_from_starting(
    conn: Connection, holder: Connection
) -> None:
    for name in [*(f"a{n:02}" for n in range(MANY)), "z"]:
        call(conn, "schedule", name, "1 hour", "w", overlap="queue_all", catchup="100 days")
    conn.execute("update durable.schedules set next_at = next_at - interval '2 hours'")
    ticks(conn, 3, most=1000)
    for each in claim(conn, "worker", 100):
        call(conn, "complete", each.workflow_id, each.lease)
    before = value(conn, "select waiting from durable.schedules where name = 'z'")
    assert before > 0
    holder.execute("select from durable.schedule_firings where schedule <> 'z' for update")
    until(conn, lambda: value(conn, "select waiting from durable.schedules where name = 'z'") < before, most=1000)


@pytest.mark.parametrize("table", ["messages", "workflow_state", "open_steps", "checkpoints"])
def test_what_is_held_of_one_past_its_time_does_not_keep_others(
    conn: Connection, holder: Connection, table: str
) -> None:
    all_ = started(conn, 4)
    for each in all_:
        call(conn, "checkpoint", each.workflow_id, each.lease, "s", "1")
        call(conn, "publish", each.workflow_id, each.lease, "key", "1")
        call(conn, "send", each.workflow_id, "topic", "1")
        call(conn, "complete", each.workflow_id, each.lease)
        # As what a heartbeat stores while the workflow ends.
        conn.execute(
            "insert into durable.open_steps (workflow_id, lease, started_at, step_name) values (%s, 1, now(), 'o')",
            [each.workflow_id],
        )
    call(conn, "configure", "retention", "1 hour")
    held, *_ = age(conn, "3 hours", [each.workflow_id for each in all_])
    # Mail ages out as well, which is not what this is about.
    conn.execute("update durable.wake_marks set sweep_at = 'infinity'")
    holder.execute(f"select from durable.{table} where workflow_id = %s for update".encode(), [held])
    left = "select array_agg(workflow_id) from durable.finished_workflows"
    until(conn, lambda: value(conn, left) == [held], most=1000)
    holder.rollback()
    until(conn, lambda: value(conn, left) is None, most=1000)


@pytest.mark.parametrize(
    "what", ["schedule_firings where schedule = 'other'", "schedules where name = 'own'", "workers"]
)
@pytest.mark.parametrize("how", ["update", "share"])
def test_what_somebody_holds_when_the_clock_is_set_back_is_put_right_when_it_is_free(
    conn: Connection, holder: Connection, what: str, how: str
) -> None:
    advance(conn, "5 hours")
    for name in ("own", "other", "third"):
        # The past of one of them is missed.
        catchup = "0" if name == "other" else "100 days"
        call(conn, "schedule", name, "1 hour", "w", catchup=catchup, overlap="allow", queue="x")
    conn.execute("update durable.schedules set next_at = next_at - interval '2 hours' where name = 'other'")
    enqueue(conn)
    claim(conn, "dead")
    (sleeper,) = parked(conn, "[]", timeout_of_wait="9 hours")
    ticks(conn, 3, most=1000)
    holder.execute(f"select from durable.{what} for {how}".encode())
    advance(conn, "0 hours")

    def far(name: str) -> bool:
        return bool(
            value(
                conn,
                "select next_at > clock_timestamp() + interval '2 hours' from durable.schedules where name = %s",
                name,
            )
        )

    # A timer that comes due meanwhile moves the marks of the timers on.
    let_pass(conn)
    ticks(conn, 3, most=1000)
    assert status(conn, sleeper) == "pending"
    assert not far("third")
    assert far("own") is (what.startswith("schedules"))
    holder.rollback()
    ticks(conn, 3, most=1000)
    assert not any(far(name) for name in ("own", "other", "third"))
    assert value(conn, "select max(expires_at) < clock_timestamp() + interval '1 hour' from durable.workers")
    assert [call(conn, "tick", 1000)[0].tick["set_back"] for _ in range(3)] == [0, 0, 0]
