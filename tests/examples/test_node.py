"""examples/node: a worker of its own in Node, with the package pg."""

from __future__ import annotations

import functools
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from clusters import ROOT, Database
from engine import Connection, decide_next, enqueue, rows, steps, value, wait_until, workflow

EXAMPLE = ROOT / "examples/node"
STEPS = ["reserve", "sleep", "receive:payment", "run:pack", "run:pack/result", "approval", "ship"]


@functools.cache
def node() -> str:
    """The program itself: the `node` that comes with a Python package starts it, and does not pass signals on."""
    return subprocess.run(["node", "-p", "process.execPath"], capture_output=True, text=True, check=True).stdout.strip()


class Worker:
    """A process of orders.js."""

    def __init__(self, dsn: str, log: Path) -> None:
        self._log = log
        with log.open("ab") as output:
            self.process = subprocess.Popen(
                [node(), EXAMPLE / "orders.js"], env=os.environ | {"DURABLE_DSN": dsn}, stdout=output, stderr=output
            )

    def terminate(self) -> int:
        """Asks it to drain; returns its exit status."""
        self.process.terminate()
        return self.process.wait(60)

    def log(self) -> str:
        return self._log.read_text()


@pytest.fixture
def start(db: Database, tmp_path: Path) -> Iterator[Callable[[], Worker]]:
    """Starts a worker on the database of the test, which has the tables of the example."""
    db.connect().execute((EXAMPLE / "schema.sql").read_bytes())
    started: list[Worker] = []

    def start_one() -> Worker:
        started.append(Worker(url(db), tmp_path / f"worker-{len(started)}.log"))
        return started[-1]

    yield start_one
    for worker in started:
        if worker.process.poll() is None:
            worker.process.kill()
            worker.process.wait(30)


def url(db: Database) -> str:
    """A DSN as pg understands it."""
    return f"postgresql://postgres@/{db.name}?host={db.cluster.sockets}"


def order(conn: Connection, *, paid: bool = True, **more: Any) -> UUID:
    """A workflow that is, when it is paid, on its way to its last step."""
    workflow_id = enqueue(conn, "deliver", input={"order_id": "A-8", "sku": "chair", **more}, queue="demo_node")
    if paid:
        conn.execute("select durable.send(%s, 'payment')", [workflow_id])
    return workflow_id


def until_shipping(conn: Connection, workflow_id: UUID) -> None:
    decide_next(conn, "approved")
    wait_until(conn, "select count(*) > 0 from demo_node.requests where key = %s || '/ship'", str(workflow_id))


def until_ended(conn: Connection, workflow_id: UUID, status: str) -> Any:
    wait_until(conn, "select completed_at is not null from durable.workflows where workflow_id = %s", workflow_id)
    ended = workflow(conn, workflow_id)
    assert ended.status == status, ended.error
    return ended


def run_example() -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "examples.node"]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.mark.pg(15, 18)
def test_a_node_worker_that_is_killed_goes_on_behind_the_last_step(
    db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DURABLE_DSN", db.dsn)
    done = run_example()
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Error" not in done.stderr

    conn = db.connect()
    delivered = workflow(conn, rows(conn, "select workflow_id from demo_node.orders")[0].workflow_id)
    assert (delivered.status, delivered.attempt, delivered.crashes) == ("completed", 2, 0)
    history = rows(conn, "select step_name, status::text, output from durable.history(%s)", delivered.workflow_id)
    assert [step.step_name for step in history] == STEPS
    assert {step.status for step in history} == {"completed"}
    parcel = {"box": "box of A-7", "grams": 4200}
    assert delivered.output == {"parcel": parcel, "tracking": history[-1].output, "approved_by": "ada"}
    # What was done before the kill was not done again; the step in the middle was, with the same key.
    assert value(conn, "select available from demo_node.stock") == 2
    assert value(conn, "select count(*) from durable.workflows where name = 'pack'") == 1
    requests = rows(conn, "select * from demo_node.requests")
    assert [request.key for request in requests] == [f"{delivered.workflow_id}/ship"] * 2
    assert len({request.pid for request in requests}) == 2
    assert value(conn, "select count(*) from demo_node.parcels") == 1
    assert value(conn, "select count(*) from durable.workers where died_at is null") == 0
    # It can be run again on the same database.
    assert run_example().returncode == 0


@pytest.mark.pg(15)
def test_a_cancelled_workflow_stops_in_the_middle_of_a_step_and_the_worker_goes_on(
    db: Database, start: Callable[[], Worker]
) -> None:
    conn = db.connect()
    worker = start()
    first = order(conn)
    until_shipping(conn, first)
    assert value(conn, "select durable.cancel(%s)", first)
    second = order(conn)
    decide_next(conn, "approved")
    until_ended(conn, second, "completed")
    assert workflow(conn, first).status == "cancelled"
    assert "ship" not in steps(conn, first)
    assert worker.terminate() == 0
    assert f"workflow {first}: stopped: " in worker.log()
    assert "was cancelled" in worker.log()


@pytest.mark.pg(15)
def test_sigterm_lets_what_runs_end_and_claims_nothing_more(db: Database, start: Callable[[], Worker]) -> None:
    conn = db.connect()
    worker = start()
    workflow_id = order(conn)
    until_shipping(conn, workflow_id)
    assert worker.terminate() == 0
    ended = until_ended(conn, workflow_id, "completed")
    assert (ended.attempt, ended.crashes) == (1, 0)
    assert value(conn, "select count(*) from durable.workers where died_at is null") == 0
    assert worker.log() == ""


@pytest.mark.pg(15)
def test_a_step_that_fails_fails_its_workflow_and_runs_again_after_a_retry(
    db: Database, start: Callable[[], Worker]
) -> None:
    conn = db.connect()
    worker = start()
    conn.execute("update demo_node.stock set available = 0")
    workflow_id = order(conn)
    error = until_ended(conn, workflow_id, "failed").error
    assert error["step"] == "reserve"
    assert "stock_available_check" in error["message"]
    assert steps(conn, workflow_id)["reserve"].status == "error"
    conn.execute("update demo_node.stock set available = 1")
    assert value(conn, "select durable.retry(%s)", workflow_id)
    decide_next(conn, "approved")
    until_ended(conn, workflow_id, "completed")
    assert value(conn, "select available from demo_node.stock") == 0
    assert worker.terminate() == 0


@pytest.mark.pg(15)
def test_a_payment_that_does_not_come_in_time_gives_the_goods_back(db: Database, start: Callable[[], Worker]) -> None:
    conn = db.connect()
    start()
    workflow_id = order(conn, paid=False, patience="100 milliseconds")
    assert until_ended(conn, workflow_id, "completed").output == "cancelled: not paid"
    assert value(conn, "select available from demo_node.stock") == 3


@pytest.mark.pg(15)
def test_an_order_that_is_refused_gives_the_goods_back(db: Database, start: Callable[[], Worker]) -> None:
    conn = db.connect()
    start()
    workflow_id = order(conn)
    decide_next(conn, "rejected")
    assert until_ended(conn, workflow_id, "completed").output == "cancelled: not approved"
    assert value(conn, "select available from demo_node.stock") == 3
    assert value(conn, "select count(*) from demo_node.requests") == 0


@pytest.mark.pg(15)
def test_a_worker_that_was_taken_for_dead_stops_what_it_held_and_goes_on(
    db: Database, start: Callable[[], Worker]
) -> None:
    conn = db.connect()
    conn.execute("select durable.configure('lease', '2 seconds')")
    stalled = start()
    workflow_id = order(conn)
    until_shipping(conn, workflow_id)
    stalled.process.send_signal(signal.SIGSTOP)
    start()
    ended = until_ended(conn, workflow_id, "completed")
    assert (ended.attempt, ended.crashes) == (2, 0)
    stalled.process.send_signal(signal.SIGCONT)
    # It is registered again, under a new number.
    wait_until(conn, "select count(*) = 2 from durable.workers where died_at is null")
    assert value(conn, "select count(*) from demo_node.parcels") == 1
    assert stalled.terminate() == 0


@pytest.mark.pg(15)
def test_a_restart_of_the_server_is_lived_through(own_cluster: Any, tmp_path: Path) -> None:
    db = own_cluster.create_database()
    conn = db.connect()
    conn.execute((EXAMPLE / "schema.sql").read_bytes())
    worker = Worker(url(db), tmp_path / "log")
    try:
        workflow_id = order(conn)
        until_shipping(conn, workflow_id)
        own_cluster.stop()
        own_cluster.start()
        conn = db.connect()
        until_ended(conn, workflow_id, "completed")
        again = order(conn)
        decide_next(conn, "approved")
        until_ended(conn, again, "completed")
        assert worker.terminate() == 0
        assert "its session is lost, connecting again" in worker.log()
    finally:
        worker.process.kill()
