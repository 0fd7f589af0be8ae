"""The coalescing writer: checkpoints and completions of all workflows of a process share statements and commits.

What arrives while a flush is under way forms the next one. An idle process flushes at once, a busy one commits hundreds
of checkpoints together; no timer delays anything, and nothing is acknowledged before it is committed.
"""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import Sequence
from typing import Any, Protocol

import psycopg

from .._client import calls
from .._client.link import Link
from .._errors import DurableError, from_database, from_outcome

# One flush takes at most this many items, and stops taking more past this size.
_MOST_ITEMS = 1000
_MOST_CHARACTERS = 8_000_000
# A flush leaves the other links their share, so that Postgres works on one flush while the workflows that another has
# woken run on. It takes no fewer items than this, for each flush costs a commit.
_LEAST_SHARE = 50


class Waiter(Protocol):
    """What waits for an item: an asyncio future, or a thread."""

    def done(self) -> bool: ...
    def set_result(self, result: Any, /) -> None: ...
    def set_exception(self, error: Any, /) -> None: ...


class Checkpoint:
    """A step's output on its way. The waiter gets None when it was stored, else the stored (output, error) as JSON."""

    __slots__ = ("attempt", "elapsed_ms", "lease", "output", "step", "waiter", "workflow_id")

    def __init__(
        self, workflow_id: str, lease: int, step: str, output: str | None, attempt: int, elapsed_ms: int, waiter: Waiter
    ) -> None:
        self.workflow_id = workflow_id
        self.lease = lease
        self.step = step
        self.output = output
        self.attempt = attempt
        self.elapsed_ms = elapsed_ms
        self.waiter = waiter

    def subject(self) -> str:
        return f"workflow {self.workflow_id}, step {self.step!r}"


class Completion:
    """A workflow's output on its way. The waiter gets None when it was stored."""

    __slots__ = ("lease", "output", "waiter", "workflow_id")

    def __init__(self, workflow_id: str, lease: int, output: str | None, waiter: Waiter) -> None:
        self.workflow_id = workflow_id
        self.lease = lease
        self.output = output
        self.waiter = waiter

    def subject(self) -> str:
        return f"workflow {self.workflow_id}"


class Writer:
    """Collects items and flushes them over its links, one flush on each at a time."""

    def __init__(self, links: Sequence[Link]) -> None:
        self._links = links
        self._checkpoints: deque[Checkpoint] = deque()
        self._completions: deque[Completion] = deque()
        self._idle: deque[Link] = deque(links)
        self._flushes: set[asyncio.Task[None]] = set()
        self._scheduled = False
        # Items of the flushes under way.
        self._under_way = 0
        self._loop = asyncio.get_running_loop()

    def checkpoint(self, item: Checkpoint) -> None:
        self._checkpoints.append(item)
        if self._idle and not self._scheduled:
            self._schedule()

    def complete(self, item: Completion) -> None:
        self._completions.append(item)
        if self._idle and not self._scheduled:
            self._schedule()

    async def drain(self) -> None:
        """Returns when everything handed over so far is stored or refused."""
        while self._checkpoints or self._completions or self._flushes:
            await asyncio.gather(asyncio.sleep(0), *self._flushes)

    def _schedule(self) -> None:
        # At the end of the loop's turn, so that the workflows it wakes go into one flush.
        self._scheduled = True
        self._loop.call_soon(self._start)

    def _start(self) -> None:
        self._scheduled = False
        while self._idle and (self._checkpoints or self._completions):
            link = self._idle.popleft()
            flush = self._loop.create_task(self._run(link))
            self._flushes.add(flush)
            flush.add_done_callback(self._flushes.discard)

    async def _run(self, link: Link) -> None:
        try:
            while self._checkpoints or self._completions:
                checkpoints, completions = self._take_share()
                self._under_way += (taken := len(checkpoints) + len(completions))
                try:
                    await self._flush(link, checkpoints, completions)
                finally:
                    self._under_way -= taken
                # Let the workflows run on that this flush has woken: what they write belongs into the next one.
                await asyncio.sleep(0)
        finally:
            self._idle.append(link)

    def _take_share(self) -> tuple[list[Checkpoint], list[Completion]]:
        """What the next flush takes of what waits; another link is woken for what it leaves."""
        unfinished = len(self._checkpoints) + len(self._completions) + self._under_way
        share = max(_LEAST_SHARE, math.ceil(unfinished / len(self._links)))
        room = [min(share, _MOST_ITEMS), _MOST_CHARACTERS]
        # Completions first, for they end something: behind checkpoints that keep coming they would wait without end.
        completions = _take(self._completions, room)
        checkpoints = _take(self._checkpoints, room)
        if (self._checkpoints or self._completions) and self._idle and not self._scheduled:
            self._schedule()
        return checkpoints, completions

    async def _flush(self, link: Link, checkpoints: list[Checkpoint], completions: list[Completion]) -> None:
        try:
            rows = await link.execute(calls.FLUSH, _parameters(checkpoints, completions))
        except psycopg.Error as error:
            await self._after_error(link, checkpoints, completions, error)
            return
        except Exception as error:
            # A mistake in here must not leave anyone waiting.
            items: list[Checkpoint | Completion] = [*checkpoints, *completions]
            for item in items:
                if not item.waiter.done():
                    item.waiter.set_exception(DurableError(f"{item.subject()} cannot be sent: {error}"))
            return
        if rows:
            outcomes = {(row[0], row[1]): row[2:] for row in rows}
            checkpoints = [
                item for n, item in enumerate(checkpoints, 1) if not _report(item, outcomes.get(("checkpoint", n)))
            ]
            completions = [
                item for n, item in enumerate(completions, 1) if not _report(item, outcomes.get(("complete", n)))
            ]
        for item in checkpoints:
            if not item.waiter.done():
                item.waiter.set_result(None)
        for done in completions:
            if not done.waiter.done():
                done.waiter.set_result(None)

    async def _after_error(
        self, link: Link, checkpoints: list[Checkpoint], completions: list[Completion], error: psycopg.Error
    ) -> None:
        """Something in the batch cannot be stored. Halving it finds out what, and lets its neighbours pass."""
        if len(checkpoints) + len(completions) == 1:
            item = (checkpoints or completions)[0]
            if not item.waiter.done():
                cls = type(from_database(error) or DurableError(""))
                item.waiter.set_exception(cls(f"{item.subject()}: its output cannot be stored: {error}"))
            return
        items: list[Checkpoint | Completion] = [*checkpoints, *completions]
        for half in (items[: len(items) // 2], items[len(items) // 2 :]):
            await self._flush(
                link,
                [item for item in half if isinstance(item, Checkpoint)],
                [item for item in half if isinstance(item, Completion)],
            )


def _take(items: deque[Any], room: list[int]) -> list[Any]:
    taken = []
    while items and room[0] > 0 and room[1] > 0:
        item = items.popleft()
        taken.append(item)
        room[0] -= 1
        room[1] -= len(item.output or "")
    return taken


def _report(item: Checkpoint | Completion, outcome: tuple[Any, ...] | None) -> bool:
    """Tells the waiter an outcome that is not plain success; False when there is none."""
    if outcome is None:
        return False
    if not item.waiter.done():
        if outcome[0] == "exists":
            item.waiter.set_result((outcome[1], outcome[2]))
        else:
            item.waiter.set_exception(from_outcome(outcome[0], item.subject()))
    return True


def _parameters(checkpoints: list[Checkpoint], completions: list[Completion]) -> list[str]:
    plain, text = calls.plain_array, calls.text_array
    return [
        plain([item.workflow_id for item in checkpoints]),
        plain([item.lease for item in checkpoints]),
        text([item.step for item in checkpoints]),
        text([item.output for item in checkpoints]),
        plain([item.attempt for item in checkpoints]),
        plain([item.elapsed_ms for item in checkpoints]),
        plain([item.workflow_id for item in completions]),
        plain([item.lease for item in completions]),
        text([item.output for item in completions]),
    ]
