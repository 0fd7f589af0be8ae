"""Claim: exclusive, lossless, and blind to what is not there for the worker."""

from __future__ import annotations

import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from clusters import Cluster, Database
from engine import Connection, at_once, call, claim, claim_one, enqueue, kill_worker, refused, value, workflow


def test_16_two_concurrent_claims_never_return_the_same_workflow(db: Database) -> None:
    call(db.connect(), "enqueue_many", "w", [{"n": n} for n in range(600)])
    workers = 6
    barrier = threading.Barrier(workers)
    seen: Counter[int] = Counter()

    def work(name: str, conn: Connection) -> list[int]:
        barrier.wait()
        mine = []
        while batch := claim(conn, name, 7):
            mine += [c.input["n"] for c in batch]
        return mine

    for mine in at_once(*(lambda n=n: work(f"w{n}", db.connect()) for n in range(workers))):
        seen.update(mine)
    # SKIP LOCKED may hide rows from the last claims; what is left is still in line.
    seen.update(c.input["n"] for c in claim(db.connect(), "last", 600))
    assert seen == Counter(range(600))


def test_16_a_claim_that_rolls_back_loses_nothing(db: Database) -> None:
    one, two = db.connect(autocommit=False), db.connect()
    ids = {enqueue(two) for _ in range(3)}
    assert len(claim(one, "one", 2)) == 2
    (third,) = claim(two, "two", 5)
    one.rollback()
    rest = claim(two, "two", 5)
    assert {third.workflow_id, *(c.workflow_id for c in rest)} == ids
    assert len(rest) == 2


def test_16_a_claim_whose_session_dies_before_commit_loses_nothing(db: Database) -> None:
    one, two = db.connect(autocommit=False), db.connect()
    workflow_id = enqueue(two)
    claim_one(one, "one")
    two.execute("select pg_terminate_backend(%s, 10000)", [one.info.backend_pid])
    assert claim_one(two, "two").workflow_id == workflow_id


def claim_soon(conn: Connection, worker: str = "worker") -> Any:
    """Claims the one workflow there is; the claim cursor may take a moment to look behind itself."""
    for _ in range(200):
        if claimed := claim(conn, worker):
            return claimed[0]
        conn.execute("select pg_sleep(0.1)")
    raise AssertionError("the workflow was never claimed")


@pytest.mark.pg(15, 18)
@pytest.mark.parametrize("priority", [0, 7])
def test_17_a_workflow_whose_enqueue_commits_late_still_runs(db: Database, priority: int) -> None:
    late, other = db.connect(autocommit=False), db.connect()
    for n in range(3):
        enqueue(other, priority=n)
        enqueue(other, priority=7)
    claim(other, max_workflows=100)
    workflow_id = enqueue(late, priority=priority)
    # Long enough for a cursor to lose its patience with the open transaction, and far enough to leave its place behind.
    for n in range(30):
        call(other, "enqueue_many", "w", [{}] * 100, priority=(0, priority)[n % 2])
        assert len(claim(other, max_workflows=200)) == 100
        call(other, "tick")
        other.execute("select pg_sleep(0.1)")
    assert claim(other, max_workflows=100) == []
    late.commit()
    assert claim_soon(other).workflow_id == workflow_id


@pytest.mark.pg(15, 18)
def test_17_a_workflow_that_becomes_ready_in_a_late_transaction_still_runs(db: Database) -> None:
    late, other = db.connect(autocommit=False), db.connect()
    workflow_id = enqueue(other)
    held = claim_one(other, "late")
    call(late, "release_many", [workflow_id], [held.lease])
    for _ in range(30):
        call(other, "enqueue_many", "w", [{}] * 100)
        assert len(claim(other, max_workflows=200)) == 100
        other.execute("select pg_sleep(0.1)")
    late.commit()
    assert claim_soon(other).workflow_id == workflow_id


def test_17_enqueues_of_many_slow_transactions_all_run(db: Database) -> None:
    stop = threading.Event()

    def produce(n: int) -> int:
        conn = db.connect(autocommit=False)
        for turn in range(15):
            enqueue(conn, key=f"{n}-{turn}")
            conn.execute("select pg_sleep(random() * 0.02)")
            conn.commit()
        return 15

    def consume() -> int:
        conn, found = db.connect(), 0
        while not stop.is_set():
            found += len(claim(conn, max_workflows=3))
        return found

    with ThreadPoolExecutor(1) as pool:
        consumer = pool.submit(consume)
        try:
            made = sum(at_once(*(lambda n=n: produce(n) for n in range(6))))
        finally:
            stop.set()
        found = consumer.result()
    conn = db.connect()
    for _ in range(made - found):
        claim_soon(conn)
    assert value(conn, "select count(*) from durable.workflows where status = 'running'") == made


def test_a_claim_takes_from_every_named_queue_and_no_other(db: Database) -> None:
    conn = db.connect()
    for queue in ("a", "b", "c"):
        enqueue(conn, queue=queue)
    assert {c.queue for c in claim(conn, max_workflows=9, queues=["a", "b"])} == {"a", "b"}


def test_a_long_queue_does_not_starve_the_one_behind_it(db: Database) -> None:
    conn = db.connect()
    call(conn, "enqueue_many", "w", [{}] * 200, "long")
    enqueue(conn, queue="short")
    for _ in range(200):
        if claim_one(conn, queues=["long", "short"]).queue == "short":
            return
    raise AssertionError("the short queue came last")


def test_a_queue_that_an_open_transaction_uses_first_is_free_for_others(db: Database) -> None:
    late, other = db.connect(autocommit=False), db.connect()
    enqueue(late, queue="new")
    workflow_id = enqueue(other, queue="new")
    assert claim_one(other, queues=["new"]).workflow_id == workflow_id


def test_new_queues_used_in_opposite_order_do_not_deadlock(db: Database) -> None:
    one, two = db.connect(autocommit=False), db.connect(autocommit=False)
    enqueue(one, queue="a")
    enqueue(two, queue="b")

    def use(conn: Connection, queue: str) -> None:
        enqueue(conn, queue=queue)
        conn.commit()

    at_once(lambda: use(one, "b"), lambda: use(two, "a"))
    assert len(claim(one, max_workflows=9, queues=["a", "b"])) == 4


@pytest.mark.pg(15, 18)
def test_outputs_that_together_are_larger_than_a_value_can_be_do_not_stop_the_claim(db: Database) -> None:
    conn = db.connect()
    workflow_id = enqueue(conn)
    first = claim_one(conn, "one")
    conn.execute(
        """select durable.checkpoint_many(array_fill(%s, array[300]), array_fill(%s::bigint, array[300]),
             array(select 'step ' || n from generate_series(1, 300) n),
             array_fill(to_jsonb(repeat('x', 1000000)), array[300]))""",
        [workflow_id, first.lease],
    )
    call(conn, "release_many", [workflow_id], [first.lease])
    assert len(claim_one(conn, "two").steps) == 300


def test_21_a_worker_that_names_its_workflows_is_handed_no_other(db: Database) -> None:
    conn = db.connect()
    unknown = enqueue(conn, "new code only")
    known = enqueue(conn, "known")
    claimed = call(conn, "claim", "w", max_workflows=9, workflows=["known", "never seen"])
    assert [c.workflow_id for c in claimed] == [known]
    assert workflow(conn, unknown).status == "pending"
    assert call(conn, "claim", "w", max_workflows=9, workflows=[]) == []


def test_a_first_run_has_no_steps_and_a_replay_has_them_all_in_order(db: Database) -> None:
    conn = db.connect()
    workflow_id = enqueue(conn)
    first = claim_one(conn, "one")
    assert first.steps is None
    call(conn, "checkpoint", workflow_id, first.lease, "b", {"v": 1})
    call(conn, "checkpoint", workflow_id, first.lease, "a", None)
    call(conn, "fail_step", workflow_id, first.lease, "c", {"message": "no"}, attempt=1, max_attempts=3)
    call(conn, "start_step", workflow_id, first.lease, "d")
    kill_worker(conn, "one")
    assert value(conn, "select durable.recover()") == 1
    second = claim_one(conn, "two")
    assert (second.workflow_id, second.attempt) == (workflow_id, 2)
    assert second.lease != first.lease
    assert [(s["step_name"], s["status"]) for s in second.steps] == [
        ("b", "completed"),
        ("a", "completed"),
        ("c", "running"),
        ("d", "running"),
    ]
    assert [s.get("output") for s in second.steps[:2]] == [{"v": 1}, None]
    assert second.steps[2]["attempt"] == 2
    assert second.steps[2]["retry_in_ms"] >= 0
    assert second.steps[3]["at_most_once"] is True


def test_a_large_output_is_left_out_of_a_replay_and_read_by_name(db: Database) -> None:
    conn = db.connect()
    workflow_id = enqueue(conn)
    first = claim_one(conn, "one")
    large = {"text": "x" * 200_000}
    call(conn, "checkpoint", workflow_id, first.lease, "large", large)
    call(conn, "release_many", [workflow_id], [first.lease])
    (step,) = claim_one(conn, "two").steps
    assert step["omitted"] is True
    assert "output" not in step
    assert call(conn, "step_result", workflow_id, "large")[0].output == large


def test_06_a_claim_whose_answer_was_lost_is_handed_over_again(db: Database) -> None:
    conn = db.connect()
    ids = [enqueue(conn, key=f"k{n}") for n in range(3)]
    known = claim_one(conn)
    lost = claim(conn, max_workflows=2)
    again = call(conn, "reclaim", "worker", [known.workflow_id])
    assert [(c.workflow_id, c.lease, c.attempt) for c in again] == [(c.workflow_id, c.lease, c.attempt) for c in lost]
    assert {c.workflow_id for c in again} | {known.workflow_id} == set(ids)
    call(conn, "complete", again[0].workflow_id, again[0].lease)
    assert call(conn, "reclaim", "worker", ids[:2]) != call(conn, "reclaim", "worker", ids)
    assert call(conn, "reclaim", "stranger") == []


def test_06_a_release_sent_again_changes_nothing(db: Database) -> None:
    conn = db.connect()
    workflow_id = enqueue(conn)
    first = claim_one(conn, "one")
    assert value(conn, "select durable.release_many(%s, %s)", [workflow_id], [first.lease]) == 1
    assert value(conn, "select durable.release_many(%s, %s)", [workflow_id], [first.lease]) == 0
    second = claim_one(conn, "two")
    assert value(conn, "select durable.release_many(%s, %s)", [workflow_id], [first.lease]) == 0
    row = workflow(conn, workflow_id)
    assert (row.status, row.worker, row.crashes, row.failures) == ("running", "two", 0, 0)
    call(conn, "complete", workflow_id, second.lease)


def test_an_idle_worker_is_rung_by_the_enqueue_and_a_busy_one_is_not(db: Database) -> None:
    worker, client = db.connect(), db.connect()
    channel = value(worker, "select durable.idle('w')")
    worker.execute(f'listen "{channel}"'.encode())
    enqueue(client)
    assert [n.channel for n in worker.notifies(timeout=30, stop_after=1)] == [channel]
    assert claim_one(worker, "w") is not None
    enqueue(client)
    assert list(worker.notifies(timeout=0.2)) == []


def test_a_lease_is_never_given_twice(db: Database) -> None:
    conn = db.connect()
    workflow_id = enqueue(conn)
    leases = []
    for n in range(20):
        claimed = claim_one(conn, f"w{n % 3}")
        leases.append(claimed.lease)
        call(conn, "release_many", [workflow_id], [claimed.lease])
    assert leases == sorted(set(leases))


def claim_without_waiting(conn: Connection) -> Any:
    (claimed,) = call(conn, "claim", "worker", synchronous_commit=False)
    return claimed


def lost_claim(cluster: Cluster, db: Database) -> Any:
    """What a claim handed out that a crash of the server undid."""
    for _ in range(10):
        conn = db.connect()
        # Otherwise the log is written a fifth of a second after the claim, or by somebody else's commit.
        conn.execute("alter system set wal_writer_delay = '10s'")
        conn.execute("alter system set autovacuum = off")
        conn.execute("select pg_reload_conf()")
        call(conn, "enqueue", "w")
        claimed = claim_without_waiting(conn)
        cluster.kill()
        cluster.start()
        if workflow(db.connect(), claimed.workflow_id).status == "pending":
            return claimed
        call(db.connect(), "complete", claimed.workflow_id, claimed.lease)
    raise AssertionError("every claim had reached the disk")


@pytest.mark.pg(15, 18)
def test_a_claim_that_a_crash_of_postgres_undid_never_gives_its_lease_again(own_cluster: Cluster) -> None:
    db = own_cluster.create_database()
    lost = lost_claim(own_cluster, db)
    conn = db.connect()
    for state in ("in line", "claimed again"):
        if state == "claimed again":
            again = claim_one(conn)
            assert (again.workflow_id, again.attempt, again.steps) == (lost.workflow_id, 1, None)
            assert again.lease != lost.lease
        for function, argument in (("checkpoint", "s"), ("begin_step", "s"), ("complete", None), ("fail", {"m": 1})):
            with refused("WF002"):
                call(conn, function, lost.workflow_id, lost.lease, argument)
        ((stopped, code, lease),) = call(conn, "heartbeat", "worker", [lost.workflow_id], [lost.lease])
        assert (stopped, code, lease) == (lost.workflow_id, "WF002", lost.lease)
    call(conn, "complete", again.workflow_id, again.lease)


@pytest.mark.pg(15, 18)
def test_a_checkpoint_makes_the_claim_before_it_durable(own_cluster: Cluster) -> None:
    db = own_cluster.create_database()
    conn = db.connect()
    enqueue(conn)
    claimed = claim_without_waiting(conn)
    call(conn, "checkpoint", claimed.workflow_id, claimed.lease, "s", {"n": 1})
    own_cluster.kill()
    own_cluster.start()
    conn = db.connect()
    call(conn, "complete", claimed.workflow_id, claimed.lease)
    assert workflow(conn, claimed.workflow_id).status == "completed"


def test_only_the_transaction_of_such_a_claim_does_not_wait_for_its_commit(db: Database) -> None:
    conn = db.connect(autocommit=False)
    for wait, setting in ((True, "on"), (None, "on"), (False, "off")):
        call(conn, "claim", "worker", synchronous_commit=wait)
        assert value(conn, "show synchronous_commit") == setting
        conn.commit()
        assert value(conn, "show synchronous_commit") == "on"


def test_claiming_nothing_is_allowed_and_less_is_not(db: Database) -> None:
    conn = db.connect()
    enqueue(conn)
    assert claim(conn, max_workflows=0) == []
    for bad in (-1, None):
        with refused("WF005"):
            call(conn, "claim", "worker", ["default"], bad)
