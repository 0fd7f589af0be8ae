"""What a workflow's code calls.

Generated from ``context_async.py`` by ``tools/async_to_sync.py``; do not edit.
"""

from __future__ import annotations

import concurrent.futures
import json
import random
import time
from collections import deque
from collections.abc import Callable, Coroutine, Iterable
from datetime import datetime
from typing import Any, Concatenate, Literal, NoReturn, ParamSpec, TypeVar, overload
from uuid import UUID, uuid5

from .. import _codec
from .._approvals import Decision, decision_of, request_parameters
from .._client.calls import StoredStep
from .._conditions import Condition, Event, Message, Met, length, timestamp, value_of
from .._conditions import encode as encode_conditions
from .._definitions import Step, Workflow, as_step, check_texts, name_of
from .._durations import Duration
from .._errors import ChildFailed, DurableError, InvalidArgument, PayloadTooLarge, StepFailed, WaitTimedOut, step_failed
from . import children
from .approval import ApprovalRequest
from .child import Child
from .engine import ThreadEngine
from .outcome import INTERRUPTED, Stored, error_json, short_error_json
from .run import LONG_RUN, Misfit, Run, WorkflowInterrupted, as_stored, fit, in_step, read, readable

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")


def _clock(run: Run) -> datetime:
    return run.database_now()


def _pause(length: float) -> None:
    time.sleep(length)


_NOW: Step[[Run], datetime] = Step(_clock, "now")
_PAUSE: Step[[float], Any] = Step(_pause, "sleep")
# A sleep shorter than this many seconds stays in the process.
_SHORT = 1.0


class Context:
    """One run of a workflow. Every step goes through it, and is skipped when its outcome is already stored.

    Names of steps are given out in the order of the calls, so parallel steps are started in a fixed order: build them
    first, then gather them.
    """

    def __init__(self, run: Run, engine: ThreadEngine) -> None:
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
        """Which attempt this is, from 1: each failure, each death of its worker and each retry adds one."""
        return self._run.attempt

    @property
    def created_at(self) -> datetime:
        """When it was enqueued, by the database's clock."""
        return self._run.claimed.created_at

    @overload
    def step(
        self, step: Callable[P, Coroutine[Any, Any, R]], /, *args: P.args, **kwargs: P.kwargs
    ) -> R: ...  # fmt: skip
    @overload
    def step(self, step: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> R: ...
    def step(self, step: Any, /, *args: Any, **kwargs: Any) -> Any:
        """Runs a step, or returns its stored output. A second call of the same step is a step of its own (``#2``).

        Raises StepFailed when it failed for good.
        """
        known = as_step(step)
        return self._perform(known, self._name(known.name), self._invoke, args, kwargs)

    def submit(self, step: Callable[P, Any], /, *args: P.args, **kwargs: P.kwargs) -> concurrent.futures.Future[Any]:
        """Starts a step beside the code that follows; its future gives the output."""
        known = as_step(step)
        name = self._name(known.name)
        # Now, and not when its thread has started: what waits meanwhile must know of it.
        self._run.active.add(name)
        return self._engine.spawn(self._perform, known, name, self._invoke, args, kwargs)

    @overload
    def transaction(
        self, step: Callable[Concatenate[Any, P], Coroutine[Any, Any, R]], /, *args: P.args, **kwargs: P.kwargs
    ) -> R: ...
    @overload
    def transaction(
        self, step: Callable[Concatenate[Any, P], R], /, *args: P.args, **kwargs: P.kwargs
    ) -> R: ...  # fmt: skip
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

    def sleep(self, duration: Duration) -> None:
        """Sleeps so long, by the database's clock; ``"3 days"``, say. Survives crashes, and holds no worker meanwhile.

        Less than a second is spent in the process, and after a crash once more.
        """
        seconds = length(duration)
        if seconds < _SHORT:
            return self._nap(self._name("sleep"), seconds)
        return self._sleep(self._name("sleep"), seconds, None)

    def sleep_until(self, at: datetime) -> None:
        """Sleeps until a time, which has a time zone, by the database's clock."""
        return self._sleep(self._name("sleep"), None, timestamp(at))

    @overload
    def receive(self, topic: str, *, timeout: Duration | None = None) -> Any: ...
    @overload
    def receive(self, topic: str, *, timeout: Duration | None = None, type: type[R]) -> R: ...
    def receive(self, topic: str, *, timeout: Duration | None = None, type: Any = None) -> Any:
        """The next message of a topic that was sent to this workflow, as ``type`` if one is given. Waits for it.

        Raises WaitTimedOut when none has come within ``timeout``, which counts from the first call, also after a crash.
        """
        return self._wait_for(f"receive:{topic}", Message(topic), timeout, type)

    @overload
    def wait_event(self, name: str, *, timeout: Duration | None = None) -> Any: ...
    @overload
    def wait_event(self, name: str, *, timeout: Duration | None = None, type: type[R]) -> R: ...
    def wait_event(self, name: str, *, timeout: Duration | None = None, type: Any = None) -> Any:
        """The payload of an event, as ``type`` if one is given. Waits until it is emitted, if it was not before.

        Raises WaitTimedOut when it was not emitted within ``timeout``, which counts from the first call.
        """
        return self._wait_for(f"event:{name}", Event(name), timeout, type)

    def wait_any(self, *conditions: Condition, timeout: Duration | None = None) -> Met:
        """Waits until one of the conditions is met; the first in the list that is. Takes the message of no other.

        Raises WaitTimedOut when none was within ``timeout``.
        """
        return self._any_of(self._name("wait_any"), conditions, timeout)

    def wait_all(self, *conditions: Condition, timeout: Duration | None = None) -> list[Any]:
        """Waits until all of the conditions are met, and returns their values in the order of the list.

        Raises WaitTimedOut when they were not within ``timeout``; then it has taken no message.
        """
        return self._all_of(self._name("wait_all"), conditions, timeout)

    def start(self, workflow: Workflow[..., R] | str, input: Any = None, **options: Any) -> Child[R]:
        """Starts a child: a workflow that is cancelled with this one, and otherwise lives on its own.

        It is a step: a replay gets the same child. ``options`` are ``queue``, ``priority``, ``max_attempts``,
        ``timeout`` and ``tags``, as for ``Durable.enqueue``; for a child that is given by its name, queue and
        priority are those of this workflow.
        """
        return self._start_one(self._name(f"start:{name_of(workflow)}"), workflow, input, options)

    def run(self, workflow: Workflow[..., R] | str, input: Any = None, **options: Any) -> R:
        """Starts a child, waits for its end and returns its output; holds no worker meanwhile.

        Raises ChildFailed when it failed or was cancelled. ``options`` are those of ``start``.
        """
        return self._run_one(self._name(f"run:{name_of(workflow)}"), workflow, input, options)

    @overload
    def map(
        self, function: Workflow[..., R] | str, items: Iterable[Any], *, max_parallel: int | None = None,
        return_failures: Literal[False] = False, **options: Any,
    ) -> list[R]: ...  # fmt: skip
    @overload
    def map(
        self, function: Workflow[..., R] | str, items: Iterable[Any], *, max_parallel: int | None = None,
        return_failures: Literal[True], **options: Any,
    ) -> list[R | ChildFailed]: ...  # fmt: skip
    @overload
    def map(
        self, function: Callable[[T], Coroutine[Any, Any, R]], items: Iterable[T], *, max_parallel: int | None = None,
        return_failures: Literal[False] = False,
    ) -> list[R]: ...  # fmt: skip
    @overload
    def map(
        self, function: Callable[[T], Coroutine[Any, Any, R]], items: Iterable[T], *, max_parallel: int | None = None,
        return_failures: Literal[True],
    ) -> list[R | StepFailed]: ...  # fmt: skip
    @overload
    def map(
        self, function: Callable[[T], R], items: Iterable[T], *, max_parallel: int | None = None,
        return_failures: Literal[False] = False,
    ) -> list[R]: ...  # fmt: skip
    @overload
    def map(
        self, function: Callable[[T], R], items: Iterable[T], *, max_parallel: int | None = None,
        return_failures: Literal[True],
    ) -> list[R | StepFailed]: ...  # fmt: skip
    def map(
        self, function: Any, items: Iterable[Any], *, max_parallel: int | None = None, return_failures: bool = False,
        **options: Any,
    ) -> Any:  # fmt: skip
        """What a function returns for each item, in the order of the items. At most ``max_parallel`` of them are under
        way at a time.

        A workflow runs as a child for each item, at most a million of them, and no worker is held meanwhile.
        ``options`` are those of ``start``. Raises the first ChildFailed in the order of the items, when all have ended.

        A step runs for each item within this worker, and has the name that ``step`` would give it in that place: once
        stored it does not run again. Raises the StepFailed that was first; no further item is begun after it, and those
        under way end before.

        With ``return_failures`` it raises neither, and returns them in the places of the outputs.
        """
        if isinstance(function, Workflow | str):
            name = self._name(f"map:{name_of(function)}")
            return self._map(name, function, list(items), return_failures, {**options, "max_parallel": max_parallel})
        known = as_step(function)
        if options or (max_parallel is not None and max_parallel < 1):
            raise InvalidArgument(
                f"workflow {self.workflow_id}: the map of step {known.name!r} has options, or a max_parallel below 1",
                hint="A step has its retry policy and timeout from Durable.step() or Step.options(), and no queue.",
            )
        # All of them now, so that they do not depend on which item is begun when.
        calls = [(self._name(known.name), item) for item in items]
        return self._map_steps(known, calls, max_parallel or len(calls), return_failures)

    def approval(
        self, subject: str, *, assignee: str | None = None, form: Any = None, expires: Duration | None = None
    ) -> Decision:
        """Asks people for a decision and waits for it, without holding a worker meanwhile.

        ``subject`` is the question in one line, ``assignee`` who is asked (a person, a team; None for anyone), ``form``
        any JSON that helps to decide. ``Durable.approvals`` lists it, ``Durable.decide`` answers it, and so do the
        commands ``durable approvals`` and ``durable decide``. When nobody has within ``expires``, which counts from the
        first call by the database's clock, the decision says that it is ``expired``. Raises InvalidArgument.
        """
        return self._approval(self._name("approval"), request_parameters(subject, assignee, form, expires))

    def request_approval(
        self, subject: str, *, assignee: str | None = None, form: Any = None, expires: Duration | None = None
    ) -> ApprovalRequest:
        """Asks people for a decision and goes on. A replay gets the same approval.

        What it returns has an ``approval_id`` to tell people, can be waited for with ``decision()``, and with
        ``wait_any`` beside a ``Timer`` that reminds them. The parameters are those of ``approval``.
        """
        return self._approval_request(self._name("approval"), request_parameters(subject, assignee, form, expires))

    def now(self) -> datetime:
        """The time by the database's clock, the same in every replay. It is a step, so it costs a checkpoint."""
        time: datetime = self._perform(_NOW, self._name("now"), self._invoke, (self._run,), {})
        return time

    def uuid(self) -> UUID:
        """A UUID that is the same in every replay."""
        return uuid5(UUID(self.workflow_id), f"uuid/{self._run.count('uuid()')}")

    def random(self) -> float:
        """A number from 0 up to 1 that is the same in every replay."""
        return random.Random(f"{self.workflow_id}/{self._run.count('random()')}").random()

    def set(self, key: str, value: Any) -> None:
        """Publishes a value under a key, for whoever looks: ``handle.state()``, ``durable show``, ``durable.state()``.

        The latest value of each key stays until the workflow is removed from the history. It is no step: a replay
        publishes again, and a step may call it. Raises InvalidArgument, PayloadTooLarge.
        """
        self._run.check()
        check_texts(key=key)
        text = _codec.encode(value, f"workflow {self.workflow_id}: the value of {key!r}")
        self._engine.publish(self._run, key, text)

    def continue_as_new(self, input: Any = None) -> NoReturn:
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
        self._engine.continue_as_new(self._run, text)
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

    def _perform(self, step: Step[Any, Any], name: str, how: Any, args: Any, kwargs: Any) -> Any:
        run = self._run
        run.active.add(name)
        try:
            return self._attempt(step, name, how, args, kwargs)
        finally:
            run.active.discard(name)
            if run.waits:
                self._engine.step_ended(run)

    def _attempt(self, step: Step[Any, Any], name: str, how: Any, args: Any, kwargs: Any) -> Any:
        run = self._run
        attempt = 1
        if run.replay:
            stored = run.replay.get(name)
            if stored is not None:
                if stored.status != "running":
                    return self._recall(step, name, stored)
                if stored.at_most_once:
                    raise step_failed(run.workflow_id, name, INTERRUPTED)
                attempt = stored.attempt
                self._engine.pause(run, stored.retry_in)
        while True:
            run.check()
            if run.gate is not None:
                self._engine.pass_gate(run)
            if step.at_most_once:
                known = self._engine.start_step(run, name)
                if known is not None:
                    return self._outcome(step, name, known)
            try:
                token = run.enter(name, attempt)
                try:
                    return how(step, name, attempt, args, kwargs)
                finally:
                    run.leave(name, token)
            except Stored as outcome:
                return self._outcome(step, name, outcome)
            except Exception as error:
                limit = 1 if isinstance(error, DurableError) or step.at_most_once else step.retry.attempts_after(error)
                text = error_json(error)
                try:
                    wait = self._engine.fail_step(run, name, text, attempt, limit, step.retry)
                except PayloadTooLarge:
                    text = short_error_json(error)
                    wait = self._engine.fail_step(run, name, text, attempt, limit, step.retry)
                if wait is None:
                    raise step_failed(run.workflow_id, name, json.loads(text)) from error
            attempt += 1
            self._engine.pause(run, wait)

    def _invoke(self, step: Step[Any, Any], name: str, attempt: int, args: Any, kwargs: Any) -> Any:
        started = time.monotonic()
        value = self._engine.invoke(self._run, step, args, kwargs)
        text = _codec.encode(value, f"workflow {self._run.workflow_id}, step {name!r}: its output")
        result = _codec.round_trip(value, text, step.decode)
        self._engine.checkpoint(self._run, name, text, attempt, int((time.monotonic() - started) * 1000))
        return result

    def _transact(self, step: Step[Any, Any], name: str, attempt: int, args: Any, kwargs: Any) -> Any:
        return self._engine.transact(self._run, step, name, attempt, args, kwargs)

    def _nap(self, name: str, length: float) -> None:
        self._perform(_PAUSE, name, self._invoke, (length,), {})

    def _sleep(self, name: str, length: float | None, until: float | None) -> None:
        self._wait(name, "[]", "any", length, until)

    def _wait(self, name: str, conditions: str, mode: str, timeout: float | None, until: float | None) -> Any:
        stored = self._run.replay.get(name)
        if stored is not None and stored.status != "running":
            return self._stored_output(name, stored)
        return self._engine.wait(self._run, name, conditions, mode, timeout, until)

    def _met(self, name: str, conditions: tuple[Condition, ...], mode: str, timeout: Duration | None) -> Any:
        return self._met_json(name, encode_conditions(conditions), mode, timeout)

    def _met_json(self, name: str, conditions: str, mode: str, timeout: Duration | None) -> Any:
        limit = None if timeout is None else length(timeout)
        output = self._wait(name, conditions, mode, limit, None)
        end = "values" if mode == "all" else "value"
        if not isinstance(output, dict) or not output.keys() & {"timed_out", end}:
            # A fork may have replaced it.
            raise Misfit(
                f"step {name!r}: the stored output is not the end of a wait\nstored:   {_codec.text_of(output)}\n"
                f'expected: {{"index": 0, "value": …}}, or {{"values": […]}} for all, or {{"timed_out": true}}'
            )
        if "timed_out" in output:
            raise WaitTimedOut(
                f"workflow {self.workflow_id}, step {name!r}: what it waits for did not come within {timeout}"
            )
        return output

    def _wait_for(self, name: str, condition: Condition, timeout: Duration | None, kind: Any) -> Any:
        return self._value_of(self._name(name), condition, timeout, kind)

    def _value_of(self, name: str, condition: Condition, timeout: Duration | None, kind: Any) -> Any:
        value = (self._met(name, (condition,), "any", timeout))["value"]
        decode = None if kind is None else _codec.decoder(kind)
        return fit(value, decode, f"step {name!r}: what has come", lambda: kind)

    def _any_of(self, name: str, conditions: tuple[Condition, ...], timeout: Duration | None) -> Met:
        if not conditions:
            raise InvalidArgument("wait_any needs something to wait for", hint='For example Message("topic").')
        output = self._met(name, conditions, "any", timeout)
        with as_stored(name):
            condition = conditions[output["index"]]
            return Met(output["index"], condition, value_of(condition, output["value"]))

    def _all_of(self, name: str, conditions: tuple[Condition, ...], timeout: Duration | None) -> list[Any]:
        if not conditions:
            return []
        values = (self._met(name, conditions, "all", timeout))["values"]
        with as_stored(name):
            return [value_of(condition, value) for condition, value in zip(conditions, values, strict=True)]

    def _start_one(self, name: str, workflow: Workflow[..., R] | str, input: Any, options: dict[str, Any]) -> Child[R]:
        group = self._start(name, workflow, [input], options)
        return Child(group.first, lambda timeout: self._join_one(self._name(f"{name}/result"), group, timeout))

    def _run_one(self, name: str, workflow: Workflow[..., R] | str, input: Any, options: dict[str, Any]) -> R:
        group = self._start(name, workflow, [input], options)
        result: R = self._join_one(f"{name}/result", group, None)
        return result

    def _map(
        self, name: str, workflow: Workflow[..., Any] | str, items: list[Any], return_failures: bool,
        options: dict[str, Any],
    ) -> list[Any]:  # fmt: skip
        if not items:
            return []
        group = self._start(name, workflow, items, options)
        results = self._join(f"{name}/result", group, None)
        failure = children.first_failure(results)
        if failure is not None and not return_failures:
            raise failure
        return results

    def _map_steps(
        self, step: Step[Any, Any], calls: list[tuple[str, Any]], max_parallel: int, return_failures: bool
    ) -> list[Any]:
        run = self._run
        results: dict[str, Any] = {}
        todo: deque[tuple[str, Any]] = deque()
        for name, item in calls:
            stored = run.replay.get(name)
            if stored is None or (stored.status == "running" and not stored.at_most_once):
                todo.append((name, item))
            else:
                results[name] = self._result_of(step, name, item)
        if not return_failures:
            run.raise_first_failure(results.values())
        # What is still to be begun counts, too: between two of them the workflow is not only waiting.
        run.active.update(name for name, _ in todo)
        try:
            lanes = min(max_parallel, len(todo))
            self._engine.join(
                [self._engine.spawn(self._work, step, todo, results, not return_failures) for _ in range(lanes)]
            )
        finally:
            run.active.difference_update(name for name, _ in calls)
            if run.waits:
                self._engine.step_ended(run)
        if not return_failures:
            run.raise_first_failure(results.values())
        return [results[name] for name, _ in calls]

    def _work(self, step: Step[Any, Any], todo: deque[tuple[str, Any]], results: dict[str, Any], stops: bool) -> None:
        """One of those that share what is to be done. Whoever must stop leaves nothing for the others."""
        while True:
            try:
                name, item = todo.popleft()
            except IndexError:
                return
            try:
                results[name] = self._result_of(step, name, item)
            except BaseException:
                todo.clear()
                raise
            if stops and isinstance(results[name], StepFailed):
                todo.clear()

    def _result_of(self, step: Step[Any, Any], name: str, item: Any) -> Any:
        """The output of a step, or its failure."""
        try:
            return self._perform(step, name, self._invoke, (item,), {})
        except StepFailed as failure:
            return failure

    def _start(
        self, name: str, workflow: Workflow[..., Any] | str, inputs: list[Any], options: dict[str, Any]
    ) -> children.Group:
        stored = self._run.replay.get(name)
        if stored is not None and stored.status != "running":
            output = self._stored_output(name, stored)
            with as_stored(name):
                return children.Group(str(output["first"]), workflow)
        parameters = children.start_parameters(workflow, inputs, **options)
        return children.Group(self._call(self._engine.start_children, name, parameters), workflow)

    def _call(self, call: Callable[[Run, str, list[Any]], str], name: str, parameters: Any) -> str:
        """Makes a call that is a step by itself."""
        run = self._run
        run.active.add(name)
        try:
            run.check()
            if run.gate is not None:
                self._engine.pass_gate(run)
            return call(run, name, parameters)
        finally:
            run.active.discard(name)
            if run.waits:
                self._engine.step_ended(run)

    def _approval(self, name: str, parameters: list[Any]) -> Decision:
        # Where the wait was begun, the request was made.
        if name not in self._run.replay:
            self._call(self._engine.request_approval, name, parameters)
        return self._decision(name, name)

    def _approval_request(self, name: str, parameters: list[Any]) -> ApprovalRequest:
        approval_id = self._call(self._engine.request_approval, name, parameters)
        return ApprovalRequest(approval_id, name, lambda: self._decision(self._name(f"{name}/decision"), name))

    def _decision(self, name: str, request: str) -> Decision:
        output = self._met_json(name, json.dumps([{"approval": request}]), "any", None)
        return decision_of(output["value"])

    def _join_one(self, name: str, group: children.Group, timeout: Duration | None) -> Any:
        (result,) = self._join(name, group, timeout)
        failure = children.first_failure([result])
        if failure is not None:
            raise failure
        return result

    def _join(self, name: str, group: children.Group, timeout: Duration | None) -> list[Any]:
        value = (self._met_json(name, group.condition, "any", timeout))["value"]
        with as_stored(name):
            outputs = value.get("outputs")
        if outputs is None:
            texts = self._engine.child_outputs(group.first)
            outputs = group.outputs(name, value, texts)
        return group.results(name, value, outputs)

    def _recall(self, step: Step[Any, Any], name: str, stored: StoredStep) -> Any:
        return self._decode(step, name, self._stored_output(name, stored))

    def _stored_output(self, name: str, stored: StoredStep) -> Any:
        if stored.error is not None:
            raise step_failed(self.workflow_id, name, stored.error)
        if stored.omitted:
            return self._output_of(name, self._engine.step_outcome(self._run, name))
        return readable(stored.output, name)

    def _outcome(self, step: Step[Any, Any], name: str, outcome: Stored) -> Any:
        return self._decode(step, name, self._output_of(name, outcome))

    def _output_of(self, name: str, outcome: Stored) -> Any:
        if outcome.error is not None:
            raise step_failed(self.workflow_id, name, _codec.parse_error(outcome.error, "the stored error"))
        return read(outcome.output, name)

    def _decode(self, step: Step[Any, Any], name: str, value: Any) -> Any:
        subject = f"step {name!r}: the stored output"
        return fit(value, step.decode, subject, lambda: _codec.return_type(step.function))
