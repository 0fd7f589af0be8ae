"""The doorbell is a convenience: nothing fails because of it, and without it a tick rings."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator

import psycopg
import pytest

from clusters import Cluster, Database
from engine import Connection, call, claim, claim_one, enqueue, rows, value

pytestmark = pytest.mark.pg(15, 17)


def lie_down(db: Database, worker: str = "worker") -> Connection:
    """A worker that found nothing, and listens."""
    conn = db.connect()
    assert claim(conn, worker) == []
    conn.execute(f'listen "{value(conn, "select durable.idle(%s)", worker)}"'.encode())
    return conn


def rings(conn: Connection, timeout: float) -> list[str]:
    return [notification.payload for notification in conn.notifies(timeout=timeout, stop_after=1)]


def test_an_enqueue_rings_for_an_idle_worker_and_not_where_the_session_does_not_want_it(db: Database) -> None:
    worker, sender = lie_down(db), db.connect()
    enqueue(sender)
    assert rings(worker, 30) == [""]
    sender.execute("set durable.ring = off")
    enqueue(sender)
    assert rings(worker, 0.2) == []
    assert call(sender, "tick")[0].tick["rung"] == 1
    assert rings(worker, 30) == [""]


@pytest.mark.parametrize("off", ["off", "FALSE", "no", "0"])
def test_the_parameter_takes_what_switches_something_off(db: Database, off: str) -> None:
    worker, sender = lie_down(db), db.connect()
    sender.execute(f"set durable.ring = '{off}'".encode())
    enqueue(sender)
    assert rings(worker, 0.1) == []


def test_what_a_worker_reports_rings_also_where_users_do_not(db: Database) -> None:
    idle, conn = lie_down(db), db.connect()
    conn.execute("set durable.ring = off")
    enqueue(conn)
    claimed = claim_one(conn, "another")
    call(conn, "release_many", [claimed.workflow_id], [claimed.lease])
    assert rings(idle, 30) == [""]


def test_a_tick_does_not_ring_while_nothing_is_ready(db: Database) -> None:
    lie_down(db)
    conn = db.connect()
    enqueue(conn, run_at="2200-01-01")
    enqueue(conn, queue="another")
    assert call(conn, "tick")[0].tick["rung"] == 0


def test_a_transaction_that_enqueues_can_be_prepared_while_a_worker_is_idle(preparing_db: Database) -> None:
    worker, conn = lie_down(preparing_db), preparing_db.connect(autocommit=False)
    waiting = enqueue(conn)
    enqueue(conn)
    call(conn, "cancel", waiting)
    name = f"{preparing_db.name} prepared"
    conn.execute(f"prepare transaction '{name}'".encode())
    conn.commit()
    conn.execute("rollback")
    conn.autocommit = True
    conn.execute(f"commit prepared '{name}'".encode())
    assert rings(worker, 0.1) == []
    assert call(conn, "tick")[0].tick["rung"] == 1
    assert rings(worker, 30) == [""]
    assert len(claim(worker, "worker")) == 1


@pytest.fixture
def full(own_cluster: Cluster) -> Iterator[tuple[Database, Connection]]:
    """A server whose queue of notifications is full, for somebody listens and idles in a transaction."""
    with own_cluster.connect() as conn:
        conn.execute("alter system set max_notify_queue_pages = 64")
    own_cluster.stop()
    own_cluster.start()
    db = own_cluster.create_database()
    with own_cluster.connect(autocommit=False) as listener, own_cluster.connect() as sender:
        listener.execute("listen somebody")
        listener.commit()
        listener.execute("select 1")
        with contextlib.suppress(psycopg.errors.ProgramLimitExceeded):
            while True:
                sender.execute("select pg_notify('somebody', g || repeat('x', 7000)) from generate_series(1, 5) g")
        yield db, listener
    db.drop()


@pytest.mark.pg(17)
def test_with_a_full_queue_of_notifications_everything_goes_on(full: tuple[Database, Connection]) -> None:
    db, listener = full
    conn = db.connect()
    assert claim(conn, "worker") == []
    assert value(conn, "select durable.idle('worker')") is not None
    workflow_id = enqueue(conn)
    parts = call(conn, "tick")[0].tick
    assert [part for part, done in parts.items() if isinstance(done, dict)] == []
    claimed = claim_one(conn, "worker")
    assert claimed.workflow_id == workflow_id
    assert value(conn, "select durable.cancel(%s)", workflow_id)
    ((finding,),) = [[row for row in call(conn, "health") if row.check == "notifications"]]
    assert finding.state == "critical"
    listener.rollback()
    give_up = time.monotonic() + 30
    while next(row for row in call(conn, "health") if row.check == "notifications").state != "ok":
        assert time.monotonic() < give_up
        conn.execute("notify somebody")
        listener.execute("select 1")
        listener.rollback()


def test_idle_does_not_wait_for_an_open_one_of_the_same_worker(db: Database) -> None:
    worker, conn = db.connect(autocommit=False), db.connect()
    claim(conn, "worker")
    call(worker, "idle", "worker")
    assert value(conn, "select durable.idle('worker')") is None
    worker.rollback()
    assert value(conn, "select durable.idle('worker')") is not None
    assert len(rows(conn, "select from durable.idle_workers")) == 1
