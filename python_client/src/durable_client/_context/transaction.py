"""Transactional steps: the step's SQL and its checkpoint in one transaction.

Generated from ``transaction_async.py`` by ``tools/async_to_sync.py``; do not edit.
"""

from __future__ import annotations

import time
from typing import Any

import psycopg
from psycopg.rows import tuple_row
from psycopg_pool import ConnectionPool

from .. import _codec
from .._client import calls
from .._client.link import connection_lost, pause, transient
from .._definitions import Step
from .._errors import StepInterrupted, from_database, from_outcome
from .invoke import contained_call
from .outcome import Stored, for_owner
from .run import Run

Pool = ConnectionPool[psycopg.Connection[Any]]


class _AlreadyDone(Exception):
    """The step has an outcome, so its transaction is rolled back."""


def run_transaction(pool: Pool, run: Run, step: Step[Any, Any], name: str, attempt: int, args: Any, kwargs: Any) -> Any:
    """Runs ``step`` with a connection, and commits what it did together with its checkpoint, exactly once.

    Serialization failures and deadlocks run the whole of it again; so does a lost connection, for the database then
    knows whether the commit took place.
    """
    tries = 0
    while True:
        run.check()
        conn: psycopg.Connection[Any] | None = None
        try:
            with pool.connection() as conn:
                return _once(conn, run, step, name, attempt, args, kwargs)
        except psycopg.Error as error:
            # Without a connection, the pool had none to give: the server is away, or all are in use.
            lost = conn is None or connection_lost(error, conn.closed)
            if not lost and not (transient(error) and error.sqlstate != "57014" and tries < 20):
                raise
            time.sleep(pause(tries))
            tries += 1


def _once(
    conn: psycopg.Connection[Any], run: Run, step: Step[Any, Any], name: str, attempt: int, args: Any, kwargs: Any
) -> Any:
    try:
        return _in_transaction(conn, run, step, name, attempt, args, kwargs)
    except _AlreadyDone:
        row = _call(conn, calls.STEP_RESULT, (run.workflow_id, name))
        raise Stored(row[1], row[2]) from None


def _in_transaction(
    conn: psycopg.Connection[Any], run: Run, step: Step[Any, Any], name: str, attempt: int, args: Any, kwargs: Any
) -> Any:
    started = time.monotonic()
    with conn.transaction():
        try:
            _call(conn, calls.BEGIN_STEP, (run.workflow_id, run.lease, name))
        except psycopg.Error as error:
            if error.sqlstate != StepInterrupted.code:
                raise
            raise _AlreadyDone from None
        value = contained_call(lambda: step.function(conn, *args, **kwargs))
        subject = f"workflow {run.workflow_id}, step {name!r}: its output"
        text = _codec.encode(value, subject)
        result = _codec.round_trip(value, text, step.decode)
        elapsed = int((time.monotonic() - started) * 1000)
        row = _call(conn, calls.CHECKPOINT_ONE, (run.workflow_id, run.lease, name, text, attempt, elapsed))
        if row[0] == "exists":
            raise Stored(row[1], row[2])
        if row[0] != "ok":
            raise for_owner(from_outcome(row[0], f"workflow {run.workflow_id}, step {name!r}"))
    return result


def _call(conn: psycopg.Connection[Any], query: str, parameters: Any) -> tuple[Any, ...]:
    try:
        # The body may have set a row factory of its own.
        row = (conn.cursor(row_factory=tuple_row).execute(query, parameters)).fetchone()
    except psycopg.Error as error:
        mapped = from_database(error)
        if mapped is None:
            raise
        raise for_owner(mapped) from error
    assert row is not None
    return tuple(row)
