"""Suspects: of all that a worker held when it died, the one that killed it is blamed, and no other."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any
from uuid import UUID

import pytest

from clusters import Database
from engine import Connection, call, claim, claim_one, kill_worker, rows, value, workflow

pytestmark = pytest.mark.pg(15, 18)


def enqueue_many(conn: Connection, count: int, name: str = "w", **named: Any) -> list[UUID]:
    return [row[0] for row in call(conn, "enqueue_many", name, [{}] * count, **named)]


def die(conn: Connection, *workers: str) -> int:
    """Workers that are killed, and recovered; returns how many workflows they held."""
    for worker in workers:
        kill_worker(conn, worker)
    return int(value(conn, "select durable.recover()"))


def counts(conn: Connection, workflow_ids: Sequence[UUID]) -> list[tuple[int, int]]:
    """Suspicions and crashes, in the order of the ids."""
    found = {
        row.workflow_id: (row.suspicions, row.crashes)
        for row in rows(
            conn,
            "select workflow_id, suspicions, crashes from durable.live_workflows where workflow_id = any(%s)",
            list(workflow_ids),
        )
    }
    return [found[workflow_id] for workflow_id in workflow_ids]


def suspects(conn: Connection, count: int, name: str = "w", **named: Any) -> list[UUID]:
    """Makes suspects: what two workers held when they died."""
    ids = enqueue_many(conn, count, name, **named)
    for _ in range(2):
        got = call(conn, "claim", "doomed", [named.get("queue", "default")], 1000, [name])
        assert {c.workflow_id for c in got} == set(ids)
        assert die(conn, "doomed") == count
    assert set(counts(conn, ids)) == {(2, 0)}
    return ids


def held_suspects(conn: Connection, worker: str = "worker") -> list[UUID]:
    return [
        row.workflow_id
        for row in rows(
            conn,
            """select l.workflow_id from durable.live_workflows l join durable.workers w on w.worker_id = l.worker_id
               where w.name = %s and l.suspicions >= 2""",
            worker,
        )
    ]


def ids_of(claimed: Sequence[Any]) -> set[UUID]:
    return {c.workflow_id for c in claimed}


# What a death does


def test_the_first_death_is_held_against_all_that_the_worker_had_and_counts_nothing(db: Database) -> None:
    conn = db.connect()
    ids, others = enqueue_many(conn, 20), enqueue_many(conn, 5, "other")
    call(conn, "claim", "worker", ["default"], 20)
    assert die(conn, "worker") == 20
    assert counts(conn, ids) == [(1, 0)] * 20
    assert counts(conn, others) == [(0, 0)] * 5
    # They are no suspects: all of them are claimed at once, before what is new.
    assert ids_of(claim(conn, "next", 25)) == {*ids, *others}
    assert held_suspects(conn, "next") == []
    row = workflow(conn, ids[0])
    assert (row.attempt, row.crashes, row.failures) == (2, 0, 0)


def test_the_second_death_makes_suspects(db: Database) -> None:
    conn = db.connect()
    once, twice = enqueue_many(conn, 3), enqueue_many(conn, 3, "twice")
    call(conn, "claim", "worker", ["default"], 3, ["twice"])
    die(conn, "worker")
    claim(conn, "worker", 6)
    die(conn, "worker")
    assert counts(conn, once + twice) == [(1, 0)] * 3 + [(2, 0)] * 3
    got = claim(conn, "worker", 100)
    assert len(got) == 4
    assert ids_of(got) > set(once)
    assert len(held_suspects(conn)) == 1


def test_a_worker_that_dies_with_a_suspect_blames_that_one_and_no_other(db: Database) -> None:
    conn = db.connect()
    bad = suspects(conn, 3)
    others = enqueue_many(conn, 10, "other")
    got = claim(conn, "worker", 100)
    assert len(got) == 11
    (suspect,) = held_suspects(conn)
    assert die(conn, "worker") == 11
    assert counts(conn, others) == [(0, 0)] * 10
    assert sorted(counts(conn, bad)) == [(2, 0), (2, 0), (2, 1)]
    assert counts(conn, [suspect]) == [(2, 1)]
    # So the others may go on: none of them waits for its turn.
    assert ids_of(claim(conn, "next", 100)) > set(others)


def test_a_suspicion_of_before_does_not_grow_when_another_one_is_to_blame(db: Database) -> None:
    conn = db.connect()
    enqueue_many(conn, 5)
    ids = [c.workflow_id for c in claim(conn, "worker", 5)]
    die(conn, "worker")
    suspects(conn, 1, "bad")
    for _ in range(3):
        claim(conn, "worker", 100)
        assert len(held_suspects(conn)) == 1
        assert die(conn, "worker") == 6
        assert counts(conn, ids) == [(1, 0)] * 5


def test_one_that_is_blamed_too_often_is_given_up(db: Database) -> None:
    conn = db.connect()
    assert value(conn, "select value from durable.settings where name = 'max_crashes'") == "10"
    (bad,) = suspects(conn, 1)
    (other,) = enqueue_many(conn, 1, "other")
    for crash in range(11):
        assert counts(conn, [bad, other]) == [(2, crash), (0, 0)]
        assert ids_of(claim(conn, f"w{crash}", 10)) == {bad, other}
        assert die(conn, f"w{crash}") == 2
    row = workflow(conn, bad)
    assert (row.status, row.crashes, row.failures, row.error["code"]) == ("failed", 11, 0, "WF009")
    assert "11 crashes" in row.error_message
    assert ids_of(claim(conn, "next", 10)) == {other}
    assert counts(conn, [other]) == [(0, 0)]


def test_the_setting_for_crashes_counts_those_that_were_to_blame(db: Database) -> None:
    conn = db.connect()
    call(conn, "configure", "max_crashes", "1")
    bad = suspects(conn, 2)
    for _ in range(2):
        claim(conn, "one", 100)
        claim(conn, "two", 100)
        assert [len(held_suspects(conn, worker)) for worker in ("one", "two")] == [1, 1]
        assert die(conn, "one", "two") == 2
    assert {workflow(conn, workflow_id).error["code"] for workflow_id in bad} == {"WF009"}


@pytest.mark.parametrize("size", [1, 2, 7])
def test_recovery_in_batches_blames_the_right_one(db: Database, size: int) -> None:
    conn = db.connect()
    (bad,) = suspects(conn, 1)
    others = enqueue_many(conn, 9, "other")
    assert len(claim(conn, "worker", 100)) == 10
    unsuspected = enqueue_many(conn, 5, "another")
    assert len(claim(conn, "second", 100)) == 5
    kill_worker(conn, "worker")
    kill_worker(conn, "second")
    recovered = 0
    while done := value(conn, "select durable.recover(%s)", size):
        assert done <= size
        recovered += done
    assert recovered == 15
    assert counts(conn, [bad, *others, *unsuspected]) == [(2, 1)] + [(0, 0)] * 9 + [(1, 0)] * 5


def test_in_batches_it_stays_to_blame_also_after_somebody_else_has_claimed_it_and_ended_it(db: Database) -> None:
    conn = db.connect()
    (bad,) = suspects(conn, 1)
    others = enqueue_many(conn, 9, "other")
    claim(conn, "worker", 100)
    kill_worker(conn, "worker")
    while counts(conn, [bad]) == [(2, 0)]:
        assert value(conn, "select durable.recover(1)") == 1
    got = {c.workflow_id: c for c in claim(conn, "next", 100)}
    call(conn, "complete", bad, got[bad].lease, {})
    call(conn, "release_many", list(got), [c.lease for c in got.values()])
    while value(conn, "select durable.recover(1)"):
        pass
    assert counts(conn, others) == [(0, 0)] * 9


def test_a_claim_that_commits_after_the_death_of_its_worker_is_not_blamed_on_what_it_did_not_hold(db: Database) -> None:
    conn, slow = db.connect(), db.connect(autocommit=False)
    claim(conn, "worker")
    ids = enqueue_many(conn, 3)
    assert ids_of(claim(slow, "worker", 3)) == set(ids)
    assert die(conn, "worker") == 0
    slow.commit()
    assert value(conn, "select durable.recover()") == 3
    assert counts(conn, ids) == [(1, 0)] * 3


def test_a_worker_whose_claim_of_a_suspect_is_open_is_not_buried_before_it_is_known_who_is_to_blame(
    db: Database,
) -> None:
    conn, slow = db.connect(), db.connect(autocommit=False)
    claim(conn, "worker")
    (bad,) = suspects(conn, 1)
    (other,) = enqueue_many(conn, 1, "other")
    kill_worker(conn, "worker")
    assert ids_of(claim(slow, "worker", 10)) == {bad, other}
    assert value(conn, "select durable.recover()") == 0
    slow.commit()
    # It would have half a lease to send a heartbeat.
    conn.execute("delete from durable.kept_workers")
    assert value(conn, "select durable.recover()") == 2
    assert counts(conn, [bad, other]) == [(2, 1), (0, 0)]


def test_leaving_counts_nothing_and_suspects_nobody(db: Database) -> None:
    conn = db.connect()
    (bad,) = suspects(conn, 1)
    others = enqueue_many(conn, 3, "other")
    for n in range(3):
        assert ids_of(claim(conn, f"w{n}", 10)) == {bad, *others}
        assert call(conn, "leave", f"w{n}") == [(4,)]
        assert counts(conn, [bad, *others]) == [(2, 0)] + [(0, 0)] * 3
    # What was a suspect is one.
    more = suspects(conn, 1, "more")
    got = claim(conn, "worker", 10)
    assert len(ids_of(got) & {bad, *more}) == 1


@pytest.mark.parametrize("end", ["given up", "cancelled"])
def test_after_a_retry_by_an_operator_there_is_no_suspicion(db: Database, end: str) -> None:
    conn = db.connect()
    call(conn, "configure", "max_crashes", "1")
    ids = suspects(conn, 2)
    if end == "given up":
        for _ in range(4):
            claim(conn, "worker", 10)
            die(conn, "worker")
    else:
        for workflow_id in ids:
            call(conn, "cancel", workflow_id)
    assert call(conn, "retry_many", ids) == [(2,)]
    assert counts(conn, ids) == [(0, 0)] * 2
    assert ids_of(claim(conn, "worker", 10)) == set(ids)
    assert held_suspects(conn) == []
    die(conn, "worker")
    assert counts(conn, ids) == [(1, 0)] * 2


def test_forks_and_the_runs_after_a_suspect_have_no_suspicion(db: Database) -> None:
    conn = db.connect()
    (bad,) = suspects(conn, 1)
    ((fork,),) = call(conn, "fork", bad)
    held = {c.workflow_id: c for c in claim(conn, "worker", 10)}
    assert set(held) == {bad, fork}
    ((following,),) = call(conn, "continue_as_new", bad, held[bad].lease, {})
    assert counts(conn, [fork, following]) == [(0, 0)] * 2
    assert claim_one(conn, "worker").workflow_id == following
    die(conn, "worker")
    assert counts(conn, [fork, following]) == [(1, 0)] * 2


# A worker has one at the most


@pytest.mark.parametrize("most", [1, 3, 100])
def test_a_worker_never_holds_two_suspects(db: Database, most: int) -> None:
    conn = db.connect()
    bad = suspects(conn, 10)
    ordinary = enqueue_many(conn, 10, "other")
    got = []
    while batch := claim(conn, max_workflows=most):
        got += batch
        assert len(held_suspects(conn)) <= 1
    assert len(ids_of(got) & set(bad)) == 1
    assert ids_of(got) >= set(ordinary)
    # Others have one of their own each.
    for n in range(9):
        (only,) = claim(conn, f"w{n}", most)
        assert only.workflow_id in bad
    assert claim(conn, "late", most) == []


def test_a_worker_holds_one_suspect_across_names_queues_and_priorities(db: Database) -> None:
    conn = db.connect()
    bad = [
        workflow_id
        for name in ("a", "b")
        for queue in ("p", "q", "r")
        for priority in (-1, 0, 5)
        for workflow_id in suspects(conn, 2, f"{name}{priority}", queue=queue, priority=priority)
    ]
    ordinary = [
        workflow_id
        for queue in ("p", "q", "r")
        for priority in (-1, 0, 5)
        for workflow_id in enqueue_many(conn, 2, "c", queue=queue, priority=priority)
    ]
    for turn in range(12):
        worker = f"w{turn}"
        got = claim(conn, worker, 100, ["p", "q", "r"])
        assert len(ids_of(got) & set(bad)) == len(held_suspects(conn, worker)) == 1
        assert ids_of(got) >= (set(ordinary) if turn == 0 else set())
        assert claim(conn, worker, 100, ["p", "q", "r"]) == []


def test_two_claims_of_one_worker_at_once_get_one_suspect(db: Database) -> None:
    conn = db.connect()
    claim(conn)
    bad = suspects(conn, 5)
    enqueue_many(conn, 40, "other")
    one, two = db.connect(autocommit=False), db.connect(autocommit=False)
    first, second = claim(one, max_workflows=8), claim(two, max_workflows=8)
    assert len(first) == len(second) == 8
    assert len(ids_of(first) & set(bad)) == 1
    assert ids_of(second) & set(bad) == set()
    two.commit()
    third = claim(two, max_workflows=8)
    two.commit()
    assert ids_of(third) & set(bad) == set()
    one.rollback()
    # Now there is room for one.
    assert len(ids_of(claim(conn, max_workflows=100)) & set(bad)) == 1
    assert len(held_suspects(conn)) == 1
    assert claim(conn, max_workflows=100) == []


def test_who_has_another_suspect_in_an_open_transaction_makes_nobody_wait(db: Database) -> None:
    conn, slow = db.connect(), db.connect(autocommit=False)
    bad = suspects(conn, 3)
    other = db.connect()
    other.execute("set lock_timeout = '1s'")
    (first,) = claim(slow, "slow", 10)
    (second,) = claim(other, "other", 10)
    assert {first.workflow_id, second.workflow_id} < set(bad)
    slow.rollback()
    assert len(claim(conn, "next", 10)) == 1


# What clears it


def checkpointed(conn: Connection, held: Any) -> None:
    call(conn, "checkpoint", held.workflow_id, held.lease, "step", {})


def checkpointed_with_many(conn: Connection, held: Any) -> None:
    ids, leases = [held.workflow_id] * 2, [held.lease] * 2
    assert {r.outcome for r in call(conn, "checkpoint_many", ids, leases, ["a", "b"], [{}, {}])} == {"ok"}


def flushed(conn: Connection, held: Any) -> None:
    rows(
        conn,
        """select * from durable.flush(array[%s], array[%s], array['s'], array['{}'::jsonb], array[1], array[5]::bigint[],
             '{}', '{}', '{}')""",
        held.workflow_id, held.lease,
    )  # fmt: skip


def step_failed(conn: Connection, held: Any) -> None:
    call(conn, "fail_step", held.workflow_id, held.lease, "step", {"message": "no"})


def wait_for_message(conn: Connection, held: Any, topic: str) -> str:
    """The outcome of the wait."""
    ((outcome, _),) = rows(
        conn,
        "select * from durable.wait(%s, %s, 'wait', jsonb_build_array(jsonb_build_object('message', %s::text)))",
        held.workflow_id, held.lease, topic,
    )  # fmt: skip
    return str(outcome)


def waited(conn: Connection, held: Any) -> None:
    call(conn, "send", held.workflow_id, "topic")
    assert wait_for_message(conn, held, "topic") == "ok"


def started_children(conn: Connection, held: Any) -> None:
    call(conn, "start_children", held.workflow_id, held.lease, "step", "child", [{}], "elsewhere")


CLEARS = (checkpointed, checkpointed_with_many, flushed, step_failed, waited, started_children)


def listen(db: Database, conn: Connection, worker: str = "worker") -> Callable[[], list[str]]:
    """What a worker was told since; asked once."""
    listener = db.connect()
    channel = value(conn, "select 'durable_worker_' || worker_id from durable.workers where name = %s", worker)
    listener.execute(f'listen "{channel}"'.encode())

    def told() -> list[str]:
        conn.execute("select pg_notify(%s, 'that was all')", [channel])
        heard: list[str] = []
        for notice in listener.notifies(timeout=30):
            if notice.payload == "that was all":
                return heard
            heard.append(notice.payload)
        raise AssertionError("the last one did not come")

    return told


@pytest.mark.parametrize("clear", CLEARS)
def test_a_checkpoint_clears_a_suspect_and_the_worker_gets_the_next_one(
    db: Database, clear: Callable[[Connection, Any], None]
) -> None:
    conn = db.connect()
    bad = suspects(conn, 3)
    first = claim_one(conn)
    assert claim(conn) == []
    told = listen(db, conn)
    clear(conn, first)
    assert told() == [""]
    assert counts(conn, [first.workflow_id]) == [(0, 0)]
    second = claim_one(conn)
    assert {first.workflow_id, second.workflow_id} < set(bad)
    assert claim(conn) == []
    # The one that holds the other back is to blame, not the one that has come further.
    die(conn, "worker")
    assert counts(conn, [first.workflow_id, second.workflow_id]) == [(0, 0), (2, 1)]
    # What was cleared is an ordinary one again.
    (third,) = set(bad) - {first.workflow_id, second.workflow_id}
    got = claim(conn, "next", 10)
    assert len(got) == 2
    assert first.workflow_id in ids_of(got)
    assert len(ids_of(got) & {second.workflow_id, third}) == 1


@pytest.mark.parametrize("clear", CLEARS)
def test_a_checkpoint_clears_the_first_suspicion(db: Database, clear: Callable[[Connection, Any], None]) -> None:
    conn = db.connect()
    ids = enqueue_many(conn, 2)
    claim(conn, max_workflows=2)
    die(conn, "worker")
    first, _ = claim(conn, max_workflows=2)
    clear(conn, first)
    die(conn, "worker")
    assert [suspicions for suspicions, _ in counts(conn, ids)] == [
        1 if workflow_id == first.workflow_id else 2 for workflow_id in ids
    ]


def test_a_checkpoint_of_a_lost_lease_or_one_that_is_there_clears_nothing(db: Database) -> None:
    conn = db.connect()
    (bad,) = suspects(conn, 1)
    held = claim_one(conn)
    ((_, outcome, _, _),) = call(conn, "checkpoint_many", [bad], [held.lease + 1], ["s"], [{}])
    assert outcome == "WF002"
    assert counts(conn, [bad]) == [(2, 0)]
    assert claim(conn) == []
    checkpointed(conn, held)
    for _ in range(2):
        die(conn, "worker")
        held = claim_one(conn)
    assert counts(conn, [bad]) == [(2, 0)]
    # It is where it was.
    call(conn, "checkpoint", bad, held.lease, "step", {})
    assert counts(conn, [bad]) == [(2, 0)]


def test_a_checkpoint_clears_crashes_that_were_counted(db: Database) -> None:
    conn = db.connect()
    (bad,) = suspects(conn, 1)
    for _ in range(2):
        claim_one(conn)
        die(conn, "worker")
    assert counts(conn, [bad]) == [(2, 2)]
    checkpointed(conn, claim_one(conn))
    assert counts(conn, [bad]) == [(0, 0)]


def completed(conn: Connection, held: Any) -> None:
    call(conn, "complete", held.workflow_id, held.lease)


def completed_with_many(conn: Connection, held: Any) -> None:
    call(conn, "complete_many", [held.workflow_id], [held.lease], [{}])


def completed_by_flush(conn: Connection, held: Any) -> None:
    rows(
        conn,
        """select * from durable.flush('{}', '{}', '{}', '{}', '{}', '{}', array[%s], array[%s], array['{}'::jsonb])""",
        held.workflow_id, held.lease,
    )  # fmt: skip


def failed(conn: Connection, held: Any) -> None:
    call(conn, "fail", held.workflow_id, held.lease, {"message": "no"}, retryable=False)


def failed_for_now(conn: Connection, held: Any) -> None:
    call(conn, "fail", held.workflow_id, held.lease, {"message": "no"}, "1 hour")


def parked(conn: Connection, held: Any) -> None:
    assert wait_for_message(conn, held, "never") == "parked"


def cancelled(conn: Connection, held: Any) -> None:
    call(conn, "cancel", held.workflow_id)


def paused(conn: Connection, held: Any) -> None:
    call(conn, "pause", held.workflow_id)


def suspended(conn: Connection, held: Any) -> None:
    call(conn, "suspend", held.workflow_id, held.lease, "look at it")


def released(conn: Connection, held: Any) -> None:
    call(conn, "release_many", [held.workflow_id], [held.lease])


def continued(conn: Connection, held: Any) -> None:
    call(conn, "continue_as_new", held.workflow_id, held.lease, {})


ENDS = (completed, completed_with_many, completed_by_flush, failed, cancelled, continued)
PAUSES = (failed_for_now, parked, paused, suspended, released)


@pytest.mark.parametrize("end", [*ENDS, *PAUSES])
def test_a_worker_whose_suspect_is_gone_gets_the_next_one(db: Database, end: Callable[[Connection, Any], None]) -> None:
    conn = db.connect()
    bad = suspects(conn, 3, max_attempts=2)
    first = claim_one(conn)
    assert claim(conn) == []
    told = listen(db, conn)
    end(conn, first)
    assert end in PAUSES or "" in told()
    suspected = [c.workflow_id for c in claim(conn, max_workflows=100) if c.workflow_id in bad]
    assert len(suspected) == 1
    assert suspected[0] != first.workflow_id
    assert held_suspects(conn) == suspected
    die(conn, "worker")
    assert counts(conn, suspected) == [(2, 1)]


def test_one_that_parks_and_wakes_is_a_suspect_still(db: Database) -> None:
    conn = db.connect()
    bad = suspects(conn, 2)
    first = claim_one(conn)
    parked(conn, first)
    call(conn, "send", first.workflow_id, "never")
    assert len(claim(conn, max_workflows=10)) == 1
    assert len(claim(conn, "other", 10)) == 1
    assert counts(conn, bad) == [(2, 0)] * 2


# They stand beside ordinary work


def test_suspects_are_claimed_beside_ordinary_work_and_every_fourth_is_new(db: Database) -> None:
    conn = db.connect()
    bad = suspects(conn, 8)
    started = enqueue_many(conn, 60)
    got = call(conn, "claim", "filler", ["default"], 61)
    call(conn, "release_many", [c.workflow_id for c in got], [c.lease for c in got])
    new = enqueue_many(conn, 60)
    taken: list[UUID] = []
    for turn in range(8):
        for _ in range(4):
            taken.append(claim_one(conn, f"w{turn}").workflow_id)
    assert [sum(i in new for i in taken[n : n + 4]) for n in range(0, len(taken), 4)] == [1] * 8
    # Each worker began with a suspect, for they go first.
    assert [i in bad for i in taken] == [True, False, False, False] * 8
    assert sum(i in started for i in taken) == 16


def test_of_four_workers_that_claim_one_each_one_gets_a_new_one_and_the_others_suspects(db: Database) -> None:
    conn = db.connect()
    bad = suspects(conn, 12)
    new = enqueue_many(conn, 12)
    taken = [claim_one(conn, f"w{n}").workflow_id for n in range(16)]
    assert [i in new for i in taken] == [False, False, False, True] * 4
    assert sum(i in bad for i in taken) == 12


@pytest.mark.parametrize("most", [2, 3, 5, 100])
def test_a_claim_of_many_has_one_suspect_and_the_fourth_part_is_new(db: Database, most: int) -> None:
    conn = db.connect()
    enqueue_many(conn, 300)
    got = claim(conn, "filler", 300)
    bad = suspects(conn, 10, "bad")
    call(conn, "release_many", [c.workflow_id for c in got], [c.lease for c in got])
    new = set(enqueue_many(conn, 300))
    taken = claimed_new = 0
    for turn in range(min(10, 300 // most)):
        batch = claim(conn, f"w{turn}", most)
        assert len(batch) == most
        taken += most
        claimed_new += len(ids_of(batch) & new)
        assert claimed_new == taken // 4
        # Not when the only place is for a new one.
        assert len(ids_of(batch) & set(bad)) == 1


def test_where_there_is_a_suspect_that_may_not_be_taken_claims_are_full_all_the_same(db: Database) -> None:
    conn = db.connect()
    suspects(conn, 20)
    claim(conn)
    new = enqueue_many(conn, 20)
    assert [claim_one(conn).workflow_id for _ in range(5)] == new[:5]
    assert ids_of(claim(conn, max_workflows=15)) == set(new[5:])
    assert claim(conn, max_workflows=15) == []


def test_suspects_are_claimed_in_the_order_of_their_priorities(db: Database) -> None:
    conn = db.connect()
    late = suspects(conn, 2, "late", priority=5)
    soon = suspects(conn, 2, "soon", priority=-5)
    ordinary = enqueue_many(conn, 2)
    order = [claim_one(conn, f"w{n}").workflow_id for n in range(6)]
    assert set(order[:2]) == set(soon)
    assert order[2:4] == ordinary
    assert set(order[4:]) == set(late)
