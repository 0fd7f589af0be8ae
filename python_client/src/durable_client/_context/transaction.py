"""Transactional steps: the step's SQL and its checkpoint in one transaction.

Generated from ``transaction_async.py`` by ``tools/async_to_sync.py``; do not edit.
"""

from __future__ import annotations

import logging
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
from .invoke import ConnectionLost, contained_call
from .outcome import Stored, for_owner
from .run import Run

log = logging.getLogger("durable")

Pool = ConnectionPool[psycopg.Connection[Any]]

_LONGEST_PAUSE = 1.0
# How often the body runs in one attempt of the step: when it meets others (40001, 40P01, 53, 55P03) or its connection
# is lost, and when it makes its connection time out (25P03, 25P04), which it will do again.
_MOST_TRIES = 20
_MOST_TIMEOUTS = 5


class _AlreadyDone(Exception):
    """The step has an outcome, so its transaction is rolled back."""


class _Try:
    """One run of the transaction: how far it came, and what became of its connection."""

    def __init__(self) -> None:
        self.has_begun = False
        self.is_in_body = False
        self.is_lost = False


def run_transaction(pool: Pool, run: Run, step: Step[Any, Any], name: str, attempt: int, args: Any, kwargs: Any) -> Any:
    """Runs ``step`` with a connection, and commits what it did together with its checkpoint, exactly once.

    Serialization failures and deadlocks run the whole of it again; so does a lost connection, for the database then
    knows whether the commit took place. While the server is away it waits. Raises ConnectionLost when the body has
    lost its connection too often.
    """
    waits = tries = timeouts = 0
    while True:
        run.check()
        this = _Try()
        conn: psycopg.Connection[Any] | None = None
        try:
            with pool.connection() as conn:
                return _once(conn, this, run, step, name, attempt, args, kwargs)
        except psycopg.Error as error:
            state = error.sqlstate or ""
            # Without a connection, the pool had none to give: the server is away, or all are in use.
            passes = conn is None or this.is_lost or (transient(error) and not (state == "57014" and this.is_in_body))
            if not passes:
                raise
            if not this.has_begun:
                waits += 1
                log.debug("workflow %s (%s), step %r waits to begin: %s", run.workflow_id, run.name, name, error)
                time.sleep(pause(waits, _LONGEST_PAUSE))
                continue
            # That the whole server has crashed (57P02) is not the doing of this body.
            tries += state != "57P02"
            timeouts += state in ("25P03", "25P04")
            if tries >= _MOST_TRIES or timeouts >= _MOST_TIMEOUTS:
                if this.is_lost:
                    raise ConnectionLost(run.workflow_id, name, tries, error) from error
                raise
            log.warning(
                "workflow %s (%s), step %r: its transaction is run again: %s",
                run.workflow_id, run.name, name, str(error).partition("\n")[0],
            )  # fmt: skip
            time.sleep(pause(tries, _LONGEST_PAUSE))


def _once(
    conn: psycopg.Connection[Any], this: _Try, run: Run, step: Step[Any, Any], name: str, attempt: int, args: Any,
    kwargs: Any,
) -> Any:  # fmt: skip
    try:
        try:
            return _in_transaction(conn, this, run, step, name, attempt, args, kwargs)
        except _AlreadyDone:
            row = _call(conn, calls.STEP_RESULT, (run.workflow_id, name))
            raise Stored(row[1], row[2]) from None
    except psycopg.Error as error:
        # Before the connection goes back to the pool, where others get it.
        this.is_lost = conn.closed or (not this.has_begun and _leads_nowhere(conn, error))
        raise


def _leads_nowhere(conn: psycopg.Connection[Any], error: psycopg.Error) -> bool:
    """Whether a transaction could not begin because the server has become a standby, say behind a pooler."""
    if not isinstance(error, psycopg.errors.FeatureNotSupported | psycopg.errors.ReadOnlySqlTransaction):
        return connection_lost(error, conn.closed)
    try:
        conn.rollback()
        is_standby = bool((_call(conn, calls.IN_RECOVERY, ()))[0])
    except psycopg.Error:
        is_standby = True
    if is_standby:
        conn.close()
    return is_standby


def _in_transaction(
    conn: psycopg.Connection[Any], this: _Try, run: Run, step: Step[Any, Any], name: str, attempt: int, args: Any,
    kwargs: Any,
) -> Any:  # fmt: skip
    started = time.monotonic()
    with conn.transaction():
        try:
            _call(conn, calls.BEGIN_STEP, (run.workflow_id, run.lease, name))
        except psycopg.Error as error:
            if error.sqlstate != StepInterrupted.code:
                raise
            raise _AlreadyDone from None
        this.has_begun = this.is_in_body = True
        value = contained_call(lambda: step.function(conn, *args, **kwargs))
        this.is_in_body = False
        subject = f"workflow {run.workflow_id}, step {name!r}: its output"
        text = _codec.encode(value, subject)
        result = _codec.round_trip(value, text, step.decode)
        elapsed = int((time.monotonic() - started) * 1000)
        row = _call(conn, calls.CHECKPOINT_ONE, (run.workflow_id, run.lease, name, text, attempt, elapsed))
        if row[0] == "exists":
            raise Stored(row[1], row[2])
        if row[0] == "busy":
            raise psycopg.errors.LockNotAvailable("another transaction keeps its checkpoint from being stored")
        if row[0] != "ok":
            raise for_owner(from_outcome(row[0], f"workflow {run.workflow_id}, step {name!r}"))
    return result


def _call(conn: psycopg.Connection[Any], query: str, parameters: Any) -> tuple[Any, ...]:
    try:
        # The body may have set a row factory of its own.
        row = (conn.cursor(row_factory=tuple_row, binary=True).execute(query, parameters)).fetchone()
    except psycopg.Error as error:
        mapped = from_database(error)
        if mapped is None:
            raise
        raise for_owner(mapped) from error
    assert row is not None
    return tuple(row)
