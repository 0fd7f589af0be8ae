"""Schedules: what becomes of each due time.

Most of them are due once a year, and time is moved by moving the schedule: ``rewind`` lets the last few years be due at once.
"""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta, timezone
from typing import Any
from uuid import UUID

import psycopg
import pytest

from clusters import Cluster, Database
from engine import Connection, at_once, call, claim, claim_one, refused, rows, value, wait_until_blocked, workflow

UTC = timezone.utc
NOW = datetime.now(UTC)
# Half a year from now, so that none falls due while the tests run.
MONTH = (NOW.month + 5) % 12 + 1
YEARLY = f"0 0 1 {MONTH} *"


def due(years: int) -> datetime:
    """When a yearly schedule was due last, or so many years after that, or before it."""
    return datetime(NOW.year - (NOW.month < MONTH) + years, MONTH, 1, tzinfo=UTC)


def schedule(conn: Connection, name: str = "s", cron: str = YEARLY, workflow: str = "w", **named: Any) -> datetime:
    ((next_at,),) = call(conn, "schedule", name, cron, workflow, **named)
    assert next_at is None or isinstance(next_at, datetime)
    return next_at


def rewind(conn: Connection, years: int, name: str = "s") -> None:
    """Lets the given number of years be due, up to the last one."""
    conn.execute("update durable.schedules set next_at = %s where name = %s", [due(1 - years), name])


def tick(conn: Connection) -> Any:
    report = value(conn, "select durable.tick()")
    assert not [part for part in report.values() if isinstance(part, dict)], report
    return report


def firings(conn: Connection, name: str = "s") -> list[Any]:
    return rows(conn, "select * from durable.schedule_firings where schedule = %s order by due_at", name)


def outcomes(conn: Connection, name: str = "s") -> list[tuple[int, str]]:
    """Years before the last one, and what became of them."""
    return [(f.due_at.astimezone(UTC).year - due(0).year, f.outcome) for f in firings(conn, name)]


def state(conn: Connection, name: str = "s") -> Any:
    (row,) = rows(conn, "select * from durable.schedules where name = %s", name)
    return row


def run_all(conn: Connection, outcome: str = "complete") -> list[UUID]:
    """Runs what is ready, and returns the ids in the order of the line."""
    claimed = claim(conn, "worker", 1000)
    for c in claimed:
        if outcome == "complete":
            call(conn, "complete", c.workflow_id, c.lease)
        else:
            call(conn, "fail", c.workflow_id, c.lease, {"message": "no luck"})
    return [c.workflow_id for c in claimed]


@pytest.fixture
def conn(db: Database) -> Connection:
    conn = db.connect()
    # Nothing is late unless the test says so.
    call(conn, "configure", "schedule_grace", "99 years")
    return conn


def test_31_each_due_time_fires_once_whatever_the_number_of_tickers(db: Database) -> None:
    conn = db.connect()
    for n in range(20):
        schedule(conn, f"s{n}", "1 second", overlap="allow")
    deadline = time.monotonic() + 4

    def tick_on() -> None:
        own = db.connect()
        while time.monotonic() < deadline:
            tick(own)

    at_once(*[tick_on] * 4)
    found = rows(
        conn,
        """select f.schedule, count(*) as fired, count(distinct f.workflow_id) as workflows,
             extract(epoch from max(f.due_at) - min(f.due_at))::int + 1 as due, max(f.handled_at - f.due_at) as late
           from durable.schedule_firings f where f.outcome = 'fired' group by f.schedule""",
    )
    assert len(found) == 20
    assert all(row.fired == row.workflows == row.due >= 3 for row in found), found
    assert value(conn, "select count(*) from durable.workflows") == sum(row.fired for row in found)


@pytest.mark.parametrize("table", ["live_workflows", "schedule_firings"])
def test_31_a_ticker_killed_between_its_statements_leaves_nothing_and_the_next_one_fires(
    db: Database, conn: Connection, table: str
) -> None:
    schedule(conn)
    rewind(conn, 1)
    holder, doomed = db.connect(autocommit=False), db.connect()
    holder.execute(f"lock table durable.{table} in share mode".encode())
    with ThreadPoolExecutor(1) as pool:
        killed = pool.submit(tick, doomed)
        wait_until_blocked(conn, doomed)
        conn.execute("select pg_terminate_backend(%s)", [doomed.info.backend_pid])
        with pytest.raises(psycopg.OperationalError):
            killed.result()
    holder.rollback()
    assert outcomes(conn) == []
    assert value(conn, "select count(*) from durable.workflows") == 0
    # Its locks go with its session, which may take a moment longer than the answer.
    while not tick(conn).get("fired"):
        pass
    assert outcomes(conn) == [(0, "fired")]
    assert value(conn, "select count(*) from durable.workflows") == 1


def test_31_of_two_tickers_one_fires_and_the_other_does_not_wait(db: Database, conn: Connection) -> None:
    schedule(conn)
    tick(conn)
    rewind(conn, 1)
    first = db.connect(autocommit=False)
    assert tick(first)["fired"] == 1
    assert tick(conn)["busy"]
    first.commit()
    assert tick(conn)["fired"] == 0
    assert outcomes(conn) == [(0, "fired")]


def test_a_schedule_whose_row_is_locked_does_not_hold_up_the_others(db: Database, conn: Connection) -> None:
    for name in ("locked", "free"):
        schedule(conn, name)
        rewind(conn, 1, name)
    holder = db.connect(autocommit=False)
    call(holder, "trigger_schedule", "locked")
    assert outcomes(conn, "locked") == []
    assert tick(conn)["fired"] == 1
    assert outcomes(conn, "free") == [(0, "fired")]
    holder.commit()
    # What was due when it was triggered was decided first, and exactly once.
    assert tick(conn)["fired"] == 0
    assert [f.outcome for f in firings(conn, "locked")] == ["fired", "triggered"]


def test_a_schedule_whose_firings_somebody_has_locked_does_not_hold_up_the_others(
    db: Database, conn: Connection
) -> None:
    other = db.connect(autocommit=False)
    for name in ("a", "b"):
        schedule(conn, f"queues {name}", overlap="queue_all")
        rewind(conn, 2, f"queues {name}")
        schedule(conn, f"pauses {name}", pause_on_failure=True)
        rewind(conn, 1, f"pauses {name}")
    tick(conn)
    for name in ("a", "b"):
        schedule(conn, f"fills {name}")
        call(conn, "backfill_schedule", f"fills {name}", due(-3), due(-1), dry_run=False, max_parallel=1)
    tick(conn)
    failed = {id for name in "ab" for id in [firings(conn, f"pauses {name}")[0].workflow_id]}
    for row in rows(conn, "select workflow_id, lease from durable.claim('w', max_workflows => 100)"):
        call(conn, "fail" if row.workflow_id in failed else "complete", row.workflow_id, row.lease, "{}")
    other.execute("select from durable.schedule_firings where schedule ~ ' a$' for update")

    def waiting(name: str) -> tuple[int, bool, int]:
        left = [outcome for _, outcome in outcomes(conn, f"fills {name}")].count("queued")
        return state(conn, f"queues {name}").waiting, state(conn, f"pauses {name}").paused_at is not None, left

    before = waiting("a")
    assert before == waiting("b") == (1, False, 2)
    for _ in range(2):
        assert "passed_over" not in tick(conn)
    assert (waiting("a"), waiting("b")) == (before, (0, True, 1))
    other.rollback()
    for _ in range(2):
        tick(conn)
    assert waiting("a") == waiting("b") == (0, True, 1)


@pytest.mark.parametrize(
    ("overlap", "expected"),
    [
        ("skip", ["fired", "skipped", "skipped"]),
        ("queue_one", ["fired", "queued", "skipped"]),
        ("queue_all", ["fired", "queued", "queued"]),
        ("cancel", ["skipped", "skipped", "fired"]),
        ("allow", ["fired", "fired", "fired"]),
    ],
)
def test_31_overlap_does_as_its_name_says(conn: Connection, overlap: str, expected: list[str]) -> None:
    schedule(conn, overlap=overlap)
    rewind(conn, 3)
    tick(conn)
    assert [outcome for _, outcome in outcomes(conn)] == expected
    for firing in firings(conn):
        assert (firing.reason is None) == (firing.outcome == "fired")
        assert (firing.workflow_id is not None) == (firing.outcome == "fired")


def test_31_skip_starts_again_when_the_workflow_has_ended(conn: Connection) -> None:
    schedule(conn)
    rewind(conn, 2)
    conn.execute("update durable.schedules set ends_at = next_at")
    tick(conn)
    assert len(run_all(conn)) == 1
    conn.execute("update durable.schedules set ends_at = null")
    rewind(conn, 1)
    tick(conn)
    assert outcomes(conn) == [(-1, "fired"), (0, "fired")]
    assert state(conn).firings == 2


def test_31_cancel_ends_the_workflow_before(conn: Connection) -> None:
    schedule(conn, overlap="cancel")
    rewind(conn, 2)
    conn.execute("update durable.schedules set ends_at = next_at")
    tick(conn)
    (first,) = run_ids(conn)
    claim_one(conn)
    conn.execute("update durable.schedules set ends_at = null, next_at = %s", [due(0)])
    tick(conn)
    assert outcomes(conn) == [(-1, "fired"), (0, "fired")]
    row = workflow(conn, first)
    assert (row.status, row.error["code"]) == ("cancelled", "WF004")
    assert "overlap" in row.error_message


def run_ids(conn: Connection) -> list[UUID]:
    return [f.workflow_id for f in firings(conn) if f.workflow_id is not None]


def test_31_queued_firings_start_one_after_the_other_in_order(conn: Connection) -> None:
    schedule(conn, overlap="queue_all")
    rewind(conn, 4)
    tick(conn)
    assert state(conn).waiting == 3
    for done in range(1, 5):
        assert tick(conn)["released"] == 0
        assert len(run_all(conn)) == 1
        assert tick(conn)["released"] == (done < 4)
    assert outcomes(conn) == [(-3, "fired"), (-2, "fired"), (-1, "fired"), (0, "fired")]
    started = [workflow(conn, workflow_id).created_at for workflow_id in run_ids(conn)]
    assert started == sorted(started)
    assert state(conn).waiting == 0


def test_a_workflow_that_was_triggered_counts_for_overlap(conn: Connection) -> None:
    schedule(conn)
    call(conn, "trigger_schedule", "s")
    rewind(conn, 1)
    tick(conn)
    assert [f.outcome for f in firings(conn)] == ["skipped", "triggered"]


def test_overlap_counts_what_was_started_while_it_was_allowed(conn: Connection) -> None:
    schedule(conn, overlap="allow")
    rewind(conn, 2)
    tick(conn)
    schedule(conn, overlap="skip")
    conn.execute(
        "delete from durable.schedule_firings where due_at = (select max(due_at) from durable.schedule_firings)"
    )
    rewind(conn, 1)
    tick(conn)
    assert outcomes(conn) == [(-1, "fired"), (0, "skipped")]


@pytest.mark.parametrize(
    ("catchup", "mode", "expected"),
    [
        ("0", "all", ["missed", "missed", "missed"]),
        ("99 years", "all", ["fired", "fired", "fired"]),
        ("99 years", "last", ["missed", "missed", "fired"]),
        ("0", "last", ["missed", "missed", "missed"]),
    ],
)
def test_31_catchup_does_as_its_name_says(conn: Connection, catchup: str, mode: str, expected: list[str]) -> None:
    call(conn, "configure", "schedule_grace", "0")
    schedule(conn, overlap="allow", catchup=catchup, catchup_mode=mode)
    rewind(conn, 3)
    tick(conn)
    assert [outcome for _, outcome in outcomes(conn)] == expected
    assert all(f.reason for f in firings(conn) if f.outcome == "missed")


def test_31_catchup_reaches_back_as_far_as_its_window(conn: Connection) -> None:
    call(conn, "configure", "schedule_grace", "0")
    days = (datetime.now(UTC) - due(-1)).days
    schedule(conn, overlap="allow", catchup=f"{days + 10} days")
    rewind(conn, 4)
    tick(conn)
    assert [outcome for _, outcome in outcomes(conn)] == ["missed", "missed", "fired", "fired"]


def test_31_a_long_outage_is_one_row_from_the_hundred_and_first_on(conn: Connection) -> None:
    call(conn, "configure", "schedule_grace", "1 second")
    schedule(conn, cron="1 second", overlap="allow")
    began = value(conn, "update durable.schedules set next_at = next_at - interval '1 day' returning next_at")
    tick(conn)
    found = firings(conn)
    missed = [f for f in found if f.outcome == "missed"]
    assert [f.due_at for f in missed] == [began + timedelta(seconds=n) for n in range(101)]
    assert [f.missed_until is None for f in missed] == [True] * 100 + [False]
    assert missed[-1].missed_until - began > timedelta(hours=23)
    next_at = state(conn).next_at
    assert next_at == missed[-1].missed_until + timedelta(seconds=1)
    # Not a day later: what is due now fires with the next tick.
    assert tick(conn)["fired"] >= 1
    assert firings(conn)[101].due_at == next_at


def test_31_what_falls_due_during_a_pause_is_missed_and_says_so(conn: Connection) -> None:
    schedule(conn, catchup="99 years")
    assert value(conn, "select durable.pause_schedule('s', 'maintenance')")
    assert not value(conn, "select durable.pause_schedule('s')")
    assert state(conn).pause_reason == "maintenance"
    rewind(conn, 2)
    tick(conn)
    assert [(f.outcome, f.reason) for f in firings(conn)] == [("missed", "the schedule was paused")] * 2
    next_at = value(conn, "select durable.resume_schedule('s')")
    assert next_at == due(1)
    tick(conn)
    assert len(firings(conn)) == 2
    assert value(conn, "select count(*) from durable.workflows") == 0


def test_31_what_fell_due_before_the_pause_fires_and_what_did_during_it_does_not(conn: Connection) -> None:
    schedule(conn, overlap="allow")
    rewind(conn, 2)
    conn.execute("update durable.schedules set ends_at = next_at")
    call(conn, "pause_schedule", "s")
    assert outcomes(conn) == [(-1, "fired")]
    conn.execute("update durable.schedules set ends_at = null")
    rewind(conn, 1)
    call(conn, "resume_schedule", "s")
    assert outcomes(conn) == [(-1, "fired"), (0, "missed")]


def test_31_queued_firings_wait_for_the_end_of_a_pause(conn: Connection) -> None:
    schedule(conn, overlap="queue_one")
    rewind(conn, 2)
    tick(conn)
    call(conn, "pause_schedule", "s")
    run_all(conn)
    assert tick(conn)["released"] == 0
    call(conn, "resume_schedule", "s")
    assert tick(conn)["released"] == 1


def test_31_a_failure_pauses_the_schedule(conn: Connection) -> None:
    schedule(conn, pause_on_failure=True, overlap="queue_all")
    rewind(conn, 3)
    tick(conn)
    run_all(conn)
    assert tick(conn)["paused"] == 0
    (failed,) = run_all(conn, "fail")
    report = tick(conn)
    assert (report["paused"], report["released"]) == (1, 0)
    assert state(conn).pause_reason == f"workflow {failed} failed"
    call(conn, "resume_schedule", "s")
    report = tick(conn)
    assert (report["paused"], report["released"]) == (0, 1)


def test_a_workflow_that_is_tried_again_or_cancelled_does_not_pause_it(conn: Connection) -> None:
    schedule(conn, pause_on_failure=True, max_attempts=2)
    rewind(conn, 1)
    tick(conn)
    run_all(conn, "fail")
    assert tick(conn)["paused"] == 0
    call(conn, "cancel", run_ids(conn)[0])
    assert tick(conn)["paused"] == 0
    assert state(conn).paused_at is None


def test_it_fires_from_its_start_to_its_end(conn: Connection) -> None:
    first = due(5)
    assert schedule(conn, starts_at=first, ends_at=first + timedelta(days=800)) == first
    assert [at for (at,) in call(conn, "next_firings", "s")] == [due(5), due(6), due(7)]
    conn.execute("update durable.schedules set starts_at = null, ends_at = %s", [due(-1) + timedelta(days=151)])
    rewind(conn, 3)
    tick(conn)
    assert outcomes(conn) == [(-2, "fired"), (-1, "skipped")]
    assert state(conn).next_at is None


def test_intervals_are_counted_from_the_start(conn: Connection) -> None:
    starts_at = due(1) + timedelta(days=16, hours=11, minutes=22, seconds=33)
    assert schedule(conn, cron="1 week", starts_at=starts_at) == starts_at
    assert [at for (at,) in call(conn, "next_firings", "s", 3)] == [starts_at + timedelta(weeks=n) for n in range(3)]


def test_it_fires_as_often_as_it_may(conn: Connection) -> None:
    schedule(conn, overlap="allow", max_firings=2)
    rewind(conn, 5)
    tick(conn)
    assert outcomes(conn) == [(-4, "fired"), (-3, "fired")]
    row = state(conn)
    assert (row.firings, row.next_at) == (2, None)
    assert call(conn, "next_firings", "s") == []
    assert schedule(conn, overlap="allow", max_firings=3) is not None
    assert len(call(conn, "next_firings", "s")) == 1


def test_jitter_puts_off_each_start_by_a_part_of_it_and_by_the_same_when_asked_again(conn: Connection) -> None:
    due_at = due(1)
    waits = [value(conn, "select durable._jitter('1 hour', %s, %s)", f"s{n}", due_at) for n in range(50)]
    assert all(timedelta() <= wait < timedelta(hours=1) for wait in waits)
    assert len(set(waits)) == 50
    assert max(waits) > timedelta(minutes=40) > timedelta(minutes=20) > min(waits)
    schedule(conn, jitter="99 years")
    rewind(conn, 1)
    tick(conn)
    (workflow_id,) = run_ids(conn)
    expected = value(conn, "select due_at + durable._jitter('99 years', 's', due_at) from durable.schedule_firings")
    assert workflow(conn, workflow_id).wake_at == expected


def test_what_a_workflow_is_given(conn: Connection) -> None:
    given = {"region": "eu", "day": "{due_at}", "by": "{schedule}", "text": "at {due_at}", "n": 1}
    for name, options in (
        ("plain", {}),
        ("filled", {"input": given}),
        ("listed", {"input": psycopg.types.json.Jsonb([1])}),
    ):
        schedule(conn, name, **options, queue="q", priority=7, max_attempts=3, timeout="1 hour", tags={"team": "a"})
        rewind(conn, 1, name)
    tick(conn)
    inputs = {
        f.schedule: workflow(conn, f.workflow_id).input
        for name in ("plain", "filled", "listed")
        for f in firings(conn, name)
    }
    due_at = f"{due(0):%Y-%m-%d}T00:00:00.000000Z"
    assert inputs["plain"] == {"schedule": "plain", "due_at": due_at}
    assert inputs["filled"] == {"region": "eu", "day": due_at, "by": "filled", "text": "at {due_at}", "n": 1}
    assert inputs["listed"] == [1]
    row = workflow(conn, firings(conn, "plain")[0].workflow_id)
    assert (row.queue, row.priority, row.max_attempts, row.timeout, row.tags) == (
        "q",
        7,
        3,
        timedelta(hours=1),
        {"team": "a"},
    )


def test_applying_the_same_again_changes_nothing(conn: Connection) -> None:
    first = schedule(conn, cron="1 second", input={"a": 1}, overlap="allow")
    conn.execute("update durable.schedules set next_at = next_at + interval '1 hour'")
    before = state(conn)
    assert schedule(conn, cron="1 second", input={"a": 1}, overlap="allow") == first + timedelta(hours=1)
    assert state(conn) == before


def test_a_change_keeps_what_it_does_not_name_and_a_paused_schedule_stays_paused(conn: Connection) -> None:
    next_at = schedule(conn)
    call(conn, "pause_schedule", "s", "why not")
    assert schedule(conn, input={"new": True}) == next_at
    assert state(conn).pause_reason == "why not"
    assert schedule(conn, cron="@monthly") < datetime.now(UTC) + timedelta(days=32)


def test_what_fell_due_before_a_change_fires_as_it_was(conn: Connection) -> None:
    schedule(conn, input={"version": 1})
    rewind(conn, 1)
    schedule(conn, cron="@monthly", input={"version": 2})
    assert outcomes(conn) == [(0, "fired")]
    assert workflow(conn, run_ids(conn)[0]).input == {"version": 1}


def test_schedules_applied_by_several_at_once_are_one(db: Database, conn: Connection) -> None:
    assert len(set(at_once(*[lambda: schedule(db.connect())] * 6))) == 1
    assert value(conn, "select count(*) from durable.schedules") == 1


def test_a_removed_schedule_leaves_its_workflows_running_and_its_firings_listed(conn: Connection) -> None:
    schedule(conn, overlap="queue_one")
    rewind(conn, 2)
    tick(conn)
    assert value(conn, "select durable.unschedule('s')")
    assert not value(conn, "select durable.unschedule('s')")
    assert [(f.outcome, f.reason) for f in firings(conn)] == [("fired", None), ("skipped", "the schedule was removed")]
    assert len(run_all(conn)) == 1
    assert tick(conn)["released"] == 0


def test_a_due_time_that_was_handled_does_not_fire_again_after_the_schedule_is_made_anew(conn: Connection) -> None:
    schedule(conn)
    rewind(conn, 1)
    tick(conn)
    call(conn, "unschedule", "s")
    schedule(conn)
    rewind(conn, 1)
    assert tick(conn)["fired"] == 0
    assert outcomes(conn) == [(0, "fired")]
    assert value(conn, "select count(*) from durable.workflows") == 1


def test_triggering_starts_a_workflow_whatever_the_state_of_the_schedule(conn: Connection) -> None:
    schedule(conn)
    call(conn, "pause_schedule", "s")
    ids = {value(conn, "select durable.trigger_schedule('s')") for _ in range(3)}
    with conn.transaction():
        ids |= {value(conn, "select durable.trigger_schedule('s')") for _ in range(3)}
    assert len(ids) == 6
    assert {f.workflow_id for f in firings(conn)} == ids
    assert {f.outcome for f in firings(conn)} == {"triggered"}
    assert state(conn).firings == 0


def test_a_backfill_says_first_what_it_would_do(conn: Connection) -> None:
    schedule(conn)
    planned = call(conn, "backfill_schedule", "s", due(-3), due(0))
    assert [(row.due_at, row.outcome, row.action) for row in planned] == [(due(-n), None, "run") for n in (3, 2, 1, 0)]
    assert firings(conn) == []
    tick(conn)
    assert firings(conn) == []


def test_a_backfill_runs_so_many_at_once_in_order_and_apart_from_overlap_and_pause(conn: Connection) -> None:
    schedule(conn)
    call(conn, "trigger_schedule", "s")
    call(conn, "pause_schedule", "s")
    call(conn, "backfill_schedule", "s", due(-4), due(0), dry_run=False, max_parallel=2)
    assert tick(conn)["backfilled"] == 2
    assert tick(conn)["backfilled"] == 0
    assert outcomes(conn)[:3] == [(-4, "backfilled"), (-3, "backfilled"), (-2, "queued")]
    run_all(conn)
    assert tick(conn)["backfilled"] == 2
    run_all(conn)
    assert tick(conn)["backfilled"] == 1
    run_all(conn)
    assert tick(conn)["backfilled"] == 0
    assert outcomes(conn)[:5] == [(-n, "backfilled") for n in (4, 3, 2, 1, 0)]
    assert value(conn, "select ended_at is not null from durable.schedule_backfills")


def test_a_backfill_runs_what_was_missed_and_again_only_what_it_is_told_to(conn: Connection) -> None:
    schedule(conn)
    rewind(conn, 2)
    tick(conn)
    assert outcomes(conn) == [(-1, "fired"), (0, "skipped")]
    plan = [row.action for row in call(conn, "backfill_schedule", "s", due(-2), due(0))]
    assert plan == ["run", "skip: it still runs", "run"]
    (first,) = run_all(conn)
    plan = [row.action for row in call(conn, "backfill_schedule", "s", due(-2), due(0))]
    assert plan == ["run", "skip: it ran already", "run"]
    plan = [
        row.action
        for row in call(conn, "backfill_schedule", "s", due(-2), due(0), dry_run=False, redo=True, max_parallel=9)
    ]
    assert plan == ["run", "run again", "run"]
    plan = [row.action for row in call(conn, "backfill_schedule", "s", due(-2), due(0))]
    assert plan == ["skip: it waits to be started"] * 3
    tick(conn)
    again = firings(conn)[1]
    assert (again.outcome, again.earlier_ids) == ("backfilled", [first])
    assert again.workflow_id != first


def test_a_schedule_whose_zone_is_gone_stops_alone_and_says_why(conn: Connection) -> None:
    for name in ("a", "broken", "z"):
        schedule(conn, name)
        rewind(conn, 1, name)
    conn.execute("update durable.schedules set timezone = 'Europe/Atlantis' where name = 'broken'")
    assert tick(conn)["fired"] == 2
    row = state(conn, "broken")
    assert "Europe/Atlantis" in row.error
    assert row.next_at is None
    assert [(f.outcome, "Europe/Atlantis" in f.reason) for f in firings(conn, "broken")] == [("failed", True)]
    assert tick(conn)["fired"] == 0
    with pytest.raises(psycopg.errors.InvalidParameterValue):
        call(conn, "resume_schedule", "broken")
    assert schedule(conn, "broken") is not None
    assert state(conn, "broken").error is None


def test_a_firing_whose_workflow_cannot_be_enqueued_is_recorded_and_the_schedule_goes_on(conn: Connection) -> None:
    schedule(conn, "large", input={"text": "x" * 1000})
    schedule(conn, "small")
    for name in ("large", "small"):
        rewind(conn, 2, name)
    call(conn, "configure", "max_payload_bytes", "500")
    assert tick(conn)["fired"] == 1
    assert [(f.outcome, "WF006" in f.reason) for f in firings(conn, "large")] == [("failed", True)]
    tick(conn)
    assert outcomes(conn, "large") == [(-1, "failed"), (0, "failed")]
    assert state(conn, "large").next_at == due(1)
    call(conn, "backfill_schedule", "large", due(-3), due(0), dry_run=False)
    for _ in range(5):
        assert tick(conn)["backfilled"] == 0
    assert {outcome for _, outcome in outcomes(conn, "large")} == {"failed"}
    assert value(conn, "select ended_at is not null from durable.schedule_backfills")


def test_a_queued_firing_that_cannot_be_enqueued_makes_way_for_the_next(conn: Connection) -> None:
    schedule(conn, overlap="queue_all", input={"text": "x" * 1000})
    rewind(conn, 3)
    tick(conn)
    run_all(conn)
    call(conn, "configure", "max_payload_bytes", "500")
    tick(conn)
    call(conn, "configure", "max_payload_bytes", None)
    assert tick(conn)["released"] == 1
    assert outcomes(conn) == [(-2, "fired"), (-1, "failed"), (0, "fired")]
    assert state(conn).waiting == 0


def test_a_tick_does_a_limited_amount_and_says_that_there_is_more(conn: Connection) -> None:
    for n in range(25):
        schedule(conn, f"s{n}")
        rewind(conn, 1, f"s{n}")
    for expected in (10, 10, 5, 0):
        report = value(conn, "select durable.tick(10)")
        assert report["fired"] == expected
    assert report["next_in_ms"] is None
    schedule(conn, "much", cron="1 second", overlap="allow")
    conn.execute("update durable.schedules set next_at = next_at - interval '1 hour' where name = 'much'")
    report = tick(conn)
    assert (report["fired"], report["next_in_ms"]) == (100, 0)


def test_the_tick_says_when_the_next_one_is_due(conn: Connection) -> None:
    assert tick(conn)["next_in_ms"] is None
    schedule(conn)
    # The next due time is not within ten seconds.
    assert tick(conn)["next_in_ms"] is None
    schedule(conn, "soon", cron="1 second")
    assert tick(conn)["next_in_ms"] <= 1000


def test_firings_are_forgotten_after_their_time(conn: Connection) -> None:
    schedule(conn, overlap="queue_all")
    rewind(conn, 2)
    tick(conn)
    conn.execute("update durable.schedule_firings set handled_at = now() - interval '1 year'")
    assert tick(conn)["firings_forgotten"] == 1
    assert outcomes(conn) == [(0, "queued")]


def test_backfills_are_forgotten_with_their_firings(conn: Connection) -> None:
    schedule(conn)
    call(conn, "backfill_schedule", "s", due(-2), due(-1), dry_run=False, max_parallel=2)
    tick(conn)
    run_all(conn)
    tick(conn)
    conn.execute("update durable.schedule_firings set handled_at = now() - interval '1 year'")
    conn.execute("update durable.schedule_backfills set ended_at = now() - interval '1 year'")
    assert tick(conn)["firings_forgotten"] == 2
    assert value(conn, "select count(*) from durable.schedule_backfills") == 0


def test_a_schedule_survives_a_kill_of_the_server(own_cluster: Cluster) -> None:
    db = own_cluster.create_database()
    conn = db.connect()
    call(conn, "configure", "schedule_grace", "99 years")
    schedule(conn, overlap="queue_all")
    rewind(conn, 2)
    tick(conn)
    own_cluster.kill()
    own_cluster.start()
    conn = db.connect()
    assert outcomes(conn) == [(-1, "fired"), (0, "queued")]
    run_all(conn)
    assert tick(conn)["released"] == 1


@pytest.mark.parametrize(
    ("argument", "named"),
    [
        ("name", {"name": ""}),
        ("name", {"name": "x" * 201}),
        ("field minute", {"cron": "99 * * * *"}),
        ("never falls due", {"cron": "0 0 31 2 *"}),
        ("timezone", {"timezone": "Europe/Atlantis"}),
        ("interval", {"cron": "-5 minutes"}),
        ("overlap", {"overlap": "maybe"}),
        ("overlap", {"overlap": None}),
        ("catchup", {"catchup": "-1 hour"}),
        ("catchup", {"catchup": "101 years"}),
        ("catchup_mode", {"catchup_mode": "none"}),
        ("jitter", {"jitter": "-1 second"}),
        ("starts_at", {"starts_at": datetime(2030, 1, 1, tzinfo=UTC), "ends_at": datetime(2029, 1, 1, tzinfo=UTC)}),
        ("max_firings", {"max_firings": 0}),
        ("pause_on_failure", {"pause_on_failure": None}),
        ("workflow name", {"workflow": ""}),
        ("queue name", {"queue": ""}),
        ("priority", {"priority": 40000}),
        ("max_attempts", {"max_attempts": 0}),
        ("timeout", {"timeout": "0"}),
        ("tags", {"tags": psycopg.types.json.Jsonb([1])}),
        ("'taken' is taken by a schedule of workflow 'other'", {"name": "taken"}),
    ],
)
def test_bad_input_is_refused_and_quoted(conn: Connection, argument: str, named: dict[str, Any]) -> None:
    schedule(conn, "taken", workflow="other")
    with refused("WF005") as info:
        schedule(conn, **named)
    assert argument in (info.value.diag.message_primary or "")
    assert [row.name for row in rows(conn, "select name from durable.schedules")] == ["taken"]


@pytest.mark.parametrize(
    "query",
    [
        "select durable.pause_schedule('nobody')",
        "select durable.resume_schedule('nobody')",
        "select durable.trigger_schedule('nobody')",
        "select durable.next_firings('nobody')",
        "select durable.backfill_schedule('nobody', now() - interval '1 hour', now())",
        "select durable.next_firings('s', 0)",
        "select durable.backfill_schedule('s', now(), now() - interval '1 hour')",
        "select durable.backfill_schedule('s', now(), now() + interval '1 hour')",
        "select durable.backfill_schedule('s', '-infinity', now())",
        "select durable.backfill_schedule('s', now() - interval '1 hour', now(), max_parallel => 0)",
        "select durable.backfill_schedule('second', now() - interval '1 day', now())",
    ],
)
def test_what_cannot_be_done_is_refused(conn: Connection, query: str) -> None:
    schedule(conn)
    schedule(conn, "second", cron="1 second")
    with refused("WF005"):
        value(conn, query)
