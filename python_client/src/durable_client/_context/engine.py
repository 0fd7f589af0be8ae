"""What contexts need of the worker, from the event loop and from threads."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextvars
import json
import logging
import threading
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import psycopg
from psycopg.rows import tuple_row
from psycopg_pool import AsyncConnectionPool, ConnectionPool

from .._client import calls
from .._client.connection import configure_for_steps, configure_for_steps_async, conninfo
from .._client.link import Link
from .._definitions import Step
from .._durations import seconds
from .._errors import DurableError, PayloadTooLarge, StepInterrupted, translated
from .._retry import Retry
from .invoke import in_thread, invoke, invoke_async, on_loop
from .outcome import INTERRUPTED, Stored, for_owner
from .run import LONG_RUN, Run, WorkflowInterrupted
from .transaction import run_transaction
from .transaction_async import run_transaction_async
from .waits import Waits
from .writer import Checkpoint, Writer

log = logging.getLogger("durable")

# Postgres ends the connection of whoever sends 1 GB, and a link would connect and send it again without end.
_MOST_BYTES = 1_000_000_000


class AsyncEngine:
    """The calls of a step, awaited on the event loop."""

    def __init__(
        self, dsn: str, writer: Writer, waits: Waits, link: Link, threads: concurrent.futures.Executor,
        max_transactions: int,
    ) -> None:  # fmt: skip
        self._writer = writer
        self._waits = waits
        self._link = link
        self.threads = threads
        self.loop = asyncio.get_running_loop()
        # Warnings under way; the event loop keeps no hold of its tasks.
        self._telling: set[asyncio.Future[Any]] = set()
        # Opened by the first transactional step.
        self.async_pool: AsyncConnectionPool[psycopg.AsyncConnection[Any]] = AsyncConnectionPool(
            conninfo(dsn),
            min_size=0,
            max_size=max_transactions,
            open=False,
            configure=configure_for_steps_async,
            reset=_forget_row_factory_async,
        )
        self.pool: ConnectionPool[psycopg.Connection[Any]] = ConnectionPool(
            conninfo(dsn), min_size=0, max_size=max_transactions, open=False, configure=configure_for_steps,
            reset=_forget_row_factory,
        )  # fmt: skip

    async def close(self) -> None:
        await self.async_pool.close()
        await asyncio.to_thread(self.pool.close)

    def invoke(self, run: Run, step: Step[Any, Any], args: Any, kwargs: Any) -> Awaitable[Any]:
        return invoke_async(step, self.threads, args, kwargs)

    async def pause(self, run: Run, length: float) -> None:
        """Lets so many seconds pass, or fewer when the code must stop."""
        await asyncio.sleep(length)

    def spawn(self, call: Callable[..., Any], *args: Any) -> asyncio.Future[Any]:
        task: asyncio.Future[Any] = asyncio.ensure_future(call(*args))
        return task

    async def join(self, spawned: Sequence[asyncio.Future[Any]]) -> None:
        """Waits for all of them. Raises what the first of them raised, if one did; the others are cancelled then."""
        try:
            await asyncio.gather(*spawned)
        finally:
            for task in spawned:
                task.cancel()
            await asyncio.gather(*spawned, return_exceptions=True)

    async def checkpoint(self, run: Run, name: str, output: str, attempt: int, elapsed_ms: int) -> None:
        """Returns when the output is stored; raises Stored when another outcome was first."""
        waiter = self.loop.create_future()
        self._writer.checkpoint(Checkpoint(run, name, output, attempt, elapsed_ms, waiter))
        try:
            settle(await waiter)
        except DurableError as error:
            raise for_owner(error) from None

    async def transact(self, run: Run, step: Step[Any, Any], name: str, attempt: int, args: Any, kwargs: Any) -> Any:
        if step.is_async:
            await self.async_pool.open()
            return await run_transaction_async(self.async_pool, run, step, name, attempt, args, kwargs)
        return await in_thread(self.threads, lambda: self.transact_here(run, step, name, attempt, args, kwargs))

    def transact_here(self, run: Run, step: Step[Any, Any], name: str, attempt: int, args: Any, kwargs: Any) -> Any:
        self.pool.open()
        return run_transaction(self.pool, run, step, name, attempt, args, kwargs)

    async def wait(
        self, run: Run, name: str, conditions: str, mode: str, timeout: float | None, until: float | None
    ) -> Any:
        """The output of a wait, as decoded JSON; the workflow is parked while it lasts."""
        return await self._waits.wait(run, name, conditions, mode, timeout, until)

    async def pass_gate(self, run: Run) -> None:
        """Returns when a step may begin: the workflow is not about to be parked."""
        await self._waits.pass_gate(run)
        run.check()

    def step_ended(self, run: Run) -> None:
        """A step has ended while the workflow waits for something, too."""
        self._waits.settle(run)

    async def start_step(self, run: Run, name: str) -> Stored | None:
        """Returns None when the start is recorded, else what is known of the step: its outcome, or its start."""
        try:
            await self._call(calls.START_STEP, (run.workflow_id, run.lease, name))
        except psycopg.Error as error:
            if error.sqlstate != StepInterrupted.code:
                raise
            for _, output, stored in await self._call(calls.STEP_RESULT, (run.workflow_id, name)):
                return Stored(output, stored)
            return Stored(None, json.dumps(INTERRUPTED))
        return None

    async def fail_step(self, run: Run, name: str, error: str, attempt: int, limit: int, retry: Retry) -> float | None:
        """The wait before the next attempt in seconds; None after the last one."""
        rows = await self._call(
            calls.FAIL_STEP,
            (run.workflow_id, run.lease, name, error, attempt, limit, seconds(retry.initial), retry.backoff,
             seconds(retry.max_delay)),
        )  # fmt: skip
        wait: float | None = rows[0][0]
        if wait is None:
            run.failed.append(name)
        return wait

    async def publish(self, run: Run, key: str, value: str) -> None:
        await self._call(calls.PUBLISH, (run.workflow_id, run.lease, key, value))

    async def continue_as_new(self, run: Run, input: str) -> None:
        await self._call(calls.CONTINUE_AS_NEW, (run.workflow_id, run.lease, input))

    async def suspend(self, run: Run, reason: str) -> None:
        await self._call(calls.SUSPEND, (run.workflow_id, run.lease, reason))

    def warn_of_long_run(self, run: Run) -> None:
        """Says so in the log and on the workflow, without holding it up."""
        text = f"it has more than {LONG_RUN} steps, and each replay reads all of them; see continue_as_new"
        log.warning("workflow %s (%s): %s", run.workflow_id, run.name, text)
        telling = self.spawn(self._warn, run, text)
        self._telling.add(telling)
        telling.add_done_callback(self._telling.discard)

    async def _warn(self, run: Run, text: str) -> None:
        try:
            await self._call(calls.WARN, (run.workflow_id, run.lease, text))
        except (WorkflowInterrupted, DurableError, psycopg.Error) as refused:
            log.warning("workflow %s (%s): that cannot be stored: %s", run.workflow_id, run.name, refused)

    async def start_children(self, run: Run, name: str, parameters: list[Any]) -> str:
        """The id of the first child, also when the step was done before."""
        rows = await self._call(calls.START_CHILDREN, (run.workflow_id, run.lease, name, *parameters))
        first: str = rows[0][0]
        return first

    async def request_approval(self, run: Run, name: str, parameters: list[Any]) -> str:
        """The id of the approval, also when it was requested before."""
        rows = await self._call(calls.REQUEST_APPROVAL, (run.workflow_id, run.lease, name, *parameters))
        approval_id: str = rows[0][0]
        return approval_id

    async def child_outputs(self, first: str) -> list[str | None]:
        return [output for (output,) in await self._call(calls.CHILD_RESULTS, (first,))]

    async def step_outcome(self, run: Run, name: str) -> Stored:
        """The outcome of a step that has one."""
        rows = await self._call(calls.STEP_RESULT, (run.workflow_id, name))
        return Stored(rows[0][1], rows[0][2])

    async def _call(self, query: str, parameters: tuple[Any, ...]) -> list[tuple[Any, ...]]:
        texts = [parameter for parameter in parameters if isinstance(parameter, str)]
        try:
            with translated():
                if sum(map(len, texts)) > _MOST_BYTES / 4 and sum(len(text.encode()) for text in texts) > _MOST_BYTES:
                    raise PayloadTooLarge(
                        f"workflow {parameters[0]}: a call has more than {_MOST_BYTES} bytes",
                        hint="Store the data elsewhere and pass a reference, or make several calls.",
                    )
                return await self._link.execute(query, parameters)
        except (DurableError, psycopg.Error) as error:
            raise for_owner(error) from error.__cause__


def _forget_row_factory(conn: psycopg.Connection[Any]) -> None:
    """What one transactional step sets on its connection is not for the next one."""
    conn.row_factory = tuple_row


async def _forget_row_factory_async(conn: psycopg.AsyncConnection[Any]) -> None:
    conn.row_factory = tuple_row


def settle(outcome: Any) -> None:
    """Raises what a checkpoint came to, if it was not simply stored."""
    if outcome is None:
        return
    if isinstance(outcome, BaseException):
        raise for_owner(outcome)
    raise Stored(*outcome)


class _ThreadWaiter:
    """A future that a thread waits for: one lock, no condition."""

    __slots__ = ("_lock", "_outcome")

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._lock.acquire()
        self._outcome: Any = None

    def done(self) -> bool:
        return False

    def set_result(self, result: Any, /) -> None:
        self._outcome = result
        self._lock.release()

    set_exception = set_result

    def wait(self) -> Any:
        self._lock.acquire()
        return self._outcome


class ThreadEngine:
    """The same calls, waited for in a thread."""

    def __init__(self, engine: AsyncEngine, writer: Writer, submitted: concurrent.futures.Executor) -> None:
        self._submitted = submitted
        self._engine = engine
        self._writer = writer
        self._inbox: deque[tuple[Callable[[Any], None], Any]] = deque()
        self._signalled = False

    def invoke(self, run: Run, step: Step[Any, Any], args: Any, kwargs: Any) -> Any:
        return invoke(run, step, self._engine.threads, self._engine.loop, args, kwargs)

    def pause(self, run: Run, length: float) -> None:
        told = threading.Event()
        with run.told_by(told.set):
            told.wait(length)

    def spawn(self, call: Callable[..., Any], *args: Any) -> concurrent.futures.Future[Any]:
        # Not among the bodies: this one waits for a body, and would wait for ever if all threads did so.
        return self._submitted.submit(contextvars.copy_context().run, call, *args)

    def join(self, spawned: Sequence[concurrent.futures.Future[Any]]) -> None:
        """Waits for all of them, and raises what one of them raised, if one did."""
        concurrent.futures.wait(spawned)
        for future in spawned:
            future.result()

    def checkpoint(self, run: Run, name: str, output: str, attempt: int, elapsed_ms: int) -> None:
        waiter = _ThreadWaiter()
        self.post(self._writer.checkpoint, Checkpoint(run, name, output, attempt, elapsed_ms, waiter))
        settle(waiter.wait())

    def post(self, call: Callable[[Any], None], argument: Any) -> None:
        """Has the event loop make a call. Threads that come before the loop has looked need not wake it again."""
        self._inbox.append((call, argument))
        if not self._signalled:
            self._signalled = True
            self._engine.loop.call_soon_threadsafe(self._collect)

    def _collect(self) -> None:
        self._signalled = False
        while self._inbox:
            call, argument = self._inbox.popleft()
            call(argument)

    def transact(self, run: Run, step: Step[Any, Any], name: str, attempt: int, args: Any, kwargs: Any) -> Any:
        if step.is_async:
            return on_loop(self._engine.loop, self._engine.transact(run, step, name, attempt, args, kwargs))
        return self._engine.transact_here(run, step, name, attempt, args, kwargs)

    def wait(self, run: Run, name: str, conditions: str, mode: str, timeout: float | None, until: float | None) -> Any:
        return on_loop(self._engine.loop, self._engine.wait(run, name, conditions, mode, timeout, until))

    def pass_gate(self, run: Run) -> None:
        on_loop(self._engine.loop, self._engine.pass_gate(run))

    def step_ended(self, run: Run) -> None:
        self._engine.loop.call_soon_threadsafe(self._engine.step_ended, run)

    def start_step(self, run: Run, name: str) -> Stored | None:
        known: Stored | None = on_loop(self._engine.loop, self._engine.start_step(run, name))
        return known

    def fail_step(self, run: Run, name: str, error: str, attempt: int, limit: int, retry: Retry) -> float | None:
        wait: float | None = on_loop(self._engine.loop, self._engine.fail_step(run, name, error, attempt, limit, retry))
        return wait

    def publish(self, run: Run, key: str, value: str) -> None:
        on_loop(self._engine.loop, self._engine.publish(run, key, value))

    def continue_as_new(self, run: Run, input: str) -> None:
        on_loop(self._engine.loop, self._engine.continue_as_new(run, input))

    def warn_of_long_run(self, run: Run) -> None:
        self._engine.loop.call_soon_threadsafe(self._engine.warn_of_long_run, run)

    def start_children(self, run: Run, name: str, parameters: list[Any]) -> str:
        first: str = on_loop(self._engine.loop, self._engine.start_children(run, name, parameters))
        return first

    def request_approval(self, run: Run, name: str, parameters: list[Any]) -> str:
        approval_id: str = on_loop(self._engine.loop, self._engine.request_approval(run, name, parameters))
        return approval_id

    def child_outputs(self, first: str) -> list[str | None]:
        outputs: list[str | None] = on_loop(self._engine.loop, self._engine.child_outputs(first))
        return outputs

    def step_outcome(self, run: Run, name: str) -> Stored:
        outcome: Stored = on_loop(self._engine.loop, self._engine.step_outcome(run, name))
        return outcome
