"""Calls of the schema as text and parameters, apart from any connection.

Arrays are written as literals here: a list of hundreds of values is quicker to join than to adapt one by one.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NamedTuple

from .. import _codec
from .._errors import InvalidArgument

CLAIM = (
    "select workflow_id::text, lease, name, queue, input::text, attempt, steps::text, created_at, claimed_at, deadline"
    " from durable.claim(%s, %s::text[], %s, %s::text[], synchronous_commit => false)"
)
RECLAIM = (
    "select workflow_id::text, lease, name, queue, input::text, attempt, steps::text, created_at, claimed_at, deadline"
    " from durable.reclaim(%s, %s::uuid[])"
)
IDLE = "select durable.idle(%s, %s::text[], %s::text[])"
ATTACH = "select durable.attach(%s, %s::text[])"
LEAVE = "select durable.leave(%s)"
TICK = "select durable.tick(worker => %s)"
HEARTBEAT = (
    "select workflow_id::text, reason, lease"
    " from durable.heartbeat(%s, %s::uuid[], %s::bigint[], %s::jsonb, pg_catalog.to_timestamp(%s))"
)
RELEASE = "select durable.release_many(%s::uuid[], %s::bigint[])"
FLUSH = (
    "select kind, item, outcome, output::text, error::text from durable.flush("
    "%s::uuid[], %s::bigint[], %s::text[], %s::jsonb[], %s::int[], %s::bigint[], %s::uuid[], %s::bigint[], %s::jsonb[])"
)
# In sessions of users, whose search_path may lead anywhere.
CHECKPOINT_ONE = (
    "select outcome, output::pg_catalog.text, error::pg_catalog.text from durable.checkpoint_many("
    "array[%s::pg_catalog.uuid], array[%s::pg_catalog.int8], array[%s::pg_catalog.text], array[%s::pg_catalog.jsonb],"
    " null, array[%s::pg_catalog.int4], array[%s::pg_catalog.int8])"
)
BEGIN_STEP = "select durable.begin_step(%s, %s, %s)"
START_STEP = "select durable.start_step(%s, %s, %s)"
FAIL_STEP = (
    "select extract(epoch from durable.fail_step(%s, %s, %s, %s::jsonb, %s, %s,"
    " pg_catalog.make_interval(secs => %s), %s, pg_catalog.make_interval(secs => %s)))::float8"
)
STEP_RESULT = (
    "select status::pg_catalog.text, output::pg_catalog.text, error::pg_catalog.text from durable.step_result(%s, %s)"
)
FAIL = "select item, outcome from durable.fail_many(%s::uuid[], %s::bigint[], %s::jsonb[], null, %s::boolean[])"
WAIT = (
    "select item, outcome, output::text, error::text from durable.wait_many("
    "%s::uuid[], %s::bigint[], %s::text[], %s::jsonb[], %s::interval[],"
    " (select pg_catalog.array_agg(pg_catalog.to_timestamp(u) order by n)"
    "  from pg_catalog.unnest(%s::float8[]) with ordinality as t(u, n)),"
    " %s::text[], %s::boolean[])"
)
START_CHILDREN = (
    "select durable.start_children(%s, %s, %s, %s, %s::jsonb[], %s, %s, %s, %s,"
    " pg_catalog.make_interval(secs => %s), %s::jsonb)::text"
)
CHILD_RESULTS = "select output::text from durable.child_results(%s)"
REQUEST_APPROVAL = (
    "select durable.request_approval(%s, %s, %s, %s, %s, %s::jsonb, pg_catalog.make_interval(secs => %s))::text"
)
APPROVALS = (
    "select approval_id::text, workflow_id::text, workflow, step_name, subject, assignee, form::text,"
    " requested_at, expires_at, state::text, decision, data::text, decided_by, comment, decided_at"
    " from durable.approvals where {where} order by approval_id desc limit %s"
)
DECIDE = "select durable.decide(%s, %s, %s, %s, %s::jsonb)"
RECHECK = "select durable.recheck_waits(%s::uuid[])"
SEND = "select durable.send(%s, %s, %s::jsonb, %s)"
EMIT = "select durable.emit(%s, %s::jsonb)"
ENQUEUE = (
    "select durable.enqueue(%s, %s::jsonb, %s, %s, %s, %s, %s, pg_catalog.make_interval(secs => %s), %s::jsonb)::text"
)
ENQUEUE_MANY = (
    "select durable.enqueue_many(%s, %s::jsonb[], %s, %s::text[], %s, %s, %s,"
    " pg_catalog.make_interval(secs => %s), %s::jsonb)::text"
)
CANCEL = "select durable.cancel(%s, %s)"
RETRY = "select durable.retry(%s)"
PAUSE = "select durable.pause(%s, %s)"
RESUME = "select durable.resume(%s)"
FORK = "select durable.fork(%s, %s, %s::jsonb, %s::jsonb)::text"
STATE = "select durable.state(%s)::text"
PUBLISH = "select durable.publish(%s, %s, %s, %s::jsonb)"
SUSPEND = "select durable.suspend(%s, %s, %s)"
WARN = "select durable.warn(%s, %s, %s)"
CONTINUE_AS_NEW = "select durable.continue_as_new(%s, %s, %s::jsonb)::text"
STATUS = "select durable.status(%s)::text"
RESULT = "select status::text, output::text, error::text from durable.result(%s)"
HISTORY = (
    "select step_name, status::text, attempt, output::text, error::text, started_at, completed_at, retry_at"
    " from durable.history(%s)"
)
SCHEDULE = (
    "select durable.schedule(%s, %s, %s, %s::jsonb, %s, %s, %s, pg_catalog.make_interval(secs => %s),"
    " pg_catalog.make_interval(secs => %s), %s, %s, %s, %s, %s, %s, %s,"
    " pg_catalog.make_interval(secs => %s), %s::jsonb)"
)
UNSCHEDULE = "select durable.unschedule(%s)"
PAUSE_SCHEDULE = "select durable.pause_schedule(%s, %s)"
RESUME_SCHEDULE = "select durable.resume_schedule(%s)"
TRIGGER_SCHEDULE = "select durable.trigger_schedule(%s)::text"
NEXT_FIRINGS = "select durable.next_firings(%s, %s)"
BACKFILL_SCHEDULE = (
    "select due_at, outcome::text, action from durable.backfill_schedule(%s, %s, %s, dry_run => %s, max_parallel => %s,"
    " redo => %s)"
)
VERSION = "select durable.version(), durable.build()"
# The backend that answers, and whether its server recovers or is a standby.
BACKEND = "select pg_catalog.pg_backend_pid(), pg_catalog.pg_is_in_recovery()"
IN_RECOVERY = "select pg_catalog.pg_is_in_recovery()"
# A setting that this version of Postgres does not have is left out.
SET = (
    "select pg_catalog.set_config(name, value, false)"
    " from rows from (pg_catalog.unnest(%s::pg_catalog.text[]), pg_catalog.unnest(%s::pg_catalog.text[]))"
    " as t(name, value)"
    " where pg_catalog.current_setting(name, true) is not null"
)
LEASE_SECONDS = "select extract(epoch from value::interval)::float8 from durable.settings where name = 'lease'"


def heartbeat(worker: str, workflow_ids: Iterable[str], leases: Iterable[int], steps: object = None) -> list[Any]:
    """The parameters of ``HEARTBEAT``; the only place that reads the clock of the machine, for durable.health()."""
    shown = json.dumps(steps) if steps else None
    return [worker, plain_array(workflow_ids), plain_array(leases), shown, time.time()]


def text_array(items: Iterable[str | None]) -> str:
    """An array literal of any text: names, keys, JSON."""
    quoted = ("NULL" if item is None else '"' + item.replace("\\", "\\\\").replace('"', '\\"') + '"' for item in items)
    return "{" + ",".join(quoted) + "}"


def plain_array(items: Iterable[object]) -> str:
    """An array literal of values that need no quotes: numbers, UUIDs."""
    return "{" + ",".join(map(str, items)) + "}"


class Claimed(NamedTuple):
    """A row of ``durable.claim()``. ``input`` and ``steps`` are JSON text or None."""

    workflow_id: str
    lease: int
    name: str
    queue: str
    input: str | None
    attempt: int
    steps: str | None
    created_at: datetime
    claimed_at: datetime
    deadline: datetime | None


@dataclass(frozen=True, slots=True)
class StoredStep:
    """What is stored of a step when a workflow is replayed; an ``omitted`` output or error must be fetched."""

    status: str
    attempt: int
    output: Any = None
    error: dict[str, Any] | None = None
    omitted: bool = False
    at_most_once: bool = False
    retry_in: float = 0.0


def stored_steps(text: str | None) -> dict[str, StoredStep]:
    """The ``steps`` of a claim by name. An output that Python cannot take in does not hide the other steps."""
    if text is None:
        return {}
    try:
        steps = _codec.parse(text, "")
    except InvalidArgument:
        steps = [_codec.parse_fields(step, lambda field: f"the stored {field}") for step in _codec.parts(text)]
    return {step["step_name"]: _stored_step(step) for step in steps}


def _stored_step(step: dict[str, Any]) -> StoredStep:
    omitted = step.get("omitted", False)
    # Also an error that is null is one.
    error = _codec.as_error(step.get("error")) if step["status"] == "error" and not omitted else None
    return StoredStep(
        step["status"], step["attempt"], step.get("output"), error, omitted, step.get("at_most_once", False),
        (step.get("retry_in_ms") or 0) / 1000,
    )  # fmt: skip
