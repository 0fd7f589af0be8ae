"""Retention: what is past its time goes, by whole days where it can; what is unfinished never does."""

from __future__ import annotations

import threading
from collections.abc import Callable
from datetime import date, timedelta
from typing import Any
from uuid import UUID

import psycopg
import pytest

from clusters import Database
from engine import (
    Connection,
    advance,
    age,
    at_once,
    call,
    claim,
    claim_one,
    enqueue,
    refused,
    rows,
    steps,
    value,
    wait_until_blocked,
    workflow,
)

# Of each database, the day on which its test began, which is that of all of it.
TODAY: dict[str, date] = {}


def day_of(conn: Connection, days_ago: int) -> date:
    today = TODAY.setdefault(conn.info.dbname, value(conn, "select (now() at time zone 'UTC')::date"))
    return today - timedelta(days=days_ago)


def keep(conn: Connection, days: int) -> None:
    """Sets the retention to so many days and some hours: until eleven of a day, far from its ends and from all that ended."""
    day = day_of(conn, days)
    value(
        conn,
        "select durable.configure('retention', extract(epoch from now() - durable._start_of(%s) - interval '11 hours') || ' s')",
        day,
    )


def ended(
    conn: Connection, days_ago: int, count: int = 1, *, name: str = "w", queue: str = "default", key: str | None = None
) -> list[UUID]:
    """Workflows of six o'clock on a past day, completed at once, each with two steps, and with a key if one is given."""
    day = day_of(conn, days_ago)
    conn.execute("select durable._provision_partitions(%s, %s)", [day, day])
    ids = rows(
        conn,
        """insert into durable.finished_workflows (workflow_id, created_at, completed_at, attempt, failures, crashes,
             max_attempts, priority, status, name, queue, key, tags)
           select (left(durable._first_id(d.at)::text, 18) || right(gen_random_uuid()::text, 18))::uuid, d.at, d.at,
             1, 0, 0, 1, 0, 'completed', %s, %s, %s || n, '{}'
           from generate_series(1, %s) n, (select durable._start_of(%s) + interval '6 hours' as at) d
           returning workflow_id""",
        *(name, queue, key, count, day),
    )
    conn.execute(
        """insert into durable.checkpoints (workflow_id, completed_at, attempt, status, step_name)
           select f.workflow_id, f.completed_at, 1, 'completed', s from durable.finished_workflows f, unnest(array['a', 'b']) s
           where f.workflow_id = any(%(ids)s)""",
        {"ids": [row[0] for row in ids]},
    )
    conn.execute(
        """insert into durable.workflow_keys (key, name, workflow_id)
           select f.key, f.name, f.workflow_id from durable.finished_workflows f
           where f.workflow_id = any(%(ids)s) and f.key is not null""",
        {"ids": [row[0] for row in ids]},
    )
    return [row[0] for row in ids]


def began(conn: Connection, days_ago: int, **named: Any) -> Any:
    """A workflow that was enqueued on a past day and is claimed: what claim() returns for it."""
    queue = f"began {days_ago}"
    workflow_id = enqueue(conn, queue=queue, **named)
    old = value(
        conn,
        "select (left(durable._first_id(durable._start_of(%s) + interval '6 hours')::text, 18) || right(%s, 18))::uuid",
        *(day_of(conn, days_ago), str(workflow_id)),
    )
    conn.execute(
        "update durable.live_workflows set workflow_id = %s, created_at = durable._id_time(%s) where workflow_id = %s",
        [old, old, workflow_id],
    )
    conn.execute("update durable.workflow_keys set workflow_id = %s where workflow_id = %s", [old, workflow_id])
    return claim_one(conn, queues=[queue])


def tick(conn: Connection, max_workflows: int = 1000) -> dict[str, Any]:
    report = value(conn, "select durable.tick(%s)", max_workflows)
    assert not [done for done in report.values() if isinstance(done, dict)], report
    assert isinstance(report, dict)
    return report


def tick_until(conn: Connection, done: Callable[[], bool]) -> None:
    for _ in range(500):
        if done():
            return
        tick(conn)
    raise AssertionError("it did not come to pass")


def tick_often(conn: Connection) -> None:
    """More than often enough for all that is due, though each tick looks at three days of its choice."""
    for _ in range(40):
        tick(conn)


def days(conn: Connection, parent: str = "finished_workflows") -> set[date]:
    return {
        row[0]
        for row in rows(
            conn,
            "select to_date(right(inhrelid::regclass::text, 8), 'YYYYMMDD') from pg_inherits where inhparent = %s::regclass",
            f"durable.{parent}",
        )
    }


def is_gone(conn: Connection, days_ago: int) -> bool:
    day = day_of(conn, days_ago)
    return day not in days(conn) and day not in days(conn, "checkpoints")


def stored(conn: Connection) -> set[UUID]:
    return {row[0] for row in rows(conn, "select workflow_id from durable.workflows")}


def test_a_day_that_is_past_is_dropped_with_its_steps_and_keys(db: Database) -> None:
    conn = db.connect()
    old, new = ended(conn, 40, 30, key="old "), ended(conn, 20, 30, key="new ")
    conn.execute(
        "insert into durable.open_steps (workflow_id, lease, started_at, step_name) values (%s, 1, now(), 's')",
        [old[0]],
    )
    tick_until(conn, lambda: is_gone(conn, 40))
    tick_until(conn, lambda: not rows(conn, "select from durable.workflow_keys where key like 'old%%'"))
    assert stored(conn) == set(new)
    assert value(conn, "select count(*) from durable.checkpoints") == 60
    assert value(conn, "select count(*) from durable.open_steps") == 0
    assert value(conn, "select count(*) from durable.workflow_keys") == 30
    assert not is_gone(conn, 20)


def test_a_tick_drops_one_partition_and_does_nothing_else_then(db: Database) -> None:
    conn = db.connect()
    ended(conn, 32)
    kept = ended(conn, 10)
    assert tick(conn)["dropped"] == 0
    report = tick(conn)
    assert report["dropped"] == 1
    assert report["next_in_ms"] is not None
    assert "recovered" not in report
    # Between the two there are steps of no workflow: nobody can retry it without them.
    assert day_of(conn, 32) not in days(conn)
    assert day_of(conn, 32) in days(conn, "checkpoints")
    assert stored(conn) == set(kept)
    tick_until(conn, lambda: is_gone(conn, 32))


@pytest.mark.parametrize("function", ["status", "result", "history", "cancel", "retry"])
def test_a_removed_workflow_is_not_found_and_the_hint_names_the_retention(db: Database, function: str) -> None:
    conn = db.connect()
    (old,) = ended(conn, 40)
    tick_until(conn, lambda: is_gone(conn, 40))
    with refused("WF001") as info:
        call(conn, function, old)
    assert "retention" in str(info.value.diag.message_hint)


def test_a_key_is_free_as_soon_as_its_workflow_is_gone(db: Database) -> None:
    conn = db.connect()
    ended(conn, 40, 2, key="k")
    tick_until(conn, lambda: day_of(conn, 40) not in days(conn))
    assert value(conn, "select count(*) from durable.workflow_keys") == 2
    first = enqueue(conn, "another name", key="k1")
    assert enqueue(conn, "another name", key="k1") == first
    assert workflow(conn, first).key == "k1"
    tick_often(conn)
    # The one that was used again is the new workflow's, and stays.
    assert rows(conn, "select key, workflow_id from durable.workflow_keys") == [("k1", first)]
    with refused("WF003"):
        enqueue(conn, "w", key="k1")


def test_a_key_that_became_free_after_a_snapshot_is_free_in_it(db: Database) -> None:
    conn, old = db.connect(), db.connect()
    (gone,) = ended(conn, 40, key="k")
    old.execute("begin isolation level repeatable read")
    assert value(old, "select count(*) from durable.workflow_keys") == 1
    tick_until(conn, lambda: not rows(conn, "select from durable.workflow_keys"))
    workflow_id = enqueue(old, key="k1")
    assert workflow_id != gone
    old.execute("commit")
    assert enqueue(conn, key="k1") == workflow_id


def test_01_a_key_that_became_free_and_is_used_by_many_at_once_is_one_workflow(db: Database) -> None:
    conn = db.connect()
    ended(conn, 40, 5, key="k")
    tick_until(conn, lambda: day_of(conn, 40) not in days(conn))
    callers = 8
    barrier = threading.Barrier(callers + 1)
    connections = [db.connect() for _ in range(callers)]
    ticker = db.connect()

    def submit(one: Connection, number: int) -> list[UUID]:
        keys = [f"k{n}" for n in range(1, 6)]
        barrier.wait()
        found = call(one, "enqueue_many", "w", [{}] * 5, keys=keys if number % 2 else keys[::-1])
        ids = [row[0] for row in found]
        return ids if number % 2 else ids[::-1]

    def free() -> None:
        barrier.wait()
        tick_often(ticker)

    *answers, _ = at_once(*(lambda n=n, one=one: submit(one, n) for n, one in enumerate(connections)), free)
    assert all(answer == answers[0] for answer in answers)
    assert stored(conn) == set(answers[0])
    assert value(conn, "select count(*) from durable.workflow_keys") == 5


def test_the_key_of_an_unfinished_workflow_stays_taken_however_old_it_is(db: Database) -> None:
    conn = db.connect()
    claimed = began(conn, 50, key="mine")
    ended(conn, 50, 3, key="other ")
    tick_until(conn, lambda: stored(conn) == {claimed.workflow_id})
    tick_often(conn)
    assert enqueue(conn, key="mine") == claimed.workflow_id
    assert value(conn, "select count(*) from durable.workflow_keys") == 1


def test_an_unfinished_workflow_keeps_its_day_and_its_steps_and_no_other_rows(db: Database) -> None:
    conn = db.connect()
    claimed = began(conn, 50)
    call(conn, "checkpoint", claimed.workflow_id, claimed.lease, "mine", {"n": 1})
    ended(conn, 50, 25, key="k")
    tick_until(conn, lambda: stored(conn) == {claimed.workflow_id})
    tick_often(conn)
    assert list(steps(conn, claimed.workflow_id)) == ["mine"]
    assert value(conn, "select count(*) from durable.checkpoints") == 1
    assert value(conn, "select count(*) from durable.workflow_keys") == 0
    call(conn, "checkpoint", claimed.workflow_id, claimed.lease, "last", {})
    call(conn, "complete", claimed.workflow_id, claimed.lease, {"n": 2})
    # It ended just now, so it is kept from now on.
    tick_often(conn)
    assert workflow(conn, claimed.workflow_id).output == {"n": 2}
    assert set(steps(conn, claimed.workflow_id)) == {"mine", "last"}
    conn.execute("update durable.finished_workflows set completed_at = now() - interval '31 days'")
    tick_until(conn, lambda: is_gone(conn, 50))


@pytest.mark.parametrize("alone", [True, False], ids=["a whole day", "row by row"])
def test_children_are_kept_for_as_long_as_their_parent_is_unfinished(db: Database, alone: bool) -> None:
    conn = db.connect()
    parent = began(conn, 60)
    children = ended(conn, 50, 3, name="child")
    conn.execute(
        "update durable.finished_workflows set parent_id = %s where workflow_id = any(%s)",
        [parent.workflow_id, children],
    )
    if not alone:
        ended(conn, 50, 3)
    tick_often(conn)
    assert stored(conn) == {parent.workflow_id, *children}
    call(conn, "complete", parent.workflow_id, parent.lease)
    tick_until(conn, lambda: is_gone(conn, 50))
    assert stored(conn) == {parent.workflow_id}


def test_approvals_go_with_the_day_of_their_workflow_bit_by_bit_and_never_while_it_is_unfinished(db: Database) -> None:
    conn = db.connect()
    old = [began(conn, 40) for _ in range(5)]
    unfinished = began(conn, 41)
    for held in (*old, unfinished):
        call(conn, "request_approval", held.workflow_id, held.lease, "ask", "may I?")
    for held in old:
        call(conn, "complete", held.workflow_id, held.lease)
    tick_often(conn)
    assert value(conn, "select count(*) from durable.approvals") == 6
    conn.execute("update durable.finished_workflows set completed_at = completed_at - interval '35 days'")
    left = []
    for _ in range(40):
        tick(conn, 1)
        left.append(value(conn, "select count(*) from durable.approvals"))
    # Bit by bit: two at a tick.
    assert is_gone(conn, 40)
    assert list(dict.fromkeys(left)) == [6, 4, 2, 1]
    assert rows(conn, "select workflow_id, state from durable.approvals") == [(unfinished.workflow_id, "pending")]


def test_rows_are_deleted_in_batches_that_are_bounded_by_their_steps_too(db: Database) -> None:
    conn = db.connect()
    began(conn, 50)
    small = ended(conn, 50, 25)
    assert tick(conn, 10)["expired"] == 10
    assert value(conn, "select count(*) from durable.checkpoints") == 30
    # A tenth of a batch or more is a sign that there is more to do.
    assert tick(conn, 10)["next_in_ms"] is not None
    tick_until(conn, lambda: not stored(conn) & set(small))
    ended(conn, 50, 4)
    conn.execute(
        """insert into durable.checkpoints (workflow_id, completed_at, attempt, status, step_name)
           select workflow_id, completed_at, 1, 'completed', 's' || n from durable.finished_workflows, generate_series(1, 60) n"""
    )
    assert tick(conn, 10)["expired"] == 2
    # One that alone has more than that goes as a whole.
    assert tick(conn, 1)["expired"] == 1
    assert value(conn, "select count(*) from durable.checkpoints") == 62


def test_a_rule_for_a_name_counts_for_more_than_one_for_a_queue_and_both_for_more_than_the_setting(
    db: Database,
) -> None:
    conn = db.connect()
    call(conn, "configure", "retention", "10 days")
    call(conn, "retain", "60 days", queue="slow")
    call(conn, "retain", "2 days", queue="fast")
    call(conn, "retain", "30 days", workflow="audit")
    call(conn, "retain", "5 days", workflow="noise")
    kept = {
        *ended(conn, 8, 3),
        *ended(conn, 50, 3, queue="slow"),
        *ended(conn, 20, 3, name="audit"),
        *ended(conn, 20, 3, name="audit", queue="fast"),
        *ended(conn, 3, 3, name="noise", queue="fast"),
        *ended(conn, 3, 3, name="noise", queue="slow"),
    }
    for days_ago, name, queue in (
        (12, "w", "default"), (62, "w", "slow"), (4, "w", "fast"), (50, "audit", "slow"), (32, "audit", "default"),
        (8, "noise", "slow"), (8, "noise", "default"),
    ):  # fmt: skip
        ended(conn, days_ago, 3, name=name, queue=queue)
    tick_until(conn, lambda: stored(conn) == kept)
    tick_often(conn)
    assert stored(conn) == kept
    assert value(conn, "select count(*) from durable.checkpoints") == 2 * len(kept)
    # A day in which no rule keeps anything goes as a whole, though others that are older stay.
    tick_until(conn, lambda: is_gone(conn, 12) and is_gone(conn, 62) and is_gone(conn, 32))
    assert not is_gone(conn, 50)


def test_a_rule_is_replaced_and_taken_back(db: Database) -> None:
    conn = db.connect()
    old = ended(conn, 5)
    call(conn, "retain", "1 day", workflow="w")
    call(conn, "retain", "6 days", workflow="w")
    tick_often(conn)
    assert stored(conn) == set(old)
    call(conn, "retain", "1 day", workflow="w")
    call(conn, "retain", None, workflow="w")
    tick_often(conn)
    assert stored(conn) == set(old)
    assert rows(conn, "select * from durable.retention_rules") == []


def test_ten_years_are_longer_than_3650_days(db: Database) -> None:
    """As intervals they compare as 3,600 days."""
    conn = db.connect()
    call(conn, "configure", "retention", "3650 days")
    call(conn, "retain", "10 years", workflow="invoice")
    call(conn, "retain", "1 day", workflow="x")
    for name in ("invoice", "w"):
        enqueue(conn, name)
    for held in claim(conn, "worker", 2):
        call(conn, "complete", held.workflow_id, held.lease)
    for passed in ("3650 days 12 hours", "3652 days"):
        advance(conn, passed)
        tick_often(conn)
        assert rows(conn, "select name from durable.workflows") == [("invoice",)]
    advance(conn, "3656 days")
    tick_until(conn, lambda: not rows(conn, "select from durable.workflows"))


@pytest.mark.parametrize("rule", ["kept", "empty"])
def test_rows_of_a_queue_with_a_rule_are_looked_at_a_few_at_a_time(db: Database, rule: str) -> None:
    """Among many of one name that stay, those that go are found, and no tick reads all of them."""
    conn = db.connect()
    call(conn, "configure", "retention", "10 days" if rule == "kept" else "100 days")
    call(conn, "retain", "1 year" if rule == "kept" else "10 days", queue="ruled")
    stay, go = ("ruled", "default") if rule == "kept" else ("default", "ruled")
    kept = ended(conn, 40, 12_000, queue=stay)
    conn.execute(
        "update durable.finished_workflows set completed_at = completed_at + (random() * interval '1 hour')"
        " where workflow_id = any(%s) and random() < 0.7",
        [kept],
    )
    past = ended(conn, 40, 30, queue=go)
    conn.execute(
        "update durable.finished_workflows set completed_at = completed_at + (random() * interval '1 hour')"
        " where workflow_id = any(%s)",
        [past],
    )
    conn.execute("analyze")
    tick_until(conn, lambda: len(stored(conn)) == 12_000)
    assert stored(conn) == set(kept)
    for _ in range(20):
        tick(conn)
        looked_at = value(
            conn,
            "select sum(n.looked_at) from durable._expire_name('w', %s, '-infinity', now() - %s::interval, false, now(),"
            " interval '1 year', 500, 1000) n",
            day_of(conn, 40),
            "10 days" if rule == "kept" else "100 days",
        )
        assert 500 <= looked_at <= 4500
    assert stored(conn) == set(kept)


def test_a_day_that_cannot_be_dropped_holds_up_no_other(db: Database) -> None:
    conn = db.connect()
    stuck, old = ended(conn, 45), ended(conn, 44)
    ended(conn, 42)
    conn.execute(
        psycopg.sql.SQL("create view needs_it as select * from durable.{}").format(
            psycopg.sql.Identifier(f"finished_workflows_{day_of(conn, 45):%Y%m%d}")
        )
    )
    tick_until(conn, lambda: is_gone(conn, 44) and is_gone(conn, 42))
    assert not is_gone(conn, 45)
    # Its rows go one by one.
    tick_until(conn, lambda: not stored(conn) & {*stuck, *old})
    conn.execute("drop view needs_it")
    tick_until(conn, lambda: is_gone(conn, 45))


def test_a_hundred_years_are_for_ever(db: Database) -> None:
    conn = db.connect()
    call(conn, "configure", "retention", "100 years")
    old = ended(conn, 20_000, key="k")
    call(conn, "retain", "1 day", queue="other")
    gone = ended(conn, 20_000, queue="other", key="o")
    tick_until(conn, lambda: not stored(conn) & set(gone))
    tick_often(conn)
    assert stored(conn) == set(old)
    assert enqueue(conn, key="k1") == old[0]


def test_less_than_a_day_is_kept_by_the_hour(db: Database) -> None:
    conn = db.connect()
    call(conn, "configure", "retention", "1 hour")
    one, two, three = (enqueue(conn) for _ in range(3))
    for claimed in claim(conn, max_workflows=2):
        call(conn, "complete", claimed.workflow_id, claimed.lease)
    age(conn, "2 hours", [one])
    tick_until(conn, lambda: stored(conn) == {two, three})
    tick_often(conn)
    assert stored(conn) == {two, three}
    assert not is_gone(conn, 0)


@pytest.mark.parametrize("timezone", ["Etc/GMT+12", "UTC", "Pacific/Kiritimati"])
def test_a_day_ends_in_utc_wherever_the_session_is(db: Database, timezone: str) -> None:
    conn = db.connect()
    # Of the day that has not ended for as long as that, and of the one before. In the west that one has not, either, and in
    # the east both have.
    keep(conn, 30)
    young, old = ended(conn, 30), ended(conn, 31)
    conn.execute("select set_config('timezone', %s, false)", [timezone])
    tick_until(conn, lambda: is_gone(conn, 31))
    tick_often(conn)
    assert stored(conn) == set(young)
    assert not stored(conn) & set(old)


def test_partitions_of_today_and_later_are_never_dropped(db: Database) -> None:
    conn = db.connect()
    call(conn, "configure", "retention", "0")
    with conn.transaction():
        tick_often(conn)
        today = day_of(conn, 0)
    assert days(conn) >= {today, today + timedelta(days=1), today + timedelta(days=2)}
    assert days(conn) == days(conn, "checkpoints")


# Locks


def test_who_reads_the_history_for_long_is_waited_for_by_nobody(db: Database) -> None:
    conn, reader = db.connect(), db.connect(autocommit=False)
    ended(conn, 31)
    reader.execute("select count(*) from durable.workflows")
    claimed = [*claim(conn, max_workflows=1)] or [None]
    assert claimed == [None]
    for _ in range(10):
        assert tick(conn)["dropped"] == 0
        workflow_id = enqueue(conn)
        conn.execute("set lock_timeout = 1")
        call(conn, "complete", workflow_id, claim_one(conn).lease)
        conn.execute("reset lock_timeout")
    reader.commit()
    tick_until(conn, lambda: is_gone(conn, 31))


def test_a_reader_who_comes_just_before_the_lock_stops_the_drop_and_not_the_tick(db: Database) -> None:
    conn, reader = db.connect(), db.connect(autocommit=False)
    ended(conn, 31)
    assert tick(conn)["dropped"] == 0
    # It was not there at the look before, so that this tick asks for the lock, and gives up.
    reader.execute("select count(*) from durable.workflows")
    report = tick(conn)
    assert report["dropped"] == 0
    assert report["recovered"] == 0
    reader.commit()
    tick_until(conn, lambda: is_gone(conn, 31))


def test_what_is_in_use_all_the_time_is_deleted_row_by_row_a_day_later(db: Database) -> None:
    conn, reader = db.connect(), db.connect(autocommit=False)
    keep(conn, 30)
    young, old = ended(conn, 31, 4), ended(conn, 33, 4)
    reader.execute("select count(*) from durable.workflows")
    tick_until(conn, lambda: not stored(conn) & set(old))
    tick_often(conn)
    assert stored(conn) == set(young)
    assert not is_gone(conn, 33)


def test_dropping_a_day_locks_no_other_day(db: Database) -> None:
    conn, other = db.connect(), db.connect(autocommit=False)
    ended(conn, 31)
    # As an autovacuum of today's does, and for longer than a tick would wait.
    other.execute(
        f"lock table only durable.finished_workflows_{day_of(conn, 0):%Y%m%d} in share update exclusive mode".encode()
    )
    tick_until(conn, lambda: is_gone(conn, 31))


def test_a_day_is_not_dropped_in_a_transaction_whose_snapshot_is_old(db: Database) -> None:
    conn, ticker = db.connect(), db.connect(autocommit=False)
    claimed = began(conn, 40)
    call(conn, "checkpoint", claimed.workflow_id, claimed.lease, "mine", {})
    call(conn, "fail", claimed.workflow_id, claimed.lease, {"message": "no"})
    conn.execute("update durable.finished_workflows set completed_at = created_at")
    tick(conn)
    ticker.execute("set transaction isolation level repeatable read")
    ticker.execute("select 1")
    call(conn, "retry", claimed.workflow_id)
    for _ in range(5):
        ticker.execute("select durable.tick()")
    ticker.rollback()
    assert list(steps(conn, claimed.workflow_id)) == ["mine"]


def test_a_retry_and_the_drop_of_its_day_do_not_both_happen(db: Database) -> None:
    conn, retrier, observer = db.connect(), db.connect(), db.connect()
    claimed = began(conn, 40)
    call(conn, "checkpoint", claimed.workflow_id, claimed.lease, "mine", {})
    call(conn, "fail", claimed.workflow_id, claimed.lease, {"message": "no"})
    conn.execute("update durable.finished_workflows set completed_at = created_at")
    dropping = db.connect(autocommit=False)
    # The drop first: the retry waits, and finds nothing.
    assert tick(dropping)["dropped"] == 0
    dropping.commit()
    assert tick(dropping)["dropped"] == 1

    def retry() -> None:
        with refused("WF001"):
            call(retrier, "retry", claimed.workflow_id)

    def commit() -> None:
        wait_until_blocked(observer, retrier)
        dropping.commit()

    at_once(retry, commit)
    assert stored(conn) == set()


def test_a_retried_workflow_keeps_its_steps_and_its_day(db: Database) -> None:
    conn, retrier = db.connect(), db.connect(autocommit=False)
    claimed = began(conn, 40)
    call(conn, "checkpoint", claimed.workflow_id, claimed.lease, "mine", {})
    call(conn, "fail", claimed.workflow_id, claimed.lease, {"message": "no"})
    conn.execute("update durable.finished_workflows set completed_at = created_at")
    call(retrier, "retry", claimed.workflow_id)
    tick_often(conn)
    retrier.commit()
    tick_often(conn)
    assert list(steps(conn, claimed.workflow_id)) == ["mine"]
    assert workflow(conn, claimed.workflow_id).status == "pending"


def test_work_goes_on_without_errors_and_deadlocks_while_days_are_dropped(db: Database) -> None:
    conn = db.connect()
    for days_ago in range(31, 36):
        ended(conn, days_ago, 50, key=f"{days_ago} ")
    call(conn, "retain", "1 hour", workflow="short")
    pinned = [began(conn, days_ago) for days_ago in (60, 61)]
    over = threading.Event()

    def expire_short(one: Connection) -> None:
        short = rows(one, "select workflow_id from durable.finished_workflows where name = 'short'")
        age(one, "2 hours", [row[0] for row in short])

    def work(number: int) -> int:
        one, queue, count = db.connect(), f"queue {number}", 0
        while not over.is_set():
            call(
                one,
                "enqueue_many",
                "short" if number % 2 else "w",
                [{}] * 10,
                queue,
                keys=[f"{number} {count} {n}" for n in range(10)],
            )
            claimed = claim(one, f"worker {number}", 10, [queue])
            ids, leases = [c.workflow_id for c in claimed], [c.lease for c in claimed]
            half = len(ids) // 2
            kept = call(one, "checkpoint_many", ids, leases, ["s"] * len(ids), [{}] * len(ids))
            assert {row.outcome for row in kept} == {"ok"}
            # All three orders in which a transaction can come to the two tables.
            done = call(one, "flush", ids[:half], leases[:half], ["t"] * half, [{}] * half, [1] * half, [1] * half,
                        ids[:half], leases[:half], [{}] * half)  # fmt: skip
            assert done == []
            with one.transaction():
                done = call(one, "complete_many", ids[half:], leases[half:], [{}] * (len(ids) - half))
                call(one, "history", ids[-1])
            assert {row.outcome for row in done} == {"ok"}
            count += len(ids)
        return count

    def expire() -> None:
        try:
            ticker = db.connect()
            tick_until(ticker, lambda: all(is_gone(ticker, days_ago) for days_ago in range(31, 36)))
            expire_short(ticker)
            tick_until(
                ticker,
                lambda: (
                    rows(
                        ticker,
                        "select from durable.workflows where name = 'short' and completed_at < now() - interval '1 hour'",
                    )
                    == []
                ),
            )
            for claimed in pinned:
                call(ticker, "checkpoint", claimed.workflow_id, claimed.lease, "s", {})
        finally:
            over.set()

    *counts, _ = at_once(*(lambda n=n: work(n) for n in range(4)), expire)
    assert all(counts)
    expire_short(conn)
    tick_until(conn, lambda: rows(conn, "select from durable.workflows where name = 'short'") == [])
    kept = counts[0] + counts[2]
    assert value(conn, "select count(*) from durable.workflows where name = 'w' and status = 'completed'") == kept
    assert value(conn, "select count(*) from durable.workflow_keys where key ~ '^[02] '") == kept
    assert value(conn, "select count(*) from durable.workflows where status = 'running'") == 2
    assert value(conn, "select deadlocks from pg_stat_database where datname = current_database()") == 0


# Arguments


@pytest.mark.parametrize(
    ("keep", "named"),
    [
        ("1 day", {}),
        ("1 day", {"queue": "q", "workflow": "w"}),
        ("-1 day", {"queue": "q"}),
        ("101 years", {"workflow": "w"}),
    ],
)
def test_an_impossible_rule_is_refused(db: Database, keep: str, named: dict[str, str]) -> None:
    conn = db.connect()
    with refused("WF005"):
        call(conn, "retain", keep, **named)
    assert rows(conn, "select * from durable.retention_rules") == []


@pytest.mark.parametrize(
    "detached", [["finished_workflows"], ["checkpoints"], ["finished_workflows", "checkpoints"]], ids="-".join
)
def test_a_day_that_somebody_detached_is_neither_dropped_nor_forgotten(db: Database, detached: list[str]) -> None:
    conn = db.connect()
    kept = ended(conn, 50, 3, key="kept ")
    ended(conn, 60, 3)
    tables = [f"durable.{parent}{day_of(conn, 50):_%Y%m%d}" for parent in ("finished_workflows", "checkpoints")]
    for parent in detached:
        conn.execute(
            f"alter table durable.{parent} detach partition durable.{parent}{day_of(conn, 50):_%Y%m%d}".encode()
        )
    tick_until(conn, lambda: is_gone(conn, 60))
    if detached == ["checkpoints"]:
        # The workflows are past their time, and their day is dropped; what somebody took out of it is his.
        tick_until(conn, lambda: day_of(conn, 50) not in days(conn))
        assert value(conn, f"select count(*) from {tables[1]}") == 6
        return
    tick_often(conn)
    assert [value(conn, f"select count(*) from {table}") for table in tables] == [3, 6]
    assert value(conn, "select count(*) from durable.workflow_keys where workflow_id = any(%s)", kept) == 3


def test_a_day_that_is_about_to_be_detached_is_not_dropped(db: Database) -> None:
    conn, reader = db.connect(), db.connect(autocommit=False)
    kept = ended(conn, 50, 3)
    call(conn, "retain", "1 year", workflow="w")
    reader.execute("select count(*) from durable.finished_workflows")
    # It waits for the reader, and is stopped between its two transactions.
    conn.execute("set statement_timeout = '300ms'")
    with refused("57014"):
        conn.execute(
            f"alter table durable.finished_workflows detach partition durable.finished_workflows{day_of(conn, 50):_%Y%m%d} concurrently".encode()
        )
    conn.execute("reset statement_timeout")
    reader.rollback()
    assert value(conn, "select count(*) from pg_inherits where inhdetachpending") == 1
    tick_often(conn)
    conn.execute(
        f"alter table durable.finished_workflows detach partition durable.finished_workflows{day_of(conn, 50):_%Y%m%d} finalize".encode()
    )
    assert value(conn, f"select count(*) from durable.finished_workflows{day_of(conn, 50):_%Y%m%d}") == 3
    assert value(conn, "select count(*) from durable.checkpoints where workflow_id = any(%s)", kept) == 6


def test_a_day_that_somebody_dropped_leaves_nothing_of_its_workflows(db: Database) -> None:
    conn = db.connect()
    ended(conn, 50, 30, key="gone ")
    kept = ended(conn, 3, 30, key="kept ")
    day = f"{day_of(conn, 50):_%Y%m%d}"
    conn.execute(f"drop table durable.finished_workflows{day}, durable.checkpoints{day}".encode())
    tick_until(conn, lambda: value(conn, "select count(*) from durable.workflow_keys") == 30)
    assert stored(conn) == set(kept)


def test_what_is_left_of_a_dropped_day_is_found_behind_much_that_stays(db: Database) -> None:
    conn = db.connect()
    ended(conn, 50, 30, key="gone ")
    # Unfinished, of the same day, and before the others: all they have stays.
    conn.execute(
        """insert into durable.workflow_keys (key, name, workflow_id)
           select 'live ' || n, 'w', (left(durable._first_id(d.at)::text, 24) || lpad(to_hex(n), 12, '0'))::uuid
           from generate_series(1, 50) n, (select durable._start_of(%s) + interval '1 hour' as at) d""",
        [day_of(conn, 50)],
    )
    conn.execute(
        """insert into durable.live_workflows (workflow_id, line_id, created_at, status, name, queue, wake_at)
           select k.workflow_id, 0, now(), 'pending', 'w', 'later', 'infinity' from durable.workflow_keys k
           where k.key like 'live%'"""
    )
    day = day_of(conn, 50)
    conn.execute(f"drop table durable.finished_workflows_{day:%Y%m%d}, durable.checkpoints_{day:%Y%m%d}".encode())
    conn.execute("insert into durable.dropped_days (day) values (%s)", [day])
    for _ in range(20):
        # Ten workflows at a time.
        tick(conn, 5)
    left = {row[0].partition(" ")[0] for row in rows(conn, "select key from durable.workflow_keys")}
    assert left == {"live"}


def test_all_that_has_the_id_of_a_workflow_goes_with_it_or_is_known_to_stay(db: Database) -> None:
    conn = db.connect()
    # Unfinished or waiting, or partitioned by day; a firing stays listed as long as its own setting says.
    others = {"live_workflows", "finished_workflows", "checkpoints", "waits", "late_wakes", "schedule_firings"}
    tables = {
        row[0]
        for row in rows(
            conn,
            """select c.relname::text from pg_class c join pg_attribute a on a.attrelid = c.oid and a.attname = 'workflow_id'
               where c.relnamespace = 'durable'::regnamespace and c.relkind in ('r', 'p') and not c.relispartition
                 and c.relname !~ '_shape$'""",
        )
    }
    for function in ("_belongings", "_forget"):
        source = value(
            conn, "select prosrc from pg_proc where proname = %s and pronamespace = 'durable'::regnamespace", function
        )
        assert {table for table in tables if f"durable.{table} " in source} == tables - others
