"""The cursors of the claim and of the tick: they skip what left the line, and nothing that is in it, or comes late."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from statistics import median
from typing import Any
from uuid import UUID

import pytest

from clusters import Database
from engine import Connection, call, claim, enqueue, rows, value

pytestmark = pytest.mark.pg(15, 18)

PATIENCE = 20.0


def mark(conn: Connection, line: str = "durable._line_id('default', 0, 'w')", queue: str = "default") -> Any:
    found = rows(
        conn,
        f"""select m.seen_xid, i.safe_seq, i.start_seq
            from (select * from durable.line_marks where queue = %s order by version desc limit 1) m,
              unnest(m.line_ids, m.safe_seqs, m.start_seqs) as i(line_id, safe_seq, start_seq) where i.line_id = {line}""",
        queue,
    )
    return found[0] if found else None


def set_marks(conn: Connection, seq: int, also: str) -> None:
    """Sets the marks of all lines to a place."""
    conn.execute(
        f"""update durable.line_marks set seen_seq = {seq}, {also},
              safe_seqs = array_fill({seq}::bigint, array[cardinality(line_ids)]),
              start_seqs = array_fill({seq}::bigint, array[cardinality(line_ids)])""".encode()
    )


def until(reached: Callable[[], bool]) -> None:
    give_up = time.monotonic() + PATIENCE
    while not reached():
        assert time.monotonic() < give_up
        time.sleep(0.05)


def pass_the_line(conn: Connection, seq: int) -> None:
    """Work goes on until claims begin behind a place."""

    def passed() -> bool:
        enqueue(conn)
        assert len(claim(conn, "busy", 10)) >= 1
        reached = mark(conn)
        return reached is not None and bool(reached.start_seq >= seq)

    until(passed)


def claimed_in_the_end(conn: Connection, workflow_id: UUID) -> None:
    until(lambda: any(row.workflow_id == workflow_id for row in claim(conn, "late", 100)))


def place(conn: Connection, workflow_id: UUID) -> int:
    seq = value(conn, "select ready_seq from durable.live_workflows where workflow_id = %s", workflow_id)
    assert isinstance(seq, int)
    return seq


@contextmanager
def open_snapshot(db: Database) -> Iterator[None]:
    conn = db.connect(autocommit=False)
    conn.execute("set transaction isolation level repeatable read")
    conn.execute("select count(*) from durable.live_workflows")
    yield
    conn.rollback()


def test_what_is_committed_late_is_claimed_though_the_cursor_has_passed_it(db: Database) -> None:
    conn, slow = db.connect(), db.connect(autocommit=False)
    late = enqueue(slow)
    seq = place(slow, late)
    pass_the_line(conn, seq)
    assert mark(conn).safe_seq < seq
    slow.commit()
    claimed_in_the_end(conn, late)
    # Nothing is open any more, so both ends of the cursor come together again.
    pass_the_line(conn, seq)
    until(lambda: claim(conn, "idle") == [] and mark(conn).safe_seq >= seq)


def test_what_is_committed_late_from_a_subtransaction_is_claimed(db: Database) -> None:
    conn, slow = db.connect(), db.connect(autocommit=False)
    slow.execute("savepoint outer_one")
    slow.execute("create table mine (n int)")
    slow.execute("savepoint inner_one")
    late = enqueue(slow)
    seq = place(slow, late)
    pass_the_line(conn, seq)
    slow.execute("release savepoint inner_one")
    slow.commit()
    claimed_in_the_end(conn, late)


def test_what_is_committed_late_with_a_prepared_transaction_is_claimed(preparing_db: Database) -> None:
    conn, slow = preparing_db.connect(), preparing_db.connect(autocommit=False)
    late = enqueue(slow)
    seq = place(slow, late)
    name = f"late {preparing_db.name}"
    slow.execute(f"prepare transaction '{name}'".encode())
    slow.commit()
    try:
        pass_the_line(conn, seq)
        assert mark(conn).safe_seq < seq
    finally:
        conn.execute(f"commit prepared '{name}'".encode())
    claimed_in_the_end(conn, late)


def test_a_rollback_leaves_a_gap_that_the_cursor_passes(db: Database) -> None:
    conn, slow = db.connect(), db.connect(autocommit=False)
    seq = place(slow, enqueue(slow))
    slow.rollback()
    pass_the_line(conn, seq)
    until(lambda: claim(conn, "idle") == [] and mark(conn).safe_seq >= seq)


def test_a_transaction_that_took_its_xid_long_before_its_place_is_waited_for(db: Database) -> None:
    conn, slow = db.connect(), db.connect(autocommit=False)
    slow.execute("select pg_current_xact_id()")
    pass_the_line(conn, 1)
    late = enqueue(slow)
    seq = place(slow, late)
    pass_the_line(conn, seq)
    assert mark(conn).safe_seq < seq
    slow.commit()
    claimed_in_the_end(conn, late)


def test_a_line_of_its_own_priority_is_not_passed_with_another(db: Database) -> None:
    conn, slow = db.connect(), db.connect(autocommit=False)
    urgent = enqueue(slow, priority=-5)
    seq = place(slow, urgent)
    pass_the_line(conn, seq)
    enqueue(conn)
    slow.commit()
    assert [row.workflow_id for row in claim(conn, "late", 1)] == [urgent]


def test_what_becomes_ready_again_stands_behind_the_cursor(db: Database) -> None:
    conn = db.connect()
    workflow_id = enqueue(conn)
    was_at = place(conn, workflow_id)
    (held,) = claim(conn, "first")
    pass_the_line(conn, was_at)
    call(conn, "release_many", [workflow_id], [held.lease])
    assert place(conn, workflow_id) > was_at
    (again,) = claim(conn, "second")
    assert (again.workflow_id, again.lease > held.lease) == (workflow_id, True)


def test_the_sweep_finds_what_a_wrong_cursor_has_passed(db: Database) -> None:
    conn = db.connect()
    pass_the_line(conn, 1)
    lost = enqueue(conn)
    # Nothing does this; the sweep is the net under what nobody thought of.
    seq = place(conn, lost) + 1000
    set_marks(conn, seq, f"next_seq = {seq}, sweep_at = clock_timestamp() + interval '1 second'")
    assert claim(conn, "now") == []
    claimed_in_the_end(conn, lost)


def test_a_cursor_of_a_clock_that_was_set_back_moves_on(db: Database) -> None:
    conn = db.connect()
    busy_at = place(conn, enqueue(conn))
    pass_the_line(conn, busy_at)
    late = enqueue(conn)
    ahead = ", ".join(f"{column} = now() + interval '1 hour'" for column in ("next_at", "moved_at", "sweep_at"))
    set_marks(conn, 1000, ahead)
    claimed_in_the_end(conn, late)
    latest = value(conn, "select max(greatest(next_at, moved_at, sweep_at)) from durable.line_marks where queue <> ''")
    assert latest < value(conn, "select now() + interval '2 minutes'")


def test_a_cursor_from_another_server_starts_anew(db: Database) -> None:
    conn = db.connect()
    pass_the_line(conn, 1)
    lost = enqueue(conn)
    set_marks(conn, 1_000_000, "seen_xid = '99999999999', sweep_at = now()")
    claimed_in_the_end(conn, lost)
    assert int(value(conn, "select max(seen_xid) from durable.line_marks where queue <> ''")) < 99999999999


def index_reads(conn: Connection, index: str) -> int:
    conn.execute("select pg_stat_force_next_flush()")
    conn.execute("select pg_stat_clear_snapshot()")
    found = value(conn, "select idx_tup_read from pg_stat_user_indexes where indexrelname = %s", index)
    assert isinstance(found, int)
    return found


@pytest.mark.parametrize("writes", [False, True], ids=["read-only", "writing"])
def test_claims_do_not_wade_through_what_an_open_transaction_keeps(db: Database, writes: bool) -> None:
    conn = db.connect()

    def work(pause: float = 0) -> int:
        # The cursor moves ten times a second at the most.
        time.sleep(pause)
        before = index_reads(conn, "live_workflows_ready_idx")
        conn.execute("select durable.enqueue_many('w', array_fill('{}'::jsonb, array[100]))")
        got = claim(conn, "worker", 100)
        call(conn, "complete_many", [row.workflow_id for row in got], [row.lease for row in got], [{}] * len(got))
        return index_reads(conn, "live_workflows_ready_idx") - before

    with open_snapshot(db):
        other = db.connect(autocommit=False)
        other.execute("select pg_current_xact_id()" if writes else "select 1")
        for _ in range(100):
            work()
        if writes:
            # Then the cursor goes on by seconds.
            time.sleep(2.5)
            work()
            time.sleep(2.5)
        read = [work(0.11) for _ in range(9)]
        other.rollback()
    # A batch of 100 is read by the claim and by the look-ups of the cursor; the open transaction keeps over 10,000. One or
    # two may have met the sweep.
    assert median(read) < 1500


def test_a_start_that_is_committed_after_its_time_is_woken(db: Database) -> None:
    conn, slow = db.connect(), db.connect(autocommit=False)
    ((late,),) = rows(slow, "select durable.enqueue('w', run_at => clock_timestamp() + interval '0.3 seconds')")
    due = value(slow, "select extract(epoch from wake_at) * 1000000 from durable.live_workflows")

    def passed() -> bool:
        call(
            conn,
            "enqueue",
            "w",
            queue="other",
            run_at=value(conn, "select clock_timestamp() + interval '1 millisecond'"),
        )
        call(conn, "tick")
        reached = mark(conn, "0", "")
        return reached is not None and bool(reached.start_seq > due + 5_000_000)

    until(passed)
    assert mark(conn, "0", "").safe_seq < due
    slow.commit()
    until(lambda: bool(call(conn, "tick")) and any(row.workflow_id == late for row in claim(conn, "late", 100)))


def test_a_deadline_that_passes_while_another_transaction_is_open_is_enforced(db: Database) -> None:
    conn, other = db.connect(), db.connect(autocommit=False)
    other.execute("select pg_current_xact_id()")
    late = enqueue(conn, timeout="1 second")
    claim(conn)

    def failed() -> bool:
        call(conn, "tick")
        return bool(value(conn, "select durable.status(%s) = 'failed'", late))

    until(failed)
    other.rollback()


@pytest.mark.parametrize("index", ["live_workflows_wake_idx", "live_workflows_deadline_idx"])
def test_ticks_do_not_wade_through_what_an_open_transaction_keeps(db: Database, index: str) -> None:
    conn = db.connect()
    column = "wake_at" if "wake" in index else "deadline"

    def settle() -> None:
        for _ in range(8):
            call(conn, "tick")
            time.sleep(0.15)

    with open_snapshot(db):
        for _ in range(3):
            # As if a tenth of them had been held up for eleven seconds; they leave the line without a tick.
            conn.execute(
                f"""insert into durable.live_workflows (workflow_id, line_id, {column}, ready_seq, created_at, status, name, queue)
                    select durable._new_id(), 0, clock_timestamp() - interval '11 seconds' + n * interval '1 microsecond',
                      {"null" if column == "wake_at" else "n"}, now(), 'pending', 'w', 'elsewhere' from generate_series(1, 5000) n""".encode()
            )
            conn.execute("delete from durable.live_workflows")
            settle()
        before = index_reads(conn, index)
        call(conn, "tick")
        read = index_reads(conn, index) - before
    assert read < 100
