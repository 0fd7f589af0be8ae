"""What a workflow can wait for."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from ._approvals import decision_of
from ._definitions import check_name
from ._durations import Duration, seconds
from ._errors import InvalidArgument

# A hundred years, as in durable._longest().
_LONGEST = 3_155_760_000.0
# As in durable._timed().
_MOST = 10_000


@dataclass(frozen=True, slots=True)
class Message:
    """A message to this workflow, of one topic (1 to 200 characters). Its value is the payload."""

    topic: str

    def __post_init__(self) -> None:
        check_name("topic", self.topic, 200)


@dataclass(frozen=True, slots=True)
class Event:
    """An event, by its name (1 to 400 characters). Its value is the payload."""

    name: str

    def __post_init__(self) -> None:
        check_name("event", self.name, 400)


@dataclass(frozen=True, slots=True)
class Timer:
    """A time, ``after`` so long from now or ``at`` a time with its zone, by the database's clock. Its value is None."""

    after: Duration | None = None
    at: datetime | None = None

    def __post_init__(self) -> None:
        if (self.after is None) == (self.at is None):
            raise InvalidArgument(
                "a timer takes either a length of time or a time", hint='For example Timer("3 days") or Timer(at=due).'
            )
        if self.after is not None:
            length(self.after)
        if self.at is not None:
            timestamp(self.at)


class ChildEnd:
    """The end of a child, however it ended. Its value is None; the ``result()`` of the child is then at hand."""

    def __init__(self, workflow_id: str) -> None:
        self.workflow_id = workflow_id

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.workflow_id!r})"


class Approval:
    """The decision on an approval of this workflow, or its expiry. Its value is a ``Decision``."""

    def __init__(self, approval_id: str, step_name: str) -> None:
        self.approval_id = approval_id
        self.step_name = step_name

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.approval_id!r})"


Condition = Message | Event | Timer | ChildEnd | Approval


@dataclass(frozen=True, slots=True)
class Met:
    """Which condition ``wait_any`` ended with: its place in the list, itself, and its value."""

    index: int
    condition: Condition
    value: Any


def value_of(condition: Condition, value: Any) -> Any:
    """The value of a condition that was met, by what the wait ended with."""
    if isinstance(condition, Approval):
        return decision_of(value)
    return None if isinstance(condition, ChildEnd) else value


def length(duration: Duration) -> float:
    """A length of time in seconds. Raises InvalidArgument when it is negative, or longer than 100 years."""
    value = seconds(duration)
    if value > _LONGEST:
        raise InvalidArgument(f"{duration!r} is longer than 100 years")
    return value


def timestamp(at: datetime) -> float:
    """Seconds since 1970. Raises InvalidArgument for a time without a zone."""
    if at.tzinfo is None:
        raise InvalidArgument(
            f"the time {at} has no time zone", hint="For example datetime.now(timezone.utc) + timedelta(hours=1)."
        )
    return at.timestamp()


def encode(conditions: tuple[Condition, ...]) -> str:
    """The JSON that ``durable.wait()`` takes."""
    if len(conditions) > _MOST:
        raise InvalidArgument(
            f"a wait for {len(conditions)} things is longer than {_MOST}",
            hint="Wait for some of them, then for the others.",
        )
    if len(set(conditions)) < len(conditions):
        raise InvalidArgument("a wait names the same condition twice", hint="Name each once.")
    return json.dumps([_plain(condition) for condition in conditions])


def _plain(condition: Condition) -> dict[str, Any]:
    if isinstance(condition, Message):
        return {"message": condition.topic}
    if isinstance(condition, Event):
        return {"event": condition.name}
    if isinstance(condition, ChildEnd):
        return {"children": condition.workflow_id}
    if isinstance(condition, Approval):
        return {"approval": condition.step_name}
    if isinstance(condition, Timer):
        if condition.at is not None:
            return {"timer_at": timestamp(condition.at)}
        assert condition.after is not None
        return {"timer": length(condition.after)}
    raise InvalidArgument(
        f"{condition!r} is not something to wait for",
        hint="Pass Message(topic), Event(name), Timer(duration), a child or a requested approval.",
    )
