"""The coalescing writer: checkpoints and ends of all workflows of a process share statements and commits.

What arrives while a flush is under way forms the next one. An idle process flushes at once, a busy one commits hundreds
of checkpoints together; no timer delays anything, and nothing is acknowledged before it is committed.

An item whose row somebody else holds is sent again a little later, and so is all that the database refuses for reasons
of its own: only what is wrong with an item itself is told to its waiter.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections import deque
from collections.abc import Sequence
from typing import Any, Protocol, TypeAlias

import psycopg

from .._client import calls
from .._client.link import LONGEST_TROUBLE_PAUSE, MANY_TRIES, Link, Trouble, pause, transient
from .._errors import DurableError, from_database, from_outcome
from .run import Misfit, Run, WorkflowInterrupted

log = logging.getLogger("durable")

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

    __slots__ = ("attempt", "elapsed_ms", "json", "run", "step", "tries", "waiter")

    def __init__(self, run: Run, step: str, output: str | None, attempt: int, elapsed_ms: int, waiter: Waiter) -> None:
        self.run = run
        self.step = step
        self.json = output
        self.attempt = attempt
        self.elapsed_ms = elapsed_ms
        self.waiter = waiter
        self.tries = 0

    def subject(self) -> str:
        return f"workflow {self.run.workflow_id}, step {self.step!r}"


class Completion:
    """A workflow's output on its way. The waiter gets None when it was stored."""

    __slots__ = ("json", "run", "tries", "waiter")

    def __init__(self, run: Run, output: str | None, waiter: Waiter) -> None:
        self.run = run
        self.json = output
        self.waiter = waiter
        self.tries = 0

    def subject(self) -> str:
        return f"workflow {self.run.workflow_id}"


class Failure:
    """The error of an attempt on its way. The waiter gets None when it was stored."""

    __slots__ = ("json", "retryable", "run", "tries", "waiter")

    def __init__(self, run: Run, error: str, retryable: bool, waiter: Waiter) -> None:
        self.run = run
        self.json = error
        self.retryable = retryable
        self.waiter = waiter
        self.tries = 0

    def subject(self) -> str:
        return f"workflow {self.run.workflow_id}"


Item: TypeAlias = Checkpoint | Completion | Failure


class Writer:
    """Collects items and flushes them over its links, one flush on each at a time."""

    def __init__(self, links: Sequence[Link]) -> None:
        self._links = links
        self._checkpoints: deque[Checkpoint] = deque()
        self._completions: deque[Completion] = deque()
        self._failures: deque[Failure] = deque()
        self._idle: deque[Link] = deque(links)
        self._flushes: set[asyncio.Task[None]] = set()
        self._scheduled = False
        # Items of the flushes under way.
        self._under_way = 0
        # Items that are sent again later.
        self._put_off = 0
        # Fewer while the database refuses, so that one item it cannot take does not keep the others waiting.
        self._most = _MOST_ITEMS
        self._trouble = Trouble("what workflows report")
        self._loop = asyncio.get_running_loop()

    def checkpoint(self, item: Checkpoint) -> None:
        self._checkpoints.append(item)
        if self._idle and not self._scheduled:
            self._schedule()

    def complete(self, item: Completion) -> None:
        self._completions.append(item)
        if self._idle and not self._scheduled:
            self._schedule()

    def fail(self, item: Failure) -> None:
        self._failures.append(item)
        if self._idle and not self._scheduled:
            self._schedule()

    async def drain(self) -> None:
        """Returns when everything handed over so far is stored or refused."""
        while self._waiting() or self._flushes or self._put_off:
            await asyncio.gather(asyncio.sleep(0.01 if self._put_off else 0), *self._flushes)

    def _waiting(self) -> int:
        return len(self._checkpoints) + len(self._completions) + len(self._failures)

    def _schedule(self) -> None:
        # At the end of the loop's turn, so that the workflows it wakes go into one flush.
        self._scheduled = True
        self._loop.call_soon(self._start)

    def _start(self) -> None:
        self._scheduled = False
        while self._idle and self._waiting():
            # A tick, or a question of workflows that wait, may keep one of them for long.
            link = next((link for link in self._idle if not link.is_busy), self._idle[0])
            self._idle.remove(link)
            flush = self._loop.create_task(self._run(link))
            self._flushes.add(flush)
            flush.add_done_callback(self._flushes.discard)

    async def _run(self, link: Link) -> None:
        tries = 0
        try:
            while self._waiting():
                refused = False
                for items in self._take_share():
                    self._under_way += len(items)
                    try:
                        refused |= await self._store(link, items)
                    finally:
                        self._under_way -= len(items)
                tries = tries + 1 if refused else 0
                # Let the workflows run on that this flush has woken: what they write belongs into the next one.
                await asyncio.sleep(pause(tries, LONGEST_TROUBLE_PAUSE) if refused else 0)
        finally:
            self._idle.append(link)

    def _take_share(self) -> list[list[Item]]:
        """What the next flush takes of what waits, a list for each statement; another link is woken for what it leaves.

        In a list completions stand after checkpoints.
        """
        share = max(_LEAST_SHARE, math.ceil((self._waiting() + self._under_way) / len(self._links)))
        room = [min(share, self._most), _MOST_CHARACTERS]
        # Ends first, for behind checkpoints that keep coming they would wait without end.
        failures = _take(self._failures, room)
        completions = _take(self._completions, room)
        checkpoints = _take(self._checkpoints, room)
        if self._waiting() and self._idle and not self._scheduled:
            self._schedule()
        return [items for items in (failures, checkpoints + completions) if items]

    async def _store(self, link: Link, items: list[Item]) -> bool:
        """Sends items in one statement. Returns whether the database refused some that are to be sent again."""
        try:
            outcomes = await _send(link, items)
        except Exception as error:
            if not _may_pass(error):
                return await self._store_apart(link, items, error)
            self._trouble.met(error, items[0].tries)
            self._most = max(1, len(items) // 2)
            self._put_back(items)
            return True
        self._trouble.over()
        self._most = min(_MOST_ITEMS, 2 * self._most)
        for n, item in enumerate(items):
            outcome = outcomes.get(n)
            if outcome is None or outcome[0] == "ok":
                if not item.waiter.done():
                    item.waiter.set_result(None)
            elif outcome[0] == "busy":
                if item.tries == MANY_TRIES:
                    log.warning("%s: waits for another transaction that has changed it", item.subject())
                self._send_later(item)
            elif not item.waiter.done():
                if outcome[0] == "exists":
                    item.waiter.set_result((outcome[1], outcome[2]))
                else:
                    item.waiter.set_exception(from_outcome(outcome[0], item.subject()))
        return False

    async def _store_apart(self, link: Link, items: list[Item], error: Exception) -> bool:
        """Something in the statement cannot be stored. Halving it finds out what, and lets its neighbours pass."""
        if len(items) == 1:
            if not items[0].waiter.done():
                items[0].waiter.set_exception(_refusal(items[0], error))
            return False
        half = len(items) // 2
        refused = await self._store(link, items[:half])
        return await self._store(link, items[half:]) or refused

    def _put_back(self, items: list[Item]) -> None:
        """What the database refused is sent again before what came later; one item alone makes room for the others."""
        if len(items) == 1:
            self._send_later(items[0])
            return
        for item in reversed(items):
            if not _is_given_up(item):
                self._queue_of(item).appendleft(item)

    def _send_later(self, item: Item) -> None:
        """Lets others pass: the row of the workflow is held by somebody, or its item is what the database refuses."""
        item.tries += 1
        self._put_off += 1
        self._loop.call_later(pause(item.tries, LONGEST_TROUBLE_PAUSE), self._send_again, item)

    def _send_again(self, item: Item) -> None:
        self._put_off -= 1
        if not _is_given_up(item):
            self._queue_of(item).append(item)
            if self._idle and not self._scheduled:
                self._schedule()

    def _queue_of(self, item: Item) -> deque[Any]:
        if isinstance(item, Checkpoint):
            return self._checkpoints
        return self._completions if isinstance(item, Completion) else self._failures


def _take(items: deque[Any], room: list[int]) -> list[Any]:
    taken = []
    while items and room[0] > 0 and room[1] > 0:
        item = items.popleft()
        taken.append(item)
        room[0] -= 1
        room[1] -= len(item.json or "")
    return taken


def _is_given_up(item: Item) -> bool:
    """Whether an item need not be sent again, for nobody waits for it, or its workflow is not ours any more."""
    if item.waiter.done():
        return True
    lost = lost_by(item.run)
    if lost is None:
        return False
    item.waiter.set_exception(lost)
    return True


def lost_by(run: Run) -> WorkflowInterrupted | None:
    """Why what is reported of a run would not count any more: it was taken from us, or is given back."""
    interruption = run.interruption
    if interruption is None or isinstance(interruption, Misfit):
        return None
    return WorkflowInterrupted(interruption.reason)


def _may_pass(error: Exception) -> bool:
    """Whether the database refuses for reasons of its own.

    Also when its schema is being changed (42, 3F, 55), or a right is missing (42501, 28): no output is to blame.
    """
    if not isinstance(error, psycopg.Error):
        return False
    return transient(error) or (error.sqlstate or "")[:2] in ("28", "3F", "42", "55")


def _refusal(item: Item, error: Exception) -> DurableError:
    if isinstance(error, psycopg.Error):
        cls = type(from_database(error) or DurableError(""))
        what = "its error" if isinstance(item, Failure) else "its output"
        return cls(f"{item.subject()}: {what} cannot be stored: {error}")
    return DurableError(f"{item.subject()} cannot be sent: {error}")


async def _send(link: Link, items: list[Item]) -> dict[int, tuple[Any, ...]]:
    """The outcomes of items by their places; an item without one was stored."""
    if isinstance(items[0], Failure):
        rows = await link.execute(calls.FAIL, _failure_parameters(items), patient=False)
        return {row[0] - 1: row[1:] for row in rows}
    checkpoints = [item for item in items if isinstance(item, Checkpoint)]
    completions = items[len(checkpoints) :]
    rows = await link.execute(calls.FLUSH, _parameters(checkpoints, completions), patient=False)
    first = {"checkpoint": 0, "complete": len(checkpoints)}
    return {first[row[0]] + row[1] - 1: row[2:] for row in rows}


def _parameters(checkpoints: list[Checkpoint], completions: list[Any]) -> list[str]:
    plain, text = calls.plain_array, calls.text_array
    return [
        plain([item.run.workflow_id for item in checkpoints]),
        plain([item.run.lease for item in checkpoints]),
        text([item.step for item in checkpoints]),
        text([item.json for item in checkpoints]),
        plain([item.attempt for item in checkpoints]),
        plain([item.elapsed_ms for item in checkpoints]),
        plain([item.run.workflow_id for item in completions]),
        plain([item.run.lease for item in completions]),
        text([item.json for item in completions]),
    ]


def _failure_parameters(failures: list[Any]) -> list[str]:
    plain, text = calls.plain_array, calls.text_array
    return [
        plain([item.run.workflow_id for item in failures]),
        plain([item.run.lease for item in failures]),
        text([item.json for item in failures]),
        plain([item.retryable for item in failures]),
    ]
