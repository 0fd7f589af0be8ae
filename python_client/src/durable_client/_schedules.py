"""Schedules: what a program declares, and what the database makes of them."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

from . import _codec
from ._definitions import Workflow
from ._durations import Duration, seconds
from ._errors import InvalidArgument

Overlap = Literal["skip", "queue_one", "queue_all", "cancel", "allow"]
CatchupMode = Literal["all", "last"]


@dataclass(frozen=True, slots=True, eq=False)
class Schedule:
    """When which workflow is enqueued: a row of ``durable.schedules``. ``Durable.schedule`` declares one.

    ``cron`` has five fields, or six with seconds first, or is ``@hourly`` and kin, or an interval such as
    ``30 seconds``. ``timezone`` is an IANA name. ``input`` None gives the workflow a ``Firing``; in a dict the values
    ``"{due_at}"`` and ``"{schedule}"`` are replaced. ``overlap`` is what happens while the workflow before still runs;
    ``catchup`` is how late a due time may be made up for when nothing ticked, and ``catchup_mode`` whether all of them
    are or the last. ``jitter`` puts each start off by a random part of it. What is left out of the rest comes from
    ``@app.workflow``.
    """

    name: str
    cron: str
    workflow: Workflow[..., Any] | str
    input: Any = None
    timezone: str = "UTC"
    overlap: Overlap = "skip"
    catchup: Duration = 0
    catchup_mode: CatchupMode = "all"
    jitter: Duration = 0
    starts_at: datetime | None = None
    ends_at: datetime | None = None
    max_firings: int | None = None
    pause_on_failure: bool = False
    queue: str | None = None
    priority: int | None = None
    max_attempts: int | None = None
    timeout: Duration | None = None
    tags: dict[str, Any] | None = None

    def parameters(self) -> list[Any]:
        """Those of ``durable.schedule()``, in its order. Raises InvalidArgument."""
        known = self.workflow if isinstance(self.workflow, Workflow) else None
        for field, at in (("starts_at", self.starts_at), ("ends_at", self.ends_at)):
            if at is not None and at.tzinfo is None:
                raise InvalidArgument(
                    f"schedule {self.name!r}: {field} has no time zone",
                    hint="For example datetime(2030, 1, 1, tzinfo=timezone.utc).",
                )
        if known is not None and not known.takes_input and self.input is not None:
            raise InvalidArgument(
                f"schedule {self.name!r}: workflow {known.name!r} takes no input",
                hint="Leave it out, or add a parameter to the function.",
            )
        timeout = seconds(self.timeout) if self.timeout is not None else known.timeout if known is not None else None
        return [
            self.name,
            self.cron,
            known.name if known is not None else self.workflow,
            None if self.input is None else _codec.encode(self.input, f"the input of schedule {self.name!r}"),
            self.queue if self.queue is not None else known.queue if known is not None else "default",
            self.timezone,
            self.overlap,
            seconds(self.catchup),
            seconds(self.jitter),
            self.starts_at,
            self.ends_at,
            self.max_firings,
            self.pause_on_failure,
            self.catchup_mode,
            self.priority if self.priority is not None else known.priority if known is not None else 0,
            self.max_attempts if self.max_attempts is not None else known.max_attempts if known is not None else 1,
            timeout,
            _codec.encode(self.tags or {}, f"the tags of schedule {self.name!r}"),
        ]


@dataclass(frozen=True, slots=True)
class Firing:
    """The input of a workflow that a schedule without an input of its own has started: annotate the parameter with it.

    ``due_at`` is the time that the cron line named, in UTC; in a backfill one of the past. When it was triggered by
    hand it is the time of that call.
    """

    schedule: str
    due_at: datetime


@dataclass(frozen=True, slots=True)
class BackfillStep:
    """What ``backfill_schedule`` does about one due time: ``outcome`` is what became of it before, None for nothing;
    ``action`` is ``run``, ``run again``, or ``skip`` and why."""

    due_at: datetime
    outcome: str | None
    action: str
