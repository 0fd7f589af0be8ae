"""The state of one workflow while this process runs it."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from .. import _codec
from .._client.calls import Claimed, StoredStep, stored_steps
from .._errors import DurableError, InvalidArgument, StepFailed


class WorkflowInterrupted(BaseException):
    """Ends the code of a workflow that this worker may not go on with; not to be caught by ``except Exception``.

    ``reason`` is LeaseLost, WorkflowCancelled, or None when the worker gives the workflow back, or parks it while it
    waits.
    """

    def __init__(self, reason: DurableError | None) -> None:
        super().__init__(str(reason or "the workflow is parked or given back"))
        self.reason = reason


class Misfit(WorkflowInterrupted):
    """The stored result of a step does not fit the code, or cannot be read: somebody has to look.

    ``difference`` is the reason of the pause.
    """

    def __init__(self, difference: str) -> None:
        super().__init__(None)
        # It may quote a stored value, or the code, at any length; and Postgres does not take all of Unicode.
        short = difference if len(difference) <= _LONGEST_REASON else difference[: _LONGEST_REASON - 1] + "…"
        self.difference = short.replace("\x00", "\ufffd").encode(errors="replace").decode()


def read(text: str | None, step: str, what: str = "the stored output") -> Any:
    """The value of JSON text that is stored of a step, or raises Misfit."""
    return readable(_codec.parse_or_mark(text, what), step)


def readable(value: Any, step: str) -> Any:
    """A value that was parsed before, or raises Misfit in place of one that could not be."""
    if isinstance(value, _codec.Unreadable):
        raise Misfit(
            f"step {step!r}: {value.error.message}\nCancel it, and go on in a copy with another output for this step: "
            f"durable fork ID --from '{step}' --replace '{step}=JSON'. For a wait, JSON is "
            '{"index": 0, "value": …}. Or let a worker in another language run it, and resume.'
        )
    return value


@contextmanager
def as_stored(step: str) -> Iterator[None]:
    """For code that takes apart the stored output of a step: raises Misfit when that is of another shape."""
    try:
        yield
    except (TypeError, ValueError, KeyError, IndexError, AttributeError) as error:
        raise Misfit(
            f"step {step!r}: the stored output is not what such a step ends with: {error!r}\nMend the code and resume, "
            "or fork with another output."
        ) from error


def fit(value: Any, decode: _codec.Decoder | None, subject: str, annotation: Callable[[], Any]) -> Any:
    """Decodes what is stored, or raises Misfit."""
    try:
        return _codec.decode(value, decode, subject)
    except InvalidArgument as error:
        difference = _codec.difference(value, annotation())
        raise Misfit(f"{error.message}\n{difference}\nMend the code and resume, or fork.") from error


@dataclass(frozen=True, slots=True)
class StepInfo:
    """The step that the calling code is part of."""

    workflow_id: str
    name: str
    attempt: int
    _interruption: Callable[[], WorkflowInterrupted | None]

    @property
    def idempotency_key(self) -> str:
        """The same for every attempt of this step, on any worker: hand it to outside systems."""
        return f"{self.workflow_id}/{self.name}"

    @property
    def interrupted(self) -> bool:
        """True when the workflow was cancelled or taken away: a long step in a thread looks here and stops."""
        return self._interruption() is not None


_LONGEST_REASON = 5000

# A run with more steps gets a warning: each replay reads all of them.
LONG_RUN = 10_000

_current: ContextVar[StepInfo | None] = ContextVar("durable_step", default=None)


def current_step() -> StepInfo:
    """The step that is running. Raises RuntimeError outside of one."""
    info = _current.get()
    if info is None:
        raise RuntimeError("current_step() is for code that runs inside of a step; there is none here")
    return info


def in_step() -> bool:
    return _current.get() is not None


class Run:
    """One claimed workflow."""

    __slots__ = (
        "_counts", "_interruption", "active", "attempt", "claimed", "claimed_at", "failed", "gate", "hooks", "lease",
        "name", "replay", "running", "waits", "workflow_id",
    )  # fmt: skip

    def __init__(self, claimed: Claimed) -> None:
        self.claimed = claimed
        self.workflow_id = claimed.workflow_id
        self.lease = claimed.lease
        self.name = claimed.name
        self.attempt = claimed.attempt
        self.claimed_at = time.monotonic()
        # What ``load`` reads of the steps that are stored.
        self.replay: dict[str, StoredStep] = {}
        # Names of the steps that failed for good, in the order in which that was stored.
        self.failed: list[str] = []
        # Steps under way: name -> (monotonic start, attempt). The heartbeat reports the long ones.
        self.running: dict[str, tuple[float, int]] = {}
        # Names of the steps that the code waits for, also between two attempts: while there are any, it does not park.
        self.active: set[str] = set()
        # Waits under way, by step, and the open question whether the workflow is parked.
        self.waits: dict[str, Wait] = {}
        self.gate: asyncio.Future[None] | None = None
        self._counts: dict[str, itertools.count[int]] = {}
        self._interruption: WorkflowInterrupted | None = None
        # What is called when the code must stop, to make it hear of that at once.
        self.hooks: list[Callable[[], object]] = []

    def load(self) -> None:
        """Reads the stored steps: where an exception ends this run, and not whoever starts it."""
        self.replay = stored_steps(self.claimed.steps)
        self.failed = [name for name, step in self.replay.items() if step.status == "error"]

    def unique(self, name: str) -> str:
        """The name of the next call of a step: the name itself, then ``#2``, ``#3``… in call order."""
        n = self.count(name)
        return name if n == 1 else f"{name}#{n}"

    def count(self, kind: str) -> int:
        """1, 2, 3… for the calls of one kind; safe for threads."""
        return next(self._counts.get(kind) or self._counts.setdefault(kind, itertools.count(1)))

    def database_now(self) -> datetime:
        """The database's clock, carried on since the claim by this machine's monotonic one."""
        return self.claimed.claimed_at + timedelta(seconds=time.monotonic() - self.claimed_at)

    def interrupt(self, reason: DurableError | None) -> None:
        """Makes the code of the workflow stop at its next step, or at once where it can be cancelled."""
        if self._interruption is None:
            self._interruption = WorkflowInterrupted(reason)
            for hook in list(self.hooks):
                hook()

    @contextmanager
    def told_by(self, hook: Callable[[], object]) -> Iterator[None]:
        """Has the hook called when the code must stop, or must have stopped already."""
        self.hooks.append(hook)
        try:
            # Looked at after the hook is there, for this is a thread, and the event loop interrupts.
            if self._interruption is not None:
                hook()
            yield
        finally:
            self.hooks.remove(hook)

    @property
    def interruption(self) -> WorkflowInterrupted | None:
        return self._interruption

    def check(self) -> None:
        """Raises WorkflowInterrupted when the code of the workflow must stop."""
        if self._interruption is not None:
            raise WorkflowInterrupted(self._interruption.reason)

    def raise_first_failure(self, results: Iterable[Any]) -> None:
        """Raises the failure among the results of steps that was stored first, as it will be in a replay."""
        failures = [result for result in results if isinstance(result, StepFailed)]
        if failures:
            order = {name: n for n, name in enumerate(self.failed)}
            # One that a crash interrupted has no outcome that is stored, and was there before all else.
            raise min(failures, key=lambda failure: order.get(failure.step, -1))

    def enter(self, name: str, attempt: int) -> Any:
        self.running[name] = (time.monotonic(), attempt)
        return _current.set(StepInfo(self.workflow_id, name, attempt, lambda: self._interruption))

    def leave(self, name: str, token: Any) -> None:
        self.running.pop(name, None)
        _current.reset(token)


class Wait:
    """A wait that is under way. The waiter gets the output, decoded from JSON."""

    __slots__ = ("conditions", "mode", "run", "step", "timeout", "until", "waiter")

    def __init__(
        self, run: Run, step: str, conditions: str, mode: str, timeout: float | None, until: float | None,
        waiter: asyncio.Future[Any],
    ) -> None:  # fmt: skip
        self.run = run
        self.step = step
        self.conditions = conditions
        self.mode = mode
        self.timeout = timeout
        self.until = until
        self.waiter = waiter

    @property
    def subject(self) -> str:
        return f"workflow {self.run.workflow_id}, step {self.step!r}"
