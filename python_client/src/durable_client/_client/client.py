"""Enqueueing workflows and asking after them.

Generated from ``client_async.py`` by ``tools/async_to_sync.py``; do not edit.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import Any, Generic, TypeVar

import psycopg
from psycopg.rows import tuple_row
from psycopg_pool import ConnectionPool

from .. import _codec
from .._approvals import ApprovalRecord, ApprovalState, listed, record_of
from .._definitions import Workflow, check_texts, enqueue_parameters
from .._durations import Duration, seconds
from .._errors import InvalidArgument, ResultTimeout, WorkflowCancelled, translated, workflow_failed
from .._records import StepRecord
from .._schedules import BackfillStep, Schedule
from . import calls
from .connection import BinaryCursor, configure, conninfo
from .link import pause
from .schema import check_version

R = TypeVar("R")

# How often a question is asked again while Postgres cannot be reached; about half a minute in all.
_MOST_TRIES = 40


class Handle(Generic[R]):
    """One workflow, by its id. Making one asks nothing of the database."""

    def __init__(self, client: Client, workflow_id: str, decode: _codec.Decoder | None = None) -> None:
        self._client = client
        self._decode = decode
        self.workflow_id = workflow_id

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.workflow_id!r})"

    def status(self) -> str:
        """``pending``, ``running``, ``sleeping``, ``waiting``, ``completed``, ``failed`` or ``cancelled``.

        Raises WorkflowNotFound.
        """
        rows = self._client._read(calls.STATUS, [self.workflow_id])
        return str(rows[0][0])

    def result(self, timeout: Duration | None = None) -> R:
        """Waits for the end of the workflow and returns its output; if it continued as a new run, that of the last run.

        Raises WorkflowFailed, WorkflowCancelled, WorkflowNotFound, or ResultTimeout when it has not ended in time.
        """
        give_up = None if timeout is None else time.monotonic() + seconds(timeout)
        pause = 0.005
        while True:
            ((status, output, error),) = self._client._read(calls.RESULT, [self.workflow_id])
            if status == "completed":
                subject = f"the output of workflow {self.workflow_id}"
                value = None if output is None else _codec.parse(output, subject)
                decoded: R = _codec.decode(value, self._decode, subject)
                return decoded
            if status in ("failed", "cancelled"):
                stored = _codec.parse_error(error, "the stored error")
                if status == "failed":
                    raise workflow_failed(self.workflow_id, stored)
                raise WorkflowCancelled(f"workflow {self.workflow_id} was cancelled: {stored.get('message')}")
            if give_up is not None and time.monotonic() + pause > give_up:
                raise ResultTimeout(
                    f"workflow {self.workflow_id} is {status} and did not end within {timeout}",
                    hint="It goes on. Ask again, or see what it does with `durable show`.",
                )
            time.sleep(pause)
            pause = min(pause * 1.5, 0.5)

    def cancel(self, reason: str | None = None) -> bool:
        """Ends the workflow as cancelled; False when it had already ended. Raises WorkflowNotFound."""
        check_texts(reason=reason)
        rows = self._client._all(calls.CANCEL, [self.workflow_id, reason])
        return bool(rows[0][0])

    def send(self, topic: str, payload: Any = None, *, key: str | None = None, conn: Any = None) -> bool:
        """Sends a message to the workflow; see ``Durable.send``."""
        return self._client.send(self.workflow_id, topic, payload, key=key, conn=conn)

    def retry(self) -> bool:
        """Lets a failed or cancelled workflow go on from its last checkpoint; False when it is neither."""
        rows = self._client._all(calls.RETRY, [self.workflow_id])
        return bool(rows[0][0])

    def pause(self, reason: str | None = None) -> bool:
        """Lets nobody run the workflow until it is resumed; False when it has ended, or is paused already.

        One that runs is taken from its worker, and the step that was under way runs again after the pause. Raises
        WorkflowNotFound.
        """
        check_texts(reason=reason)
        rows = self._client._all(calls.PAUSE, [self.workflow_id, reason])
        return bool(rows[0][0])

    def resume(self) -> bool:
        """Ends a pause; False when there is none. Raises WorkflowNotFound."""
        rows = self._client._all(calls.RESUME, [self.workflow_id])
        return bool(rows[0][0])

    def fork(
        self,
        from_step: str | None = None,
        *,
        input: Any = None,
        outputs: dict[str, Any] | None = None,
        conn: Any = None,
    ) -> Handle[R]:
        """Starts a copy of the workflow that has the checkpoints of all that ended before ``from_step`` ended.

        Without ``from_step`` it runs from the start. ``input`` replaces the input, and ``outputs`` what steps returned,
        by their names. The two share nothing from there on. Raises WorkflowNotFound, InvalidArgument when there is no
        such step, PayloadTooLarge.
        """
        subject = f"the fork of workflow {self.workflow_id}"
        given = None if input is None else _codec.encode(input, f"{subject}: its input")
        replaced = _codec.encode(outputs or {}, f"{subject}: its outputs")
        rows = self._client._all(calls.FORK, [self.workflow_id, from_step, given, replaced], conn)
        return Handle(self._client, rows[0][0], self._decode)

    def state(self) -> dict[str, Any]:
        """What the workflow has published with ``ctx.set``: the latest value of each key. Raises WorkflowNotFound.

        A value that Python cannot take in prints as the reason; any use of it raises InvalidArgument.
        """
        rows = self._client._read(calls.STATE, [self.workflow_id])
        return _codec.parse_fields(
            rows[0][0], lambda key: f"workflow {self.workflow_id}: the published value of {key!r}"
        )

    def steps(self) -> list[StepRecord]:
        """The steps in the order in which they ended, then those under way. Raises WorkflowNotFound."""
        return [
            StepRecord(
                name,
                status,
                attempt,
                _codec.parse_or_mark(output, f"workflow {self.workflow_id}, step {name!r}: the output"),
                _codec.parse_or_mark(error, f"workflow {self.workflow_id}, step {name!r}: the error"),
                *times,
            )
            for name, status, attempt, output, error, *times in self._client._read(calls.HISTORY, [self.workflow_id])
        ]


class Client:
    """What ``Durable`` does outside of workflows. Opens its connections when they are first needed."""

    def __init__(self, dsn: str, *, max_connections: int = 4) -> None:
        self._dsn = dsn
        self._max_connections = max_connections
        self._pool: ConnectionPool[psycopg.Connection[tuple[Any, ...]]] | None = None
        # Many may come at once, and one pool is for all of them.
        self._opening = threading.Lock()

    def close(self) -> None:
        """Closes the connections. The client opens new ones when it is used again."""
        if self._pool is not None:
            self._pool.close()
            self._pool = None
            # The next one may be used in another event loop.
            self._opening = threading.Lock()

    @contextmanager
    def _connection(self) -> Iterator[psycopg.Connection[Any]]:
        with self._opening:
            if self._pool is None:
                self._pool = self._open()
            pool = self._pool
        with pool.connection() as conn:
            yield conn

    def _open(self) -> ConnectionPool[psycopg.Connection[tuple[Any, ...]]]:
        # The first connection is made here, so that a wrong DSN is reported at once and as it is.
        dsn = conninfo(self._dsn)
        with psycopg.Connection.connect(dsn, autocommit=True) as conn, translated():
            check_version((conn.execute(calls.VERSION)).fetchone())
        pool: ConnectionPool[psycopg.Connection[tuple[Any, ...]]] = ConnectionPool(
            dsn, min_size=1, max_size=self._max_connections, open=False, configure=configure,
            kwargs={"autocommit": True, "cursor_factory": BinaryCursor},
        )  # fmt: skip
        pool.open()
        return pool

    def _all(self, query: str, parameters: Sequence[Any], conn: Any = None) -> list[tuple[Any, ...]]:
        with translated():
            if conn is None:
                with self._connection() as own:
                    return (own.execute(query, parameters)).fetchall()
            # Whatever the settings of the connection, which is the caller's.
            with conn.cursor(row_factory=tuple_row, binary=True) as cursor:
                cursor.execute(query, parameters)
                rows: list[tuple[Any, ...]] = cursor.fetchall()
                return rows

    def _read(self, query: str, parameters: Sequence[Any]) -> list[tuple[Any, ...]]:
        """Asks again while Postgres restarts: a question changes nothing."""
        tries = 0
        while True:
            try:
                return self._all(query, parameters)
            except psycopg.OperationalError:
                if tries == _MOST_TRIES or self._pool is None:
                    raise
                time.sleep(pause(tries, 1.0))
                tries += 1

    def handle(self, workflow_id: Any, workflow: Workflow[..., R] | None = None) -> Handle[R]:
        """The handle of a workflow by its id; ``workflow`` makes its result come back as annotated."""
        return Handle(self, str(workflow_id), workflow.decode_output if workflow is not None else None)

    def send(
        self, workflow_id: Any, topic: str, payload: Any = None, *, key: str | None = None, conn: Any = None
    ) -> bool:
        """Sends a message to one workflow; see ``Durable.send``."""
        check_texts(topic=topic, key=key)
        text = _codec.encode(payload, f"the message to workflow {workflow_id}")
        rows = self._all(calls.SEND, [str(workflow_id), topic, text, key], conn)
        return bool(rows[0][0])

    def emit(self, event: str, payload: Any = None, *, conn: Any = None) -> bool:
        """Tells of an event; see ``Durable.emit``."""
        check_texts(event=event)
        rows = self._all(calls.EMIT, [event, _codec.encode(payload, f"the payload of event {event!r}")], conn)
        return bool(rows[0][0])

    def approvals(
        self, *, assignee: str | None = None, state: ApprovalState | None = "pending", limit: int = 100
    ) -> list[ApprovalRecord]:
        """What workflows ask people, the newest first; see ``Durable.approvals``."""
        where, values = listed(assignee, state)
        rows = self._read(calls.APPROVALS.format(where=where), [*values, limit])
        return [record_of(row) for row in rows]

    def decide(
        self,
        approval_id: Any,
        decision: str,
        *,
        by: str | None = None,
        comment: str | None = None,
        data: Any = None,
        conn: Any = None,
    ) -> bool:
        """Decides an approval; see ``Durable.decide``."""
        check_texts(decision=decision, by=by, comment=comment)
        text = None if data is None else _codec.encode(data, f"the data of the decision on approval {approval_id}")
        rows = self._all(calls.DECIDE, [str(approval_id), decision, by, comment, text], conn)
        return bool(rows[0][0])

    def enqueue(
        self,
        workflow: Workflow[..., R] | str,
        input: Any = None,
        *,
        key: str | None = None,
        queue: str | None = None,
        priority: int | None = None,
        run_at: datetime | None = None,
        max_attempts: int | None = None,
        timeout: Duration | None = None,
        tags: dict[str, Any] | None = None,
        conn: Any = None,
    ) -> Handle[R]:
        """Enqueues one workflow; see ``Durable.enqueue``."""
        (encoded,), (name, *rest) = enqueue_parameters(
            workflow, [input], key, queue, priority, run_at, max_attempts, timeout, tags
        )
        rows = self._all(calls.ENQUEUE, [name, encoded, *rest], conn)
        return self._handle_of(workflow, rows[0][0])

    def enqueue_many(
        self,
        workflow: Workflow[..., R] | str,
        inputs: Sequence[Any],
        *,
        keys: Sequence[str | None] | None = None,
        queue: str | None = None,
        priority: int | None = None,
        run_at: datetime | None = None,
        max_attempts: int | None = None,
        timeout: Duration | None = None,
        tags: dict[str, Any] | None = None,
        conn: Any = None,
    ) -> list[Handle[R]]:
        """Enqueues one workflow for each input, all or none; see ``Durable.enqueue_many``."""
        own_keys = None if keys is None else calls.text_array(keys)
        encoded, (name, *rest) = enqueue_parameters(
            workflow, inputs, own_keys, queue, priority, run_at, max_attempts, timeout, tags
        )
        rows = self._all(calls.ENQUEUE_MANY, [name, calls.text_array(encoded), *rest], conn)
        return [self._handle_of(workflow, row[0]) for row in rows]

    def _handle_of(self, workflow: Workflow[..., R] | str, workflow_id: Any) -> Handle[R]:
        return self.handle(workflow_id, workflow if isinstance(workflow, Workflow) else None)

    def apply_schedules(self, schedules: Iterable[Schedule], *, conn: Any = None) -> dict[str, datetime | None]:
        """Makes the schedules, or changes them to what is given, all or none; returns when each is due next.

        To apply them again changes nothing, so it can be part of each deploy. A paused one stays paused. What another
        deploy no longer names stays as well: see ``unschedule``. Raises InvalidArgument.
        """
        parameters = [schedule.parameters() for schedule in sorted(schedules, key=lambda schedule: schedule.name)]
        if conn is None:
            with self._connection() as own, own.transaction():
                return self._apply(parameters, own)
        return self._apply(parameters, conn)

    def _apply(self, parameters: list[list[Any]], conn: Any) -> dict[str, datetime | None]:
        return {each[0]: (self._all(calls.SCHEDULE, each, conn))[0][0] for each in parameters}

    def unschedule(self, name: str) -> bool:
        """Removes a schedule; False when there is none. Workflows that it started go on."""
        return bool((self._all(calls.UNSCHEDULE, [name]))[0][0])

    def pause_schedule(self, name: str, reason: str | None = None) -> bool:
        """Lets a schedule start nothing until it is resumed; False when it was paused. Raises InvalidArgument."""
        return bool((self._all(calls.PAUSE_SCHEDULE, [name, reason]))[0][0])

    def resume_schedule(self, name: str) -> datetime | None:
        """Ends the pause of a schedule; returns when it is due next. Raises InvalidArgument."""
        due: datetime | None = (self._all(calls.RESUME_SCHEDULE, [name]))[0][0]
        return due

    def trigger_schedule(self, name: str) -> Handle[Any]:
        """Starts the workflow of a schedule now. Raises InvalidArgument."""
        return self.handle((self._all(calls.TRIGGER_SCHEDULE, [name]))[0][0])

    def next_firings(self, name: str, count: int = 10) -> list[datetime]:
        """When a schedule is due next. Raises InvalidArgument."""
        return [row[0] for row in self._read(calls.NEXT_FIRINGS, [name, count])]

    def backfill_schedule(
        self,
        name: str,
        from_at: datetime,
        until_at: datetime,
        *,
        dry_run: bool = True,
        max_parallel: int = 1,
        redo: bool = False,
    ) -> list[BackfillStep]:
        """Runs a schedule for due times of the past, both ends included; see ``durable.backfill_schedule()`` in SQL.

        A dry run, which is the default, only says what would be done. ``redo`` runs again what ran already. Raises
        InvalidArgument.
        """
        for field, at in (("from_at", from_at), ("until_at", until_at)):
            if at.tzinfo is None:
                raise InvalidArgument(f"schedule {name!r}: {field} has no time zone")
        parameters = [name, from_at, until_at, dry_run, max_parallel, redo]
        return [BackfillStep(*row) for row in self._all(calls.BACKFILL_SCHEDULE, parameters)]
