"""What a workflow's code calls.

Written by hand; the plain twin, ``_context.py``, is generated from it by ``tools/async_to_sync.py``.
"""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import Awaitable, Callable, Coroutine
from datetime import datetime
from typing import Any, Concatenate, NoReturn, ParamSpec, TypeVar, overload
from uuid import UUID, uuid5

from . import _codec
from ._calls import StoredStep
from ._definitions import Step, as_step
from ._engine import AsyncEngine
from ._errors import DurableError, InvalidArgument, PayloadTooLarge, step_failed
from ._outcome import INTERRUPTED, Stored, error_json, short_error_json
from ._run import LONG_RUN, Misfit, Run, WorkflowInterrupted, in_step

P = ParamSpec("P")
R = TypeVar("R")


def _clock(run: Run) -> datetime:
    return run.database_now()


_NOW: Step[[Run], datetime] = Step(_clock, "now")


class AsyncContext:
    """One run of a workflow. Every step goes through it, and is skipped when its outcome is already stored.

    Names of steps are given out in the order of the calls, so parallel steps are started in a fixed order: build them
    first, then gather them.
    """

    def __init__(self, run: Run, engine: AsyncEngine) -> None:
        self._run = run
        self._engine = engine

    @property
    def workflow_id(self) -> str:
        """The id of this workflow (a UUIDv7)."""
        return self._run.workflow_id

    @property
    def name(self) -> str:
        """The name of this workflow."""
        return self._run.name

    @property
    def queue(self) -> str:
        """The queue it came from."""
        return self._run.claimed.queue

    @property
    def attempt(self) -> int:
        """Which attempt this is, from 1: failures, crashes and retries add one."""
        return self._run.attempt

    @property
    def created_at(self) -> datetime:
        """When it was enqueued, by the database's clock."""
        return self._run.claimed.created_at

    @overload
    def step(
        self, step: Callable[P, Coroutine[Any, Any, R]], /, *args: P.args, **kwargs: P.kwargs
    ) -> Awaitable[R]: ...  # fmt: skip
    @overload
    def step(self, step: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> Awaitable[R]: ...
    def step(self, step: Any, /, *args: Any, **kwargs: Any) -> Any:
        """Runs a step, or returns its stored output. A second call of the same step is a step of its own (``#2``).

        Raises StepFailed when it failed for good.
        """
        known = as_step(step)
        return self._perform(known, self._name(known.name), self._invoke, args, kwargs)

    def submit(self, step: Callable[P, Any], /, *args: P.args, **kwargs: P.kwargs) -> asyncio.Future[Any]:
        """Starts a step beside the code that follows; its future gives the output."""
        known = as_step(step)
        return self._engine.spawn(self._perform, known, self._name(known.name), self._invoke, args, kwargs)

    @overload
    def transaction(
        self, step: Callable[Concatenate[Any, P], Coroutine[Any, Any, R]], /, *args: P.args, **kwargs: P.kwargs
    ) -> Awaitable[R]: ...
    @overload
    def transaction(
        self, step: Callable[Concatenate[Any, P], R], /, *args: P.args, **kwargs: P.kwargs
    ) -> Awaitable[R]: ...  # fmt: skip
    def transaction(self, step: Any, /, *args: Any, **kwargs: Any) -> Any:
        """Runs a step whose first parameter is a psycopg connection, and commits its SQL together with its checkpoint:
        exactly once. The connection is in a transaction; do not commit it.

        Raises StepFailed when it failed for good.
        """
        known = as_step(step)
        if known.at_most_once or known.timeout is not None:
            raise InvalidArgument(
                f"step {known.name!r}: a transactional step is exactly once and has no timeout of its own",
                hint="Leave out at_most_once and timeout; statement_timeout limits its SQL.",
            )
        return self._perform(known, self._name(known.name), self._transact, args, kwargs)

    def now(self) -> Awaitable[datetime]:
        """The time by the database's clock, the same in every replay. It is a step, so it costs a checkpoint."""
        time: Awaitable[datetime] = self._perform(_NOW, self._name("now"), self._invoke, (self._run,), {})
        return time

    def uuid(self) -> UUID:
        """A UUID that is the same in every replay."""
        return uuid5(UUID(self.workflow_id), f"uuid/{self._run.count('uuid()')}")

    def random(self) -> float:
        """A number from 0 up to 1 that is the same in every replay."""
        return random.Random(f"{self.workflow_id}/{self._run.count('random()')}").random()

    async def set(self, key: str, value: Any) -> None:
        """Publishes a value under a key, for whoever looks: ``handle.state()``, ``durable show``, ``durable.state()``.

        The latest value of each key stays until the workflow is removed from the history. It is no step: a replay
        publishes again, and a step may call it. Raises InvalidArgument, PayloadTooLarge.
        """
        self._run.check()
        text = _codec.encode(value, f"workflow {self.workflow_id}: the value of {key!r}")
        await self._engine.publish(self._run, key, text)

    async def continue_as_new(self, input: Any = None) -> NoReturn:
        """Ends this run as completed and starts the next one with another input and no steps. Does not return.

        For a workflow without an end, whose steps would grow without end, too. The next run has the name, queue,
        priority, tags and key of this one, and ``handle.result()`` waits for the last. Raises InvalidArgument,
        PayloadTooLarge.
        """
        if in_step():
            raise InvalidArgument(
                f"workflow {self.workflow_id}: continue_as_new was called from inside of a step",
                hint="Call it from the workflow.",
            )
        self._run.check()
        text = _codec.encode(input, f"workflow {self.workflow_id}: the input of its next run")
        await self._engine.continue_as_new(self._run, text)
        self._run.interrupt(None)
        raise WorkflowInterrupted(None)

    def _name(self, name: str) -> str:
        if in_step():
            raise InvalidArgument(
                f"workflow {self.workflow_id}: step {name!r} was called from inside of another step",
                hint="A replay skips the outer step, and names of later ones would differ. Call it from the workflow.",
            )
        if self._run.count("steps()") == LONG_RUN + 1:
            self._engine.warn_of_long_run(self._run)
        return self._run.unique(name)

    async def _perform(self, step: Step[Any, Any], name: str, how: Any, args: Any, kwargs: Any) -> Any:
        run = self._run
        attempt = 1
        if run.replay:
            stored = run.replay.get(name)
            if stored is not None:
                if stored.status != "running":
                    return await self._recall(step, name, stored)
                if stored.at_most_once:
                    raise step_failed(run.workflow_id, name, INTERRUPTED)
                attempt = stored.attempt
                await asyncio.sleep(stored.retry_in)
        while True:
            run.check()
            if step.at_most_once:
                known = await self._engine.start_step(run, name)
                if known is not None:
                    return self._outcome(step, name, known)
            try:
                token = run.enter(name, attempt)
                try:
                    return await how(step, name, attempt, args, kwargs)
                finally:
                    run.leave(name, token)
            except Stored as outcome:
                return self._outcome(step, name, outcome)
            except Exception as error:
                limit = 1 if isinstance(error, DurableError) or step.at_most_once else step.retry.attempts_after(error)
                text = error_json(error)
                try:
                    wait = await self._engine.fail_step(run, name, text, attempt, limit, step.retry)
                except PayloadTooLarge:
                    text = short_error_json(error)
                    wait = await self._engine.fail_step(run, name, text, attempt, limit, step.retry)
                if wait is None:
                    raise step_failed(run.workflow_id, name, json.loads(text)) from error
            attempt += 1
            await asyncio.sleep(wait)

    async def _invoke(self, step: Step[Any, Any], name: str, attempt: int, args: Any, kwargs: Any) -> Any:
        started = time.monotonic()
        value = await self._engine.invoke(step, args, kwargs)
        text = _codec.encode(value, f"workflow {self._run.workflow_id}, step {name!r}: its output")
        result = _codec.round_trip(value, text, step.decode)
        await self._engine.checkpoint(self._run, name, text, attempt, int((time.monotonic() - started) * 1000))
        return result

    async def _transact(self, step: Step[Any, Any], name: str, attempt: int, args: Any, kwargs: Any) -> Any:
        return await self._engine.transact(self._run, step, name, attempt, args, kwargs)

    async def _recall(self, step: Step[Any, Any], name: str, stored: StoredStep) -> Any:
        if stored.error is not None:
            raise step_failed(self.workflow_id, name, stored.error)
        value = stored.output
        if stored.omitted:
            text = await self._engine.step_output(self._run, name)
            value = None if text is None else json.loads(text)
        return self._decode(step, name, value)

    def _outcome(self, step: Step[Any, Any], name: str, outcome: Stored) -> Any:
        if outcome.error is not None:
            raise step_failed(self.workflow_id, name, json.loads(outcome.error))
        return self._decode(step, name, None if outcome.output is None else json.loads(outcome.output))

    def _decode(self, step: Step[Any, Any], name: str, value: Any) -> Any:
        try:
            return _codec.decode(value, step.decode, f"step {name!r}: the stored output")
        except InvalidArgument as error:
            difference = _codec.difference(value, step.function)
            raise Misfit(f"{error.message}\n{difference}\nMend the code and resume, or fork.") from error
