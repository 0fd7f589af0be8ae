"""The app: what a program declares, and what it asks of the database."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Coroutine, Sequence
from datetime import datetime
from typing import Any, ParamSpec, Protocol, TypeVar, overload

from ._approvals import ApprovalRecord, ApprovalState
from ._client.client import Client, Handle
from ._client.client_async import AsyncClient
from ._definitions import NO_RETRY, Step, Workflow
from ._durations import Duration, seconds
from ._errors import InvalidArgument
from ._retry import Retry
from ._schedules import CatchupMode, Overlap, Schedule
from ._worker.worker import Worker, run_until_signalled

P = ParamSpec("P")
R = TypeVar("R")


class _DeclareWorkflow(Protocol):
    @overload
    def __call__(self, function: Callable[P, Coroutine[Any, Any, R]], /) -> Workflow[P, R]: ...
    @overload
    def __call__(self, function: Callable[P, R], /) -> Workflow[P, R]: ...


class Durable:
    """Workflows and steps of a program, and the database that they live in.

    ``dsn`` is a psycopg connection string; without one the environment's ``DURABLE_DSN`` is used. Nothing is connected
    before it is needed. The methods are synchronous; ``aio`` has the same ones to await.
    """

    def __init__(self, dsn: str | None = None) -> None:
        self._dsn = dsn
        self._client: Client | None = None
        self._async_client: AsyncClient | None = None
        self.workflows: dict[str, Workflow[..., Any]] = {}
        self.schedules: dict[str, Schedule] = {}

    @property
    def dsn(self) -> str:
        """The connection string. Raises InvalidArgument when there is none."""
        dsn = self._dsn or os.environ.get("DURABLE_DSN")
        if not dsn:
            raise InvalidArgument(
                "there is no database to connect to",
                hint='Set DURABLE_DSN, or pass a connection string: Durable("postgresql://user@host/database").',
            )
        return dsn

    # Declaring

    @overload
    def step(self, function: Callable[P, R]) -> Step[P, R]: ...
    @overload
    def step(
        self,
        *,
        name: str | None = None,
        retry: Retry = NO_RETRY,
        timeout: Duration | None = None,
        at_most_once: bool = False,
    ) -> Callable[[Callable[P, R]], Step[P, R]]: ...
    def step(
        self,
        function: Any = None,
        *,
        name: str | None = None,
        retry: Retry = NO_RETRY,
        timeout: Duration | None = None,
        at_most_once: bool = False,
    ) -> Any:
        """Declares a step: a function, plain or ``async``, whose outcome is checkpointed once for each call.

        ``name`` (default: the function's) identifies it in stored runs. ``timeout`` limits one attempt; a plain
        function goes on in its thread, unheard. ``at_most_once`` records the start first, so that after a crash the
        step is reported as interrupted (StepInterrupted) instead of being run again.
        """

        def declare(body: Callable[P, R]) -> Step[P, R]:
            return Step(body, name or body.__name__, retry, None if timeout is None else seconds(timeout), at_most_once)

        return declare if function is None else declare(function)

    @overload
    def workflow(self, function: Callable[P, Coroutine[Any, Any, R]]) -> Workflow[P, R]: ...
    @overload
    def workflow(self, function: Callable[P, R]) -> Workflow[P, R]: ...
    @overload
    def workflow(
        self,
        *,
        name: str | None = None,
        queue: str = "default",
        max_attempts: int = 1,
        timeout: Duration | None = None,
        priority: int = 0,
    ) -> _DeclareWorkflow: ...
    def workflow(
        self,
        function: Any = None,
        *,
        name: str | None = None,
        queue: str = "default",
        max_attempts: int = 1,
        timeout: Duration | None = None,
        priority: int = 0,
    ) -> Any:
        """Declares a workflow: a function, plain or ``async``, of a context and at most one input.

        ``name`` (default: the function's) identifies it in the database. The other options are defaults for
        ``enqueue``: ``max_attempts`` counts attempts that end in an error, ``timeout`` runs from the first start,
        lower ``priority`` runs first. Raises InvalidArgument when the name is taken.
        """

        def declare(body: Callable[P, R]) -> Workflow[P, R]:
            declared = Workflow(
                body,
                name or body.__name__,
                queue,
                max_attempts,
                None if timeout is None else seconds(timeout),
                priority,
            )
            if declared.name in self.workflows:
                raise InvalidArgument(
                    f"there is already a workflow {declared.name!r}", hint="Give one of them a name=."
                )
            self.workflows[declared.name] = declared
            return declared

        return declare if function is None else declare(function)

    def schedule(
        self,
        cron: str,
        *,
        name: str | None = None,
        input: Any = None,
        timezone: str = "UTC",
        overlap: Overlap = "skip",
        catchup: Duration = 0,
        catchup_mode: CatchupMode = "all",
        jitter: Duration = 0,
        starts_at: datetime | None = None,
        ends_at: datetime | None = None,
        max_firings: int | None = None,
        pause_on_failure: bool = False,
        tags: dict[str, Any] | None = None,
    ) -> Callable[[Workflow[P, R]], Workflow[P, R]]:
        """Declares a schedule of the workflow below it; see ``Schedule`` for the options.

        ``name`` (default: the workflow's) identifies it in the database, which knows it once ``apply_schedules`` was
        called. Declare several with different names for several schedules of one workflow. Raises InvalidArgument when
        the name is taken, or what is below is no workflow.
        """

        def declare(workflow: Workflow[P, R]) -> Workflow[P, R]:
            if not isinstance(workflow, Workflow):
                raise InvalidArgument(
                    f"{getattr(workflow, '__name__', workflow)!r} is no workflow", hint="Put @app.workflow below it."
                )
            declared = Schedule(
                name or workflow.name, cron, workflow, input, timezone, overlap, catchup, catchup_mode, jitter,
                starts_at, ends_at, max_firings, pause_on_failure, tags=tags,
            )  # fmt: skip
            if declared.name in self.schedules:
                raise InvalidArgument(
                    f"there is already a schedule {declared.name!r}", hint="Give one of them a name=."
                )
            self.schedules[declared.name] = declared
            return workflow

        return declare

    # Asking

    @property
    def client(self) -> Client:
        """The synchronous client; the methods of this class are its methods."""
        if self._client is None:
            self._client = Client(self.dsn)
        return self._client

    @property
    def aio(self) -> AsyncClient:
        """The asynchronous client: ``await app.aio.enqueue(…)``. Belongs to one event loop."""
        if self._async_client is None:
            self._async_client = AsyncClient(self.dsn)
        return self._async_client

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
        """Enqueues one workflow and returns its handle.

        With ``conn``, a psycopg connection, it joins the transaction of that connection: nothing is visible before its
        commit, nothing is left after its rollback. ``key`` makes it idempotent: the same key for the same workflow
        gives the same workflow. ``run_at`` delays the start. What is left out comes from ``@app.workflow``.

        Raises KeyConflict, InvalidArgument, PayloadTooLarge.
        """
        handle: Handle[R] = self.client.enqueue(
            workflow,
            input,
            key=key,
            queue=queue,
            priority=priority,
            run_at=run_at,
            max_attempts=max_attempts,
            timeout=timeout,
            tags=tags,
            conn=conn,
        )
        return handle

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
        """Enqueues one workflow for each input, all or none, and returns the handles in the order of the inputs."""
        return self.client.enqueue_many(
            workflow,
            inputs,
            keys=keys,
            queue=queue,
            priority=priority,
            run_at=run_at,
            max_attempts=max_attempts,
            timeout=timeout,
            tags=tags,
            conn=conn,
        )

    def send(
        self, workflow_id: Any, topic: str, payload: Any = None, *, key: str | None = None, conn: Any = None
    ) -> bool:
        """Sends a message to one workflow, which need not have started; it receives it with ``ctx.receive(topic)``.

        A ``key`` that it was sent before sends nothing and returns False. With ``conn``, a psycopg connection, the
        message is sent with its transaction. Raises WorkflowEnded, WorkflowNotFound, PayloadTooLarge.
        """
        return self.client.send(workflow_id, topic, payload, key=key, conn=conn)

    def emit(self, event: str, payload: Any = None, *, conn: Any = None) -> bool:
        """Tells of an event: all workflows that wait for it, now or later, go on. The first emit of a name stands;
        a later one changes nothing and returns False. With ``conn`` it is part of that transaction.
        """
        return self.client.emit(event, payload, conn=conn)

    def approvals(
        self, *, assignee: str | None = None, state: ApprovalState | None = "pending", limit: int = 100
    ) -> list[ApprovalRecord]:
        """What workflows ask people, the newest first: those of an ``assignee``, in a ``state`` (None for any).

        Needs the rights of ``durable.grant_approver()`` or ``grant_observer()``.
        """
        return self.client.approvals(assignee=assignee, state=state, limit=limit)

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
        """Decides an approval: ``"approved"``, ``"rejected"``, or another word that its workflow knows.

        ``by`` is who decides (None for the name of the database role), ``data`` what the decision comes with, the
        values of a form for example. The first decision stands; the same one again returns False. With ``conn``, a
        psycopg connection, it is part of that transaction. Needs the rights of ``durable.grant_approver()``. Raises
        ApprovalClosed when it is decided otherwise, expired or withdrawn, WorkflowNotFound when there is none,
        InvalidArgument, PayloadTooLarge.
        """
        return self.client.decide(approval_id, decision, by=by, comment=comment, data=data, conn=conn)

    def handle(self, workflow_id: Any, workflow: Workflow[..., R] | None = None) -> Handle[R]:
        """The handle of a workflow by its id; ``workflow`` makes its result come back as annotated."""
        return self.client.handle(workflow_id, workflow)

    def apply_schedules(self, *, conn: Any = None) -> dict[str, datetime | None]:
        """Makes what ``schedule`` declared known to the database; call it at each deploy.

        Returns when each is due next. Needs the rights of ``durable.grant_admin()``. Raises InvalidArgument.
        """
        return self.client.apply_schedules(self.schedules.values(), conn=conn)

    def close(self) -> None:
        """Closes the connections of the synchronous client; ``await app.aio.close()`` does so for the other."""
        if self._client is not None:
            self._client.close()
            self._client = None

    # Working

    def run_worker(
        self,
        *,
        queues: Sequence[str] | None = None,
        concurrency: int = 200,
        name: str | None = None,
        transactions: int = 10,
        drain: Duration = 20.0,
    ) -> None:
        """Runs a worker in this process until SIGTERM or SIGINT; see ``Worker``. Uses uvloop where it is installed."""
        worker = Worker(self, queues=queues, concurrency=concurrency, name=name, transactions=transactions, drain=drain)
        try:
            from uvloop import run
        except ImportError:
            run = asyncio.run
        # Not within the handler: what is raised would name the missing module as its context.
        run(run_until_signalled(worker))
