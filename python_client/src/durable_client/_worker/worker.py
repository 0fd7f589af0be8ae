"""The worker: claims workflows, runs their code, and gives back what it cannot finish."""

from __future__ import annotations

import asyncio
import contextvars
import json
import logging
import os
import random
import signal
import socket
import time
import uuid
from collections import deque
from collections.abc import Coroutine, Sequence
from contextlib import AsyncExitStack, suppress
from typing import Any, TypeVar

import psycopg

from .. import _codec
from .._client import calls
from .._client.calls import Claimed
from .._client.link import LONGEST_TROUBLE_PAUSE, Link, passes, pause, transient
from .._client.schema import check_version
from .._context.context import Context
from .._context.context_async import AsyncContext
from .._context.engine import AsyncEngine, ThreadEngine
from .._context.outcome import error_json, for_owner, in_short, short_error_json
from .._context.run import Misfit, Run, WorkflowInterrupted
from .._context.waits import Waits
from .._context.writer import Completion, Failure, Writer, lost_by
from .._definitions import App, Workflow
from .._durations import Duration, seconds
from .._errors import DurableError, InvalidArgument, StepInterrupted, from_outcome, translated
from .._threads import DaemonThreads
from .session import Session

log = logging.getLogger("durable")

T = TypeVar("T")

# Milliseconds between the turns of two workers at ticking.
_TURN = 500
# How often an idle worker looks for work unasked. The first times are soon after it had some: whoever was about to
# commit while it lay down may not have seen that there is somebody to wake.
_POLL = 3.0
_FIRST_POLL = 0.05
# A worker that had something to do this recently looks again soon, before it asks to be woken: a busy system sends no
# NOTIFY.
_BUSY = 0.02
_NAP = 0.004
# How soon a worker claims again when somebody keeps it from asking to be woken.
_AGAIN = 0.25
# What the workflows of a worker that end within this many seconds are claimed ahead: about as long as a claim takes, so
# that none of them waits for one. A worker with slow workflows claims none that another could begin.
_AHEAD = 0.02
_SAMPLE = 0.05
# How often the worker looks for statements that are not answered.
_WATCH = 2.0
# How long code that was told to stop may take to do so.
_LAST_WORDS = 2.0


class Worker:
    """Runs the workflows of an app, a ``Durable``, in this process.

    ``concurrency`` is how many workflows run at a time, ``queues`` where they come from (default: the queues that the
    app's workflows name), ``transactions`` how many connections transactional steps may use, and ``drain`` how long
    workflows may go on after ``stop()`` before they are given back.
    """

    def __init__(
        self,
        app: App,
        *,
        queues: Sequence[str] | None = None,
        concurrency: int = 200,
        name: str | None = None,
        transactions: int = 10,
        drain: Duration = 20.0,
    ) -> None:
        if concurrency < 1 or transactions < 1:
            raise InvalidArgument(
                f"concurrency and transactions must be at least 1, not {concurrency} and {transactions}"
            )
        self._workflows = app.workflows
        if not self._workflows:
            raise InvalidArgument(
                "the app has no workflows, so a worker would have nothing to claim",
                hint="Import the modules that define them with @app.workflow before the worker starts.",
            )
        self._dsn = app.dsn
        self.queues = tuple(queues or sorted({workflow.queue for workflow in self._workflows.values()}))
        self.name = name or f"{socket.gethostname()}:{os.getpid()}:{uuid.uuid4().hex[:8]}"
        self._concurrency = concurrency
        self._transactions = transactions
        self._drain = seconds(drain)
        self._runs: dict[str, Run] = {}
        # Claimed, and to be started when others end.
        self._next: deque[Claimed] = deque()
        self._ended_count = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self._stopping = False
        self._announced = self._has_channel = False
        self._bell, self._slot, self._stopped = asyncio.Event(), asyncio.Event(), asyncio.Event()
        # Leases that the session gave back before the answer to their claim was read.
        self._given_back: set[int] = set()

    def stop(self) -> None:
        """Stops claiming; ``run()`` returns when what runs is finished or given back. Call it on the event loop."""
        if not self._stopping:
            log.info("worker %s: stopping, %d workflows under way", self.name, len(self._runs))
        self._stopping = True
        self._bell.set()
        self._slot.set()
        self._stopped.set()

    async def run(self) -> None:
        """Works until ``stop()``. A database that is not up yet is waited for.

        Raises SchemaMismatch, or what psycopg raises when the database refuses.
        """
        self._loop = asyncio.get_running_loop()
        self._context = contextvars.copy_context()
        async with AsyncExitStack() as opened:
            with translated():
                found = await self._unless_stopped(self._open(opened))
            if found is None:
                return
            self._links, lease = found
            self._link, *writers = self._links
            # A claim would have to wait for a tick on its connection; a flush takes the other writer.
            self._tick_link = writers[0]
            self._writer = Writer(writers)
            bodies = DaemonThreads("durable-step", 2 * self._concurrency)
            submitted = DaemonThreads("durable-submit", 2 * self._concurrency)
            self._threads = DaemonThreads("durable-workflow", self._concurrency)
            waits = Waits(writers[1])
            self._engine = AsyncEngine(self._dsn, self._writer, waits, self._link, bodies, self._transactions)
            opened.push_async_callback(self._engine.close)
            self._thread_engine = ThreadEngine(self._engine, self._writer, submitted)
            self._session = session = Session(
                self._dsn, self.name, self.queues, lease / 3, lambda: self._held(lease / 3),
                on_bell=lambda: self._from_session(self._bell.set),
                on_lost=lambda *lost: self._from_session(self._lose, *lost),
                on_stray=self._given_back.add,
                on_attach=lambda: self._from_session(self._attached),
            )  # fmt: skip
            opened.callback(session.stop)
            session.start()
            with translated():
                await self._unless_stopped(asyncio.to_thread(session.wait_until_attached))
            log.info("worker %s: ready, queues %s, %d at a time", self.name, ", ".join(self.queues), self._concurrency)
            await self._work(session)
        log.info("worker %s: stopped", self.name)

    async def _open(self, opened: AsyncExitStack) -> tuple[list[Link], float]:
        """The links, and the length of a lease in seconds."""
        links = [
            # What waits for somebody's lock lets others pass, and is sent again.
            Link(self._dsn, name, lock_timeout="200ms")
            for name in ("control", "writer", "writer")
        ]
        for link in links:
            opened.push_async_callback(link.close)
            await link.connect()
        check_version((await links[0].execute(calls.VERSION))[0])
        return links, (await links[0].execute(calls.LEASE_SECONDS))[0][0]

    async def _unless_stopped(self, starting: Coroutine[Any, Any, T]) -> T | None:
        """What starting comes to; None when the worker is to stop before there is a database."""
        tasks = started, stopped = self._loop.create_task(starting), self._loop.create_task(self._stopped.wait())
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            return started.result() if started.done() else None
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(started, stopped, return_exceptions=True)

    async def _work(self, session: Session) -> None:
        loops = [self._loop.create_task(loop) for loop in (self._claim_loop(), self._tick_loop(), self._watch_links())]
        stopped: asyncio.Task[Any] = self._loop.create_task(self._stopped.wait())
        try:
            await asyncio.wait([*loops, stopped], return_when=asyncio.FIRST_COMPLETED)
            for task in loops:
                if task.done() and task.exception() is not None:
                    log.error("worker %s: cannot go on: %s", self.name, task.exception())
            self.stop()
            # For the answer to a claim, which does not come while Postgres is away.
            await asyncio.wait([loops[0]], timeout=_LAST_WORDS)
            loops[0].cancel()
            await self._finish_or_release(session)
        finally:
            for task in [*loops, stopped]:
                task.cancel()
            ends = await asyncio.gather(*loops, stopped, return_exceptions=True)
        with translated():
            for end in ends:
                if isinstance(end, Exception):
                    raise end

    # Claiming

    async def _claim_loop(self) -> None:
        self._announced = False
        last_work = time.monotonic() - _BUSY
        sampled_at, counted, ahead = last_work, 0, 0
        poll = _FIRST_POLL
        while not self._stopping:
            now = time.monotonic()
            if now - sampled_at > _SAMPLE:
                rate = (self._ended_count - counted) / (now - sampled_at)
                sampled_at, counted, ahead = now, self._ended_count, min(self._concurrency, int(rate * _AHEAD))
            free = self._concurrency - len(self._runs) - len(self._next)
            # With none free, a claim is worth its while for many.
            if free <= 0 and free < 1 - ahead // 2:
                self._slot.clear()
                await self._slot.wait()
                continue
            wanted = free + ahead
            self._bell.clear()
            rows = await self._claim(wanted)
            # What was begun before goes first here, too.
            self._next.extendleft(row for row in reversed(rows) if row.steps is not None)
            self._next.extend(row for row in rows if row.steps is None)
            self._start_next()
            now = time.monotonic()
            if rows:
                self._announced, last_work, poll = False, now, _FIRST_POLL
            if len(rows) == wanted:
                continue
            # Nobody is in line, so there is no need to be ahead of anything.
            sampled_at, counted, ahead = now, self._ended_count, 0
            if now - last_work < _BUSY:
                await asyncio.sleep(_NAP)
            elif self._has_channel and not self._announced:
                # Whoever enqueues from now on rings; what came before is found by claiming once more.
                self._announced = await self._announce()
                poll = _FIRST_POLL
                if not self._announced:
                    await asyncio.sleep(_AGAIN)
            else:
                with suppress(asyncio.TimeoutError):
                    await asyncio.wait_for(self._bell.wait(), poll * random.uniform(0.75, 1.25))
                poll = min(_POLL, 5 * poll)

    async def _announce(self) -> bool:
        """Asks to be woken; false when somebody is in the way, for then it is better to go on claiming."""
        try:
            rows = await self._link.execute(
                calls.IDLE, (self.name, calls.text_array(self.queues), calls.text_array(self._workflows)), patient=False
            )
        except psycopg.Error as error:
            if not transient(error):
                raise
            return False
        return rows[0][0] is not None

    async def _claim(self, free: int) -> list[Claimed]:
        before = self._link.reconnects
        rows = await self._link.execute(
            calls.CLAIM, (self.name, calls.text_array(self.queues), free, calls.text_array(self._workflows))
        )
        if self._link.reconnects != before:
            self._session.watch_for_strays()
            rows += await self._reclaim(rows)
        claimed = [Claimed._make(row) for row in rows]
        return [each for each in claimed if each.lease not in self._given_back] if self._given_back else claimed

    async def _release(self, held: list[Claimed]) -> None:
        """Gives workflows back. Returns when none of them is ours any more."""
        tries = 0
        while held:
            ids = calls.plain_array(each.workflow_id for each in held)
            leases = calls.plain_array(each.lease for each in held)
            if (await self._link.execute(calls.RELEASE, (ids, leases)))[0][0] == len(held):
                return
            # Some were lost before, or somebody holds their rows at this moment.
            rows = await self._link.execute(
                calls.HEARTBEAT,
                calls.heartbeat(self.name, (each.workflow_id for each in held), (each.lease for each in held)),
            )
            gone = {lease for _, _, lease in rows}
            held = [each for each in held if each.lease not in gone]
            await asyncio.sleep(pause(tries, LONGEST_TROUBLE_PAUSE))
            tries += 1

    async def _reclaim(self, claimed: list[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
        """What a claim gave us whose answer was lost."""
        known = [*self._runs, *(each.workflow_id for each in self._next), *(row[0] for row in claimed)]
        return await self._link.execute(calls.RECLAIM, (self.name, calls.plain_array(known)))

    async def _tick_loop(self) -> None:
        # Parts that others are in the way of, which is said once.
        refused: set[str] = set()
        while not self._stopping:
            report = (await self._tick_link.execute(calls.TICK, (self.name,)))[0][0]
            for part, done in report.items():
                if not isinstance(done, dict):
                    refused.discard(part)
                else:
                    level = logging.ERROR
                    if passes(done["code"]):
                        level = logging.DEBUG if part in refused else logging.WARNING
                        refused.add(part)
                    log.log(level, "worker %s: %s failed: %s (%s)", self.name, part, done["error"], done["code"])
            turn, due = report["turn_in_ms"], report.get("next_in_ms")
            # What falls due before the next turn is for a few of the workers, not for all at once.
            if due is not None and due < turn and random.random() < 3 * _TURN / turn:
                turn = max(20, due + 1)
            await asyncio.sleep(turn / 1000)

    async def _watch_links(self) -> None:
        while not self._stopping:
            for link in self._links:
                link.tell_if_unanswered()
            await asyncio.sleep(_WATCH)

    # Running

    def _start_next(self) -> None:
        while self._next and len(self._runs) < self._concurrency and not self._stopping:
            self._start(self._next.popleft())

    def _start(self, claimed: Claimed) -> None:
        run = Run(claimed)
        workflow = self._workflows[claimed.name]
        lost = self._runs.get(run.workflow_id)
        self._runs[run.workflow_id] = run
        if lost is not None:
            # It was parked or taken from us, or a crash of Postgres undid its claim, and we have yet to be told.
            lost.interrupt(None)
        if workflow.is_async:
            task = self._loop.create_task(self._run_async(run, workflow))
            run.hooks.append(task.cancel)
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        else:
            self._threads.submit(self._run_in_thread, run, workflow)

    async def _run_async(self, run: Run, workflow: Workflow[..., Any]) -> None:
        try:
            run.load()
            output = await workflow.function(AsyncContext(run, self._engine), *self._input(run, workflow))
            run.check()
            self._complete((run, self._encode(run, output)))
        except WorkflowInterrupted as interrupted:
            self._ended(run, interrupted)
        except asyncio.CancelledError as error:
            if run.interruption is not None:
                self._ended(run, run.interruption)
            else:
                self._fail((run, error))
        except BaseException as error:
            self._stopped_by(run, error)

    def _run_in_thread(self, run: Run, workflow: Workflow[..., Any]) -> None:
        try:
            run.check()
            run.load()
            output = workflow.function(Context(run, self._thread_engine), *self._input(run, workflow))
            run.check()
            self._thread_engine.post(self._complete, (run, self._encode(run, output)))
        except WorkflowInterrupted as interrupted:
            self._thread_engine.post(lambda reason: self._ended(run, reason), interrupted)
        except BaseException as error:
            self._thread_engine.post(lambda reason: self._stopped_by(run, reason), error)

    def _stopped_by(self, run: Run, error: BaseException) -> None:
        """An exception of the code itself, or what it made of being told to stop."""
        if run.interruption is not None:
            self._ended(run, run.interruption)
        else:
            self._fail((run, error))

    def _input(self, run: Run, workflow: Workflow[..., Any]) -> tuple[Any, ...]:
        if not workflow.takes_input:
            return ()
        if run.claimed.input is None and workflow.input_has_default:
            return ()
        subject = f"workflow {run.workflow_id} ({run.name}): the input"
        try:
            value = None if run.claimed.input is None else _codec.parse(run.claimed.input, subject)
        except InvalidArgument as error:
            error.hint = f"Start a copy with another one: durable fork {run.workflow_id} --input JSON"
            raise
        return (_codec.decode(value, workflow.decode_input, subject),)

    def _encode(self, run: Run, output: Any) -> str:
        return _codec.encode(output, f"workflow {run.workflow_id} ({run.name}): its output")

    def _complete(self, end: tuple[Run, str]) -> None:
        run, output = end
        waiter = self._loop.create_future()
        waiter.add_done_callback(lambda done: self._completed(run, done.exception()))
        self._writer.complete(Completion(run, output, waiter))

    def _completed(self, run: Run, error: BaseException | None) -> None:
        end = None if error is None else for_owner(error)
        if end is None or isinstance(end, WorkflowInterrupted):
            self._ended(run, end)
        else:
            self._fail((run, end))

    def _fail(self, end: tuple[Run, BaseException]) -> None:
        self._see_off(end[0], self._report_failure(*end))

    def _see_off(self, run: Run, telling: Coroutine[Any, Any, None]) -> None:
        """Ends a run of which the database has yet to be told."""
        task = self._loop.create_task(self._until_told(run, telling))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _until_told(self, run: Run, telling: Coroutine[Any, Any, None]) -> None:
        """However the database answers, the run does not stay: it is reported, else given back, else lost."""
        tries = 0
        while True:
            try:
                await telling
                return self._ended(run, None)
            except WorkflowInterrupted as interrupted:
                return self._ended(run, interrupted)
            except Exception as refused:
                log.log(
                    logging.ERROR if tries == 0 else logging.DEBUG,
                    "workflow %s (%s): it cannot be given back, trying again: %s", run.workflow_id, run.name, refused,
                )  # fmt: skip
            await asyncio.sleep(pause(tries, LONGEST_TROUBLE_PAUSE))
            tries += 1
            if (lost := lost_by(run)) is not None:
                return self._ended(run, lost)
            telling = self._release([run.claimed])

    async def _report_failure(self, run: Run, error: BaseException) -> None:
        log.warning("workflow %s (%s), attempt %d failed: %s", run.workflow_id, run.name, run.attempt, in_short(error))
        # Trying again would not make an input fit, or an output storable, or tell what an interrupted step did.
        retryable = not isinstance(error, InvalidArgument | StepInterrupted)
        for told in (error_json, short_error_json, _plain_error_json):
            try:
                waiter = self._loop.create_future()
                self._writer.fail(Failure(run, told(error), retryable, waiter))
                await waiter
            except Exception as refused:
                end = for_owner(refused)
                if isinstance(end, WorkflowInterrupted):
                    raise end from None
                log.error("workflow %s (%s): its failure cannot be stored: %s", run.workflow_id, run.name, refused)
            else:
                return
        # Rather given back than held for ever by a worker that does nothing with it.
        await self._release([run.claimed])

    async def _suspend(self, run: Run, misfit: Misfit) -> None:
        log.error("workflow %s (%s): paused: %s", run.workflow_id, run.name, misfit.difference)
        try:
            await self._engine.suspend(run, misfit.difference)
        except (DurableError, psycopg.Error) as refused:
            await self._report_failure(run, refused)

    def _ended(self, run: Run, interrupted: WorkflowInterrupted | None) -> None:
        if isinstance(interrupted, Misfit):
            self._see_off(run, self._suspend(run, interrupted))
            return
        if interrupted is not None and interrupted.reason is not None:
            log.warning("workflow %s (%s): stopped: %s", run.workflow_id, run.name, interrupted.reason.message)
        # While the worker stops, what it interrupted stays listed until it is given back.
        if self._runs.get(run.workflow_id) is run:
            del self._runs[run.workflow_id]
            self._ended_count += 1
            # Not in the context of the one that ended, which the next one would inherit.
            if self._next:
                self._loop.call_soon(self._start_next, context=self._context)
        self._slot.set()

    # The session, in its thread

    def _held(self, long: float) -> tuple[list[str], list[int], list[dict[str, Any]]]:
        # In this order, for what is started meanwhile moves from the one to the other.
        held = list(self._next)
        runs = list(self._runs.values())
        held += [run.claimed for run in runs]
        now = time.monotonic()
        steps = [
            {"workflow_id": run.workflow_id, "lease": run.lease, "step_name": name, "attempt": attempt,
             "elapsed_ms": int((now - started) * 1000)}
            for run in runs for name, (started, attempt) in list(run.running.items()) if now - started >= long
        ]  # fmt: skip
        return [each.workflow_id for each in held], [each.lease for each in held], steps

    def _from_session(self, call: Any, *args: Any) -> None:
        try:
            self._loop.call_soon_threadsafe(call, *args)
        except RuntimeError:
            log.debug("worker %s: its event loop is closed", self.name)

    def _lose(self, workflow_id: str, lease: int, reason: str) -> None:
        # By the lease: what was paused and resumed, say, may have been claimed again before the heartbeat was answered.
        run = self._runs.get(workflow_id)
        if run is not None and run.lease == lease:
            error = from_outcome(reason, f"workflow {workflow_id}")
            run.interrupt(error if isinstance(error, DurableError) else None)
        self._next = deque(each for each in self._next if each.lease != lease)

    def _attached(self) -> None:
        # A new session has a new channel, and after a crash Postgres has forgotten who is idle.
        self._announced, self._has_channel = False, True
        self._bell.set()

    # Stopping

    async def _until_empty(self) -> None:
        while self._runs:
            self._slot.clear()
            await self._slot.wait()

    async def _finish_or_release(self, session: Session) -> None:
        if self._next:
            # What is not given back here is given back by leave.
            with suppress(asyncio.TimeoutError, psycopg.Error):
                await asyncio.wait_for(self._release(list(self._next)), _LAST_WORDS)
            self._next.clear()
        with suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._until_empty(), self._drain)
        for run in list(self._runs.values()):
            run.interrupt(None)
        with suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._until_empty(), _LAST_WORDS)
        for run in self._runs.values():
            log.warning("workflow %s (%s): given back while its code still runs", run.workflow_id, run.name)
        session.stop()
        await asyncio.to_thread(session.join, _LAST_WORDS)
        try:
            with suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._writer.drain(), _LAST_WORDS)
            released = (await asyncio.wait_for(self._link.execute(calls.LEAVE, (self.name,)), _LAST_WORDS))[0][0]
            log.info("worker %s: gave back %d workflows", self.name, released)
        except (asyncio.TimeoutError, psycopg.Error) as error:
            log.error(
                "worker %s: what it holds is recovered when its lease runs out, for Postgres does not answer: %s",
                self.name, error or "no answer in time",
            )  # fmt: skip


def _plain_error_json(error: BaseException) -> str:
    """An error in ASCII alone, for a database that cannot store its text."""
    kind, text = (ascii(part)[1:-1][:200] for part in (type(error).__name__, in_short(error)))
    return json.dumps({"type": kind, "message": text})


async def run_until_signalled(worker: Worker) -> None:
    """Runs a worker; SIGTERM and SIGINT drain it, a second one of them ends the process."""
    loop = asyncio.get_running_loop()

    def on_signal() -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)
        worker.stop()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal)
    await worker.run()
