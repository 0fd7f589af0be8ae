"""examples/psql: a worker and a workflow in psql alone."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from clusters import ROOT, Database
from engine import decide_next, enqueue, rows, steps, value, wait_until, workflow

EXAMPLE = ROOT / "examples/psql"
STEPS = ["reserve", "sleep", "receive:payment", "run:pack", "run:pack/result", "approval", "ship"]


@pytest.fixture(autouse=True)
def psql(db: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """The psql of the server's version comes first on the path."""
    directory = str(Path(db.cluster.installation.tool("psql")).parent)
    monkeypatch.setenv("PATH", os.pathsep.join([directory, os.environ["PATH"]]))
    monkeypatch.setenv("DURABLE_DSN", db.dsn)


@contextmanager
def worker() -> Iterator[subprocess.Popen[bytes]]:
    """A worker.sh that leads a process group of its own, with all that it starts."""
    process = subprocess.Popen([EXAMPLE / "worker.sh"], start_new_session=True)
    try:
        yield process
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait(30)


def run_example() -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "examples.psql"]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.mark.pg(15, 16, 18)
def test_a_whole_workflow_is_driven_from_psql_alone(db: Database) -> None:
    done = run_example()
    assert done.returncode == 0, done.stdout + done.stderr
    assert "ERROR" not in done.stderr

    conn = db.connect()
    order = rows(conn, "select * from demo_psql.orders")[0]
    delivered = workflow(conn, order.workflow_id)
    assert delivered.status == "completed"
    assert delivered.attempt == 1
    tracking = delivered.output["tracking"]
    assert tracking.startswith("TN-")
    parcel = {"box": "box of A-7", "grams": 4200}
    assert delivered.output == {"tracking": tracking, "parcel": parcel, "approved_by": "ada"}
    history = rows(conn, "select step_name, status::text, output from durable.history(%s)", order.workflow_id)
    assert [step.step_name for step in history] == STEPS
    assert {step.status for step in history} == {"completed"}
    assert history[-1].output == tracking
    assert value(conn, "select parent_id from durable.workflows where name = 'pack'") == order.workflow_id
    assert value(conn, "select available from demo_psql.stock") == 2
    assert value(conn, "select count(*) from durable.workers where died_at is null") == 0
    # It can be run again on the same database.
    assert run_example().returncode == 0


@pytest.mark.pg(15, 18)
def test_a_psql_worker_that_is_killed_within_a_step_is_followed_by_another(db: Database) -> None:
    conn = db.connect()
    conn.execute((EXAMPLE / "schema.sql").read_bytes())
    workflow_id = enqueue(conn, "deliver", input={"order_id": "A-8", "sku": "chair"}, queue="demo_psql")
    conn.execute("select durable.send(%s, 'payment')", [workflow_id])
    with worker() as first:
        with db.connect().transaction() as blocking:
            blocking.connection.execute("lock table demo_psql.stock")
            wait_until(
                conn,
                "select exists (select from pg_locks where relation = 'demo_psql.stock'::regclass and not granted)",
            )
            os.killpg(first.pid, signal.SIGKILL)
            first.wait(30)
        with worker():
            decide_next(conn, "approved")
            wait_until(conn, "select status = 'completed' from durable.workflows where workflow_id = %s", workflow_id)
    assert workflow(conn, workflow_id).attempt == 2
    assert set(steps(conn, workflow_id)) == set(STEPS)
    assert value(conn, "select available from demo_psql.stock") == 2


@pytest.mark.pg(15, 18)
def test_what_fails_in_a_psql_worker_fails_its_workflow_alone(db: Database) -> None:
    conn = db.connect()
    conn.execute((EXAMPLE / "schema.sql").read_bytes())
    conn.execute("update demo_psql.stock set available = 0")
    workflow_id = enqueue(conn, "deliver", input={"order_id": "A-9", "sku": "chair"}, queue="demo_psql")
    with worker() as process:
        wait_until(conn, "select status = 'failed' from durable.workflows where workflow_id = %s", workflow_id)
        assert "stock_available_check" in workflow(conn, workflow_id).error_message
        conn.execute("update demo_psql.stock set available = 1")
        assert value(conn, "select durable.retry(%s)", workflow_id)
        conn.execute("select durable.send(%s, 'payment')", [workflow_id])
        decide_next(conn, "approved")
        wait_until(conn, "select status = 'completed' from durable.workflows where workflow_id = %s", workflow_id)
        process.terminate()
        assert process.wait(30) == 0
    assert value(conn, "select count(*) from durable.workers where died_at is null") == 0


@pytest.mark.pg(15)
def test_an_order_that_is_refused_is_put_back_by_a_psql_worker(db: Database) -> None:
    conn = db.connect()
    conn.execute((EXAMPLE / "schema.sql").read_bytes())
    workflow_id = enqueue(conn, "deliver", input={"order_id": "A-9", "sku": "chair"}, queue="demo_psql")
    conn.execute("select durable.send(%s, 'payment')", [workflow_id])
    with worker():
        decide_next(conn, "rejected")
        wait_until(conn, "select status = 'completed' from durable.workflows where workflow_id = %s", workflow_id)
    assert workflow(conn, workflow_id).output == "cancelled: not approved"
    assert value(conn, "select available from demo_psql.stock") == 3
