"""Enqueue: keys, transactions, triggers, order, delay."""

from __future__ import annotations

import random
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta, timezone
from uuid import UUID

import psycopg
import pytest

from clusters import Database
from engine import (
    at_once,
    call,
    claim,
    claim_one,
    enqueue,
    refused,
    rows,
    snapshot,
    value,
    wait_until_blocked,
    workflow,
)


def test_01_the_same_key_enqueued_by_many_at_once_is_one_workflow(db: Database) -> None:
    callers = 12
    barrier = threading.Barrier(callers)
    connections = [db.connect() for _ in range(callers)]

    def submit(conn: psycopg.Connection[tuple[object, ...]]) -> UUID:
        barrier.wait()
        return enqueue(conn, key="order-7")

    ids = at_once(*(lambda conn=conn: submit(conn) for conn in connections))
    assert len(set(ids)) == 1
    assert [c.workflow_id for c in claim(connections[0], max_workflows=10)] == [ids[0]]


def test_01_a_key_waits_for_the_transaction_that_used_it_first(db: Database) -> None:
    first, second, observer = db.connect(autocommit=False), db.connect(), db.connect()
    workflow_id = enqueue(first, key="k")
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(enqueue, second, key="k")
        wait_until_blocked(observer, second)
        first.commit()
        assert answer.result() == workflow_id


def test_01_a_key_whose_first_user_rolls_back_is_free_for_the_next(db: Database) -> None:
    first, second, observer = db.connect(autocommit=False), db.connect(), db.connect()
    lost = enqueue(first, key="k")
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(enqueue, second, key="k")
        wait_until_blocked(observer, second)
        first.rollback()
        workflow_id = answer.result()
    assert workflow_id != lost
    assert claim_one(observer).workflow_id == workflow_id


def test_01_a_key_still_names_its_workflow_after_that_has_ended(db: Database) -> None:
    conn = db.connect()
    workflow_id = enqueue(conn, key="k")
    claimed = claim_one(conn)
    call(conn, "complete", workflow_id, claimed.lease)
    assert enqueue(conn, key="k") == workflow_id
    assert claim(conn) == []


def test_01_equal_keys_within_a_batch_are_one_workflow(db: Database) -> None:
    conn = db.connect()
    keys = ["a", None, "b", "a", None]
    ids = [row[0] for row in call(conn, "enqueue_many", "w", [{"n": n} for n in range(5)], keys=keys)]
    assert ids[0] == ids[3]
    assert len(set(ids)) == 4
    assert [(c.workflow_id, c.input["n"]) for c in claim(conn, max_workflows=9)] == [(ids[n], n) for n in (0, 1, 2, 4)]


def test_01_overlapping_batches_of_keys_in_opposite_order_do_not_deadlock(db: Database) -> None:
    keys = [f"k{n}" for n in range(60)]
    inputs: list[object] = [{}] * len(keys)
    one, two = db.connect(), db.connect()

    def submit(conn: psycopg.Connection[tuple[object, ...]], order: list[str]) -> dict[str, UUID]:
        found: dict[str, UUID] = {}
        for _ in range(10):
            found = dict(
                zip(order, (row[0] for row in call(conn, "enqueue_many", "w", inputs, keys=order)), strict=True)
            )
        return found

    first, second = at_once(lambda: submit(one, keys), lambda: submit(two, keys[::-1]))
    assert first == second
    assert value(one, "select count(*) from durable.workflows") == len(keys)


def test_02_the_key_of_another_workflow_is_a_conflict_and_nothing_is_written(db: Database) -> None:
    conn = db.connect()
    workflow_id = enqueue(conn, "fulfil", key="k")
    before = snapshot(conn)
    with refused("WF003") as error:
        enqueue(conn, "refund", key="k", queue="another")
    assert str(workflow_id) in (error.value.diag.message_detail or "")
    assert "fulfil" in str(error.value)
    with refused("WF003"):
        call(conn, "enqueue_many", "refund", [{}, {}], keys=["new", "k"])
    assert snapshot(conn) == before


def test_13_a_workflow_is_invisible_before_commit_and_gone_after_rollback(db: Database) -> None:
    writer, worker = db.connect(autocommit=False), db.connect()
    enqueue(writer, key="k")
    assert claim(worker) == []
    assert value(worker, "select count(*) from durable.workflows") == 0
    writer.rollback()
    assert claim(worker) == []
    kept = enqueue(writer, key="k")
    writer.commit()
    assert claim_one(worker).workflow_id == kept


def test_13_a_savepoint_takes_its_workflows_with_it(db: Database) -> None:
    conn = db.connect()
    with conn.transaction():
        kept = enqueue(conn)
        conn.execute("savepoint s")
        enqueue(conn, key="k")
        conn.execute("rollback to s")
    assert [c.workflow_id for c in claim(conn, max_workflows=5)] == [kept]


def test_13_a_trigger_enqueues_with_its_row_or_not_at_all(db: Database) -> None:
    conn = db.connect()
    conn.execute("create table orders (id int primary key)")
    conn.execute(
        """create function enqueue_order() returns trigger language plpgsql as $$
        begin
          perform durable.enqueue('fulfil', jsonb_build_object('order', new.id), key => 'order-' || new.id);
          return new;
        end $$"""
    )
    conn.execute("create trigger enqueue_order after insert on orders for each row execute function enqueue_order()")
    conn.execute("insert into orders values (1), (2)")
    with pytest.raises(psycopg.errors.UniqueViolation):
        conn.execute("insert into orders values (3), (1)")
    assert [c.input for c in claim(conn, max_workflows=9)] == [{"order": 1}, {"order": 2}]


def test_14_lower_priority_numbers_run_first_and_equal_ones_first_in_first_out(db: Database) -> None:
    conn = db.connect()
    expected = []
    for n, priority in enumerate([0, 5, -5, 0, 5, -5, 32767, -32768]):
        expected.append((priority, n, enqueue(conn, priority=priority)))
    expected.sort(key=lambda item: item[:2])
    got = [c.workflow_id for _ in range(4) for c in claim(conn, max_workflows=2)]
    assert got == [item[2] for item in expected]


def test_14_batches_run_in_the_order_of_their_inputs(db: Database) -> None:
    conn = db.connect()
    for batch in range(3):
        call(conn, "enqueue_many", "w", [{"n": batch * 500 + n} for n in range(500)])
    got = [c.input["n"] for _ in range(15) for c in claim(conn, max_workflows=100)]
    assert got == list(range(1500))


def test_14_many_workers_and_batches_take_each_workflow_once_and_in_order(db: Database) -> None:
    producers, consumers, batches, size = 3, 4, 8, 25
    total = producers * batches * size
    claimed: list[list[tuple[int, int, int, int]]] = [[] for _ in range(consumers)]
    taken = threading.Semaphore(0)

    def produce(producer: int) -> None:
        conn = db.connect()
        for batch in range(batches):
            priority = batch % 3
            inputs: list[object] = [{"producer": producer, "n": batch * size + n} for n in range(size)]
            call(conn, "enqueue_many", "w", inputs, priority=priority)

    def consume(worker: int) -> None:
        conn = db.connect()
        rng = random.Random(worker)
        for _ in range(100_000):
            if sum(map(len, claimed)) >= total:
                return
            for c in claim(conn, f"worker {worker}", rng.randint(1, 20)):
                claimed[worker].append((c.input["producer"], c.input["n"], c.input["n"] // size % 3, c.lease))
                taken.release()
        raise AssertionError("not every workflow was claimed")

    at_once(*(lambda n=n: produce(n) for n in range(producers)), *(lambda n=n: consume(n) for n in range(consumers)))
    everything = [item for worker in claimed for item in worker]
    assert len({item[:2] for item in everything}) == len(everything) == total
    # The lease is the place in line: within a producer and a priority it grows in the order of the enqueues.
    for producer in range(producers):
        for priority in range(3):
            line = sorted(item for item in everything if item[0] == producer and item[2] == priority)
            assert [item[3] for item in line] == sorted(item[3] for item in line)
    # And no worker was ever handed a later place of a priority before an earlier one.
    for worker in claimed:
        for producer in range(producers):
            for priority in range(3):
                places = [item[3] for item in worker if item[0] == producer and item[2] == priority]
                assert places == sorted(places)


def test_15_a_delayed_workflow_does_not_start_before_its_time_by_the_database_clock(db: Database) -> None:
    conn = db.connect()
    run_at = value(conn, "select clock_timestamp() + interval '700 milliseconds'")
    workflow_id = enqueue(conn, run_at=run_at)
    assert workflow(conn, workflow_id).wake_at == run_at
    for _ in range(1000):
        before = value(conn, "select clock_timestamp()")
        call(conn, "tick")
        claimed = claim(conn)
        if claimed:
            break
        assert before < run_at or value(conn, "select clock_timestamp()") >= run_at
        conn.execute("select pg_sleep(0.02)")
    (found,) = claimed
    assert found.workflow_id == workflow_id
    assert found.claimed_at >= run_at


def test_15_a_delay_in_the_past_is_no_delay(db: Database) -> None:
    conn = db.connect()
    workflow_id = enqueue(conn, run_at=datetime.now(timezone.utc) - timedelta(days=1))
    assert claim_one(conn).workflow_id == workflow_id


def test_15_delayed_workflows_of_a_far_future_leave_the_tick_alone(db: Database) -> None:
    conn = db.connect()
    call(conn, "enqueue", "w", run_at="294000-01-01 00:00:00+00")
    report = value(conn, "select durable.tick()")
    assert report["woken"] == 0
    assert report["next_in_ms"] is None


def test_an_unknown_queue_is_made_by_the_first_enqueue(db: Database) -> None:
    conn = db.connect()
    enqueue(conn, queue="orders")
    assert ("orders",) in rows(conn, "select queue from durable.queues")
    assert claim(conn) == []
    assert claim_one(conn, queues=["default", "orders"]).queue == "orders"


def test_the_ids_of_a_batch_come_in_the_order_of_its_inputs_and_sort_by_time(db: Database) -> None:
    conn = db.connect()
    ids = [row[0] for row in call(conn, "enqueue_many", "w", [{"n": n} for n in range(50)])]
    assert [workflow(conn, i).input["n"] for i in ids] == list(range(50))
    assert {i.version for i in ids} == {7}
    conn.execute("select pg_sleep(0.002)")
    assert enqueue(conn) > max(ids)


def test_an_empty_batch_enqueues_nothing(db: Database) -> None:
    conn = db.connect()
    assert rows(conn, "select * from durable.enqueue_many('w', '{}')") == []
    assert claim(conn) == []
