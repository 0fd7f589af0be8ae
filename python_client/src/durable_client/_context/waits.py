"""Waiting: the waits of all workflows of a process share calls, and a workflow that only waits is given up.

A workflow parks when all that it does is to wait: no step of it is under way. Its code is then ended, and replayed when
what it waits for has come, by any worker. While steps are under way beside a wait, it is asked for now and then.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from contextlib import suppress
from typing import Any

import psycopg

from .. import _codec
from .._client import calls
from .._client.link import Link
from .._errors import DurableError, from_database, from_outcome, step_failed
from .outcome import for_owner
from .run import Run, Wait, WorkflowInterrupted, read

# One call takes the waits of at most this many workflows.
_MOST_RUNS = 500
# How soon code that goes on after a step may start another, before the workflow is taken to be only waiting.
_SETTLE = 0.005
# How often a wait is asked for while steps are under way beside it.
_POLL = 0.5


class Waits:
    """Asks for the waits of a worker's workflows over one link, one call at a time. Lives on the event loop."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self._loop = asyncio.get_running_loop()
        # By lease, for a run that was taken away may still wait when its workflow is claimed again.
        self._runs: dict[int, Run] = {}
        self._asking: asyncio.Task[None] | None = None

    async def wait(
        self, run: Run, step: str, conditions: str, mode: str, timeout: float | None, until: float | None
    ) -> Any:
        """Returns the output of a wait. Raises WorkflowInterrupted when the workflow is parked until it is over."""
        run.check()
        wait = Wait(run, step, conditions, mode, timeout, until, self._loop.create_future())
        run.waits[step] = wait
        self.ask(run)
        try:
            return await wait.waiter
        finally:
            run.waits.pop(step, None)

    def ask(self, run: Run) -> None:
        """Asks for the waits of a workflow with the next call."""
        if not run.waits:
            return
        self._runs[run.lease] = run
        if self._asking is None:
            self._asking = self._loop.create_task(self._ask_all())

    def settle(self, run: Run) -> None:
        """A step beside waits has ended: asks for them, unless the code that it has woken starts another one."""
        self._loop.call_later(_SETTLE, self._ask_if_only_waiting, run)

    async def pass_gate(self, run: Run) -> None:
        """Returns when it is known whether the workflow is parked; no step begins while that is open."""
        while run.gate is not None:
            await asyncio.shield(run.gate)

    def _ask_if_only_waiting(self, run: Run) -> None:
        if not run.active:
            self.ask(run)

    async def _ask_all(self) -> None:
        try:
            # Those that the loop's turn brings go together.
            await asyncio.sleep(0)
            while self._runs:
                runs = [self._runs.pop(key) for key in list(self._runs)[:_MOST_RUNS]]
                await self._ask(runs)
        finally:
            self._asking = None
            if self._runs:
                self._asking = self._loop.create_task(self._ask_all())

    async def _ask(self, runs: list[Run]) -> None:
        for run in runs:
            run.gate = self._loop.create_future()
        # Only now, so that a thread that begins a step either is seen here, or sees the gate.
        parks = {run.lease: not run.active and run.interruption is None for run in runs}
        waits = [wait for run in runs if run.interruption is None for wait in run.waits.values()]
        try:
            outcomes = await self._call(waits, parks) if waits else []
            parked = self._settle_all(waits, outcomes)
        except Exception as error:
            # A mistake in here must not leave anyone waiting.
            parked = []
            for wait in waits:
                _tell(wait, _cannot_wait(wait, error))
        finally:
            for run in runs:
                gate, run.gate = run.gate, None
                if gate is not None:
                    gate.set_result(None)
        for run in runs:
            self._go_on(run)
        if parked:
            # What came while they were parked need not wait for the next tick.
            with suppress(psycopg.Error):
                await self._link.execute(calls.RECHECK, (calls.plain_array(parked),))

    def _settle_all(self, waits: list[Wait], outcomes: list[Any]) -> list[str]:
        """Tells the waiters what has come; returns the workflows that were parked, but for those that only sleep."""
        parked: dict[str, None] = {}
        for wait, outcome in zip(waits, outcomes, strict=True):
            if isinstance(outcome, BaseException):
                _tell(wait, outcome)
                continue
            code, output, error = outcome
            if code in ("ok", "timeout", "exists"):
                _tell(wait, _outcome_of(wait, output, error))
            elif code == "parked":
                wait.run.interrupt(None)
                if wait.conditions != "[]":
                    parked[wait.run.workflow_id] = None
            elif code != "waiting":
                _tell(wait, for_owner(from_outcome(code, wait.subject)))
        return list(parked)

    def _go_on(self, run: Run) -> None:
        """Ends the waits of a workflow that was parked or interrupted; those that are not over are asked for again."""
        if run.interruption is not None:
            for wait in list(run.waits.values()):
                _tell(wait, WorkflowInterrupted(run.interruption.reason))
        elif any(not wait.waiter.done() for wait in run.waits.values()):
            self._loop.call_later(_POLL if run.active else 4 * _SETTLE, self.ask, run)

    async def _call(self, waits: list[Wait], parks: dict[int, bool]) -> list[Any]:
        """For each wait (outcome, output, error), or an exception."""
        try:
            rows = await self._link.execute(calls.WAIT, _parameters(waits, parks))
        except Exception as error:
            # Something in the batch is not for Postgres, or too much for it. One by one, its neighbours pass.
            if len({wait.run for wait in waits}) == 1:
                return [_cannot_wait(wait, error) for wait in waits]
            outcomes: list[Any] = []
            for run in dict.fromkeys(wait.run for wait in waits):
                outcomes += await self._call([wait for wait in waits if wait.run is run], parks)
            return outcomes
        return [row[1:] for row in sorted(rows)]


def _cannot_wait(wait: Wait, error: Exception) -> BaseException:
    known = from_database(error) if isinstance(error, psycopg.Error) else None
    kind = DurableError if known is None else type(known)
    hint = "Correct what it waits for, or what came of it, and retry the workflow." if known is None else known.hint
    return for_owner(kind(f"{wait.subject}: it cannot wait: {error if known is None else known.message}", hint=hint))


def _outcome_of(wait: Wait, output: str | None, error: str | None) -> Any:
    """What the waiter gets; what cannot be read is for this one waiter, too."""
    try:
        if error is not None:
            return step_failed(wait.run.workflow_id, wait.step, _codec.parse_error(error, "the stored error"))
        return read(output, wait.step, "what has come")
    except (WorkflowInterrupted, Exception) as unreadable:
        return unreadable


def _tell(wait: Wait, outcome: Any) -> None:
    if wait.waiter.done():
        return
    if isinstance(outcome, BaseException):
        wait.waiter.set_exception(outcome)
    else:
        wait.waiter.set_result(outcome)


def _parameters(waits: Iterable[Wait], parks: dict[int, bool]) -> list[str]:
    plain, text = calls.plain_array, calls.text_array
    return [
        plain([wait.run.workflow_id for wait in waits]),
        plain([wait.run.lease for wait in waits]),
        text([wait.step for wait in waits]),
        text([wait.conditions for wait in waits]),
        text([None if wait.timeout is None else f"{wait.timeout:.6f} s" for wait in waits]),
        text([None if wait.until is None else f"{wait.until:.6f}" for wait in waits]),
        plain([wait.mode for wait in waits]),
        plain([parks[wait.run.lease] for wait in waits]),
    ]
