"""What the decorators make of functions: named workflows and steps with their options."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Generic, ParamSpec, Protocol, TypeVar

from . import _codec
from ._durations import Duration, seconds
from ._errors import InvalidArgument
from ._retry import Retry

P = ParamSpec("P")
R = TypeVar("R")

NO_RETRY = Retry()


def check_name(kind: str, name: str, limit: int) -> None:
    """Raises InvalidArgument for a name that Postgres, or the schema, would not take."""
    if not isinstance(name, str):
        raise InvalidArgument(f"the name of a {kind} must be text, not {name!r}")
    if not 1 <= len(name) <= limit or "\x00" in name or any("\ud800" <= letter <= "\udfff" for letter in name):
        raise InvalidArgument(f"the name of a {kind} must be 1 to {limit} characters of valid text: {name[:50]!r}")


def check_texts(**values: str | None) -> None:
    """Raises InvalidArgument for what is neither text nor None: Postgres would say that it knows no such function."""
    for name, value in values.items():
        if value is not None and not isinstance(value, str):
            raise InvalidArgument(f"{name} must be text, not {value!r}", hint=f"Pass str({name}) if that is meant.")


def check_integers(**numbers: int | None) -> None:
    """Postgres would look for a function that takes larger ones, or texts, and say that there is none."""
    for name, number in numbers.items():
        if number is not None and not (isinstance(number, int) and -(2**31) <= number < 2**31):
            raise InvalidArgument(
                f"{name} must be an integer of at most 32 bits, not {number!r}", hint="For example 1, or leave it out."
            )


@dataclass(frozen=True, slots=True, eq=False)
class Step(Generic[P, R]):
    """A function whose outcome is checkpointed once for each call in a workflow. Outside of one, call it as it is."""

    function: Callable[P, R]
    name: str
    retry: Retry = NO_RETRY
    timeout: float | None = None
    at_most_once: bool = False
    is_async: bool = field(init=False)
    decode: _codec.Decoder | None = field(init=False, repr=False)

    def __post_init__(self) -> None:
        check_name("step", self.name, 400)
        if self.at_most_once and self.retry.max_attempts > 1:
            raise InvalidArgument(
                f"step {self.name!r} runs at most once, so it cannot be retried", hint="Leave out retry."
            )
        object.__setattr__(self, "is_async", inspect.iscoroutinefunction(self.function))
        object.__setattr__(self, "decode", _codec.return_decoder(self.function))

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        return self.function(*args, **kwargs)

    def options(
        self, *, name: str | None = None, retry: Retry | None = None, timeout: Duration | None = None,
    ) -> Step[P, R]:  # fmt: skip
        """The same step with another name, retry policy or timeout for one call."""
        return dataclasses.replace(
            self,
            name=self.name if name is None else name,
            retry=self.retry if retry is None else retry,
            timeout=self.timeout if timeout is None else seconds(timeout),
        )


def as_step(function: Callable[P, R] | Step[P, R]) -> Step[P, R]:
    """The step of a function that was not decorated: its own name, no retry."""
    if isinstance(function, Step):
        return function
    if isinstance(function, Workflow):
        raise InvalidArgument(
            f"{function.name!r} is a workflow, not a step",
            hint="Run it as a child, with run, start or map of the context.",
        )
    known: Step[P, R] | None = _undecorated.get(function)
    if known is None:
        name = getattr(function, "__name__", "")
        if not name or name == "<lambda>":
            raise InvalidArgument(
                f"a step needs a name, which {function!r} has not",
                hint="Define a function with def, or give one with Durable.step(name=…).",
            )
        known = Step(function, name)
        if "<locals>" not in getattr(function, "__qualname__", "<locals>"):
            _undecorated[function] = known
    return known


_undecorated: dict[Any, Step[Any, Any]] = {}


@dataclass(frozen=True, slots=True, eq=False)
class Workflow(Generic[P, R]):
    """A function that runs as a durable workflow. It takes a context and at most one input. ``R`` is its output."""

    function: Callable[P, R | Coroutine[Any, Any, R]]
    name: str
    queue: str = "default"
    max_attempts: int = 1
    timeout: float | None = None
    priority: int = 0
    is_async: bool = field(init=False)
    takes_input: bool = field(init=False)
    input_has_default: bool = field(init=False)
    decode_input: _codec.Decoder | None = field(init=False, repr=False)
    decode_output: _codec.Decoder | None = field(init=False, repr=False)

    def __post_init__(self) -> None:
        check_name("workflow", self.name, 200)
        check_name("queue", self.queue, 200)
        takes_input, input_has_default, decode_input = _codec.input_decoder(self.function, self.name)
        object.__setattr__(self, "is_async", inspect.iscoroutinefunction(self.function))
        object.__setattr__(self, "takes_input", takes_input)
        object.__setattr__(self, "input_has_default", input_has_default)
        object.__setattr__(self, "decode_input", decode_input)
        object.__setattr__(self, "decode_output", _codec.return_decoder(self.function))

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R | Coroutine[Any, Any, R]:
        return self.function(*args, **kwargs)


class App(Protocol):
    """What a worker needs of a ``Durable``: the workflows that it declares, and the database that they live in."""

    @property
    def dsn(self) -> str: ...
    @property
    def workflows(self) -> Mapping[str, Workflow[..., Any]]: ...


def name_of(workflow: Workflow[..., Any] | str) -> str:
    """The name of a workflow. Raises InvalidArgument for what is none, such as a step: nobody could run it."""
    if isinstance(workflow, Workflow):
        return workflow.name
    if not isinstance(workflow, str):
        raise InvalidArgument(
            f"{getattr(workflow, 'name', workflow)!r} is not a workflow",
            hint="Declare it with @app.workflow, or pass the name of one; a step runs with step of the context.",
        )
    return workflow


def enqueue_parameters(
    workflow: Workflow[..., Any] | str,
    inputs: Sequence[Any],
    keys: str | None,
    queue: str | None,
    priority: int | None,
    run_at: datetime | None,
    max_attempts: int | None,
    timeout: Duration | None,
    tags: dict[str, Any] | None,
) -> tuple[list[str | None], list[Any]]:
    """The inputs as JSON, and the other parameters of ``durable.enqueue()`` in order; ``keys`` as they are sent."""
    known = workflow if isinstance(workflow, Workflow) else None
    name = name_of(workflow)
    check_texts(queue=queue, key=keys)
    check_integers(priority=priority, max_attempts=max_attempts)
    if run_at is not None and run_at.tzinfo is None:
        raise InvalidArgument(
            f"workflow {name!r}: run_at has no time zone",
            hint="For example datetime.now(timezone.utc) + timedelta(hours=1).",
        )
    if known is not None and not known.takes_input and any(item is not None for item in inputs):
        raise InvalidArgument(
            f"workflow {name!r} takes no input", hint="Leave it out, or add a parameter to the function."
        )
    encoded = [None if item is None else _codec.encode(item, f"the input of workflow {name!r}") for item in inputs]
    default_timeout = known.timeout if known is not None else None
    return encoded, [
        name,
        queue if queue is not None else known.queue if known is not None else "default",
        keys,
        priority if priority is not None else known.priority if known is not None else 0,
        run_at,
        max_attempts if max_attempts is not None else known.max_attempts if known is not None else 1,
        seconds(timeout) if timeout is not None else default_timeout,
        _codec.encode(tags or {}, f"the tags of workflow {name!r}"),
    ]
