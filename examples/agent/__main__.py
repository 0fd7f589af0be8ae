"""An AI agent that is killed amid its sentences, and pays for no token twice: python -m examples.agent"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
from durable_client import DurableError, Handle

from ..database import database
from ..worker import Worker
from .reader import Reader
from .support import answer, app

HERE = Path(__file__).parent
QUESTION = "Order {}: 3 cups at 19.90 each arrived broken. Please send me my money back."

Connection = psycopg.Connection[tuple[Any, ...]]


def main() -> None:
    """Works on the database of DURABLE_DSN, in the schemas demo_support and demo_model, which it makes anew; without
    DURABLE_DSN, on an embedded Postgres that is thrown away afterwards."""
    with database("agent") as (dsn, directory), contextlib.ExitStack() as stack:
        conn = stack.enter_context(psycopg.connect(dsn, autocommit=True))
        conn.execute((HERE / "schema.sql").read_bytes())
        stack.callback(app.close)
        os.environ["MODEL_URL"] = stack.enter_context(model())
        worker = stack.enter_context(Worker("examples.agent.support:app", directory / "worker.log"))
        try:
            run_undisturbed(conn, worker)
            run_disturbed(conn, worker)
        except (DurableError, TimeoutError) as error:
            sys.exit(f"{error}\nThe last lines of the worker:\n{worker.last_words()}")
        say(f"The worker was killed {worker.kills} times. The audit (examples/agent/audit.sql)")
        if not audit(conn):
            sys.exit("The audit found something wrong.")


def run_undisturbed(conn: Connection, worker: Worker) -> None:
    say("First a run that nothing disturbs, to see what it costs")
    worker.start()
    handle = take_ticket(conn, QUESTION.format("A-7"), disturbed=False)
    reader = Reader(handle)
    reader.read_until(lambda: asked(conn, handle))
    approve(conn, handle)
    reader.read_to_the_end()


def run_disturbed(conn: Connection, worker: Worker) -> None:
    say("The same once more, and now the worker is killed")
    handle = take_ticket(conn, QUESTION.format("A-8"), disturbed=True)
    reader = Reader(handle)
    reader.read_until(lambda: reader.is_at(reply=1, characters=60))
    say("SIGKILL, amid a sentence of the model. Another worker goes on")
    worker.kill()
    worker.start()
    reader.read_until(lambda: asked(conn, handle))
    say("A person is asked, and the agent is a row. SIGKILL, and there is no worker at all while the person thinks")
    worker.kill()
    approve(conn, handle)
    worker.start()
    reader.read_until(lambda: reader.is_at(reply=4, characters=100))
    say("SIGKILL, amid the last reply, when the money is on its way")
    worker.kill()
    worker.start()
    reader.read_to_the_end()
    worker.drain()


def take_ticket(conn: Connection, question: str, *, disturbed: bool) -> Handle[str]:
    """Insert and enqueue in one transaction: there is never one without the other."""
    with conn.transaction():
        handle = app.enqueue(answer, question, conn=conn)
        conn.execute(
            "insert into demo_support.tickets (workflow_id, question, disturbed) values (%s, %s, %s)",
            [handle.workflow_id, question, disturbed],
        )
    return handle


def asked(conn: Connection, handle: Handle[str]) -> list[tuple[Any, ...]]:
    """What the workflow asks people, once it has come to rest."""
    return conn.execute(
        "select a.approval_id, a.assignee, a.subject, a.form from durable.approvals a"
        " join durable.workflows w using (workflow_id)"
        " where a.workflow_id = %s and a.state = 'pending' and w.status = 'waiting'",
        [handle.workflow_id],
    ).fetchall()


def approve(conn: Connection, handle: Handle[str]) -> None:
    """A person decides, who knows SQL."""
    ((approval_id, assignee, subject, form),) = asked(conn, handle)
    print(f"\n  durable.approvals: {assignee}, {subject} {json.dumps(form)}")
    print("  select durable.decide(…, 'approved', by => 'Grace')")
    conn.execute("select durable.decide(%s, 'approved', by => 'Grace')", [approval_id])


@contextlib.contextmanager
def model() -> Iterator[str]:
    """Runs the model, a process of its own, and yields its URL."""
    command = [sys.executable, "-m", "examples.agent.model"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            url = process.stdout.readline().strip()
            if not url:
                raise RuntimeError("the model did not start")
            yield url
        finally:
            process.terminate()


def audit(conn: Connection) -> bool:
    """Prints what audit.sql finds; True when all of it is as promised."""
    findings = conn.execute((HERE / "audit.sql").read_bytes()).fetchall()
    width = max(len(finding) for finding, _, _ in findings)
    for finding, found, expected in findings:
        verdict = "" if expected is None else "  ok" if found == expected else f"  WRONG, expected {expected:,}"
        print(f"  {finding:<{width}}  {found:>5,}{verdict}")
    return all(expected is None or found == expected for _, found, expected in findings)


def say(text: str) -> None:
    print(f"\n{text}.", flush=True)


if __name__ == "__main__":
    main()
