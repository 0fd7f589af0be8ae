from __future__ import annotations

from datetime import datetime
from typing import Any

import click
from psycopg.rows import dict_row

from .._errors import WorkflowNotFound
from . import _values
from ._database import Connection, connect_to_schema, in_utc
from ._options import dsn_option, output_option
from ._output import PREVIEW, WORKFLOW_JSON, Column, duration, moment, one_line, preview, print_fields, print_table

_STEP_JSON = """
  'step_name', s.step_name, 'status', s.status, 'attempt', s.attempt, 'output', s.output, 'error', s.error,
  'error_message', s.error_message, 'started_at', s.started_at, 'completed_at', s.completed_at,
  'retry_at', s.retry_at, 'at_most_once', s.at_most_once,
  'waits_for', s.waits_for, 'wait_until', s.wait_until"""
_STEP_ORDER = "coalesce(s.completed_at, 'infinity'), s.started_at, s.step_name"

_AS_JSON = f"""
  select json_build_object({WORKFLOW_JSON}, 'input', w.input, 'output', w.output, 'error', w.error,
    'state', coalesce((select json_object_agg(p.key, p.value order by p.key)
                       from durable.workflow_state p where p.workflow_id = w.workflow_id), '{{}}'),
    'steps', coalesce((select json_agg(json_build_object({_STEP_JSON}) order by {_STEP_ORDER})
                       from durable.workflow_steps s where s.workflow_id = w.workflow_id), '[]'))::text
  from durable.workflows w where w.workflow_id = %s""".encode()
_WORKFLOW = f"""
  select w.name, w.status::text, w.queue, coalesce(w.key, '') as key, w.priority, w.attempt, w.failures, w.max_attempts,
    w.crashes, w.suspicions, w.created_at, w.started_at, w.completed_at, w.wake_at, w.deadline,
    coalesce(w.worker, '') as worker,
    case when w.tags <> '{{}}' then left(w.tags::text, {PREVIEW + 1}) end as tags,
    left(w.input::text, {PREVIEW + 1}) as input, left(w.output::text, {PREVIEW + 1}) as output,
    left(case when jsonb_typeof(w.error) = 'object'
      then concat(coalesce(w.error ->> 'type', 'Error'), ': ', w.error ->> 'message') else w.error::text end,
      {PREVIEW + 1}) as error,
    right(w.error ->> 'traceback', {10 * PREVIEW}) as traceback,
    durable._now_in_view() as now,
    w.paused_at, left(w.pause_reason, {PREVIEW + 1}) as pause_reason, left(w.warning, {PREVIEW + 1}) as warning,
    w.forked_from, w.forked_at_step, w.continued_from, w.continued_as
  from durable.workflows w where w.workflow_id = %s""".encode()
_STEPS = f"""
  select s.step_name, s.status::text, s.attempt, s.started_at, s.completed_at - s.started_at as took, s.retry_at,
    left(coalesce(s.error_message, s.output::text, case when s.waits_for is not null then concat_ws(
      ' ', 'waits', nullif('for ' || s.waits_for::text, 'for []'), 'until ' || date_trunc('second', s.wait_until))
    end, ''), {PREVIEW}) as outcome
  from durable.workflow_steps s where s.workflow_id = %s order by {_STEP_ORDER}""".encode()

_STATE = f"""
  select p.key, p.published_at, left(coalesce(p.value::text, 'null'), {PREVIEW}) as value
  from durable.workflow_state p where p.workflow_id = %s order by p.key""".encode()

# The longest end of a traceback that a terminal is shown; -o json has all of it.
_TRACE_LINES = 12

_STEP_COLUMNS = [
    Column("STEP", flexible=True),
    Column("STATUS"),
    Column("ATTEMPT", from_width=80, right=True),
    Column("STARTED", from_width=100),
    Column("TOOK", right=True),
    Column("OUTCOME", flexible=True),
]


_STATE_COLUMNS = [Column("PUBLISHED"), Column("AT", from_width=80), Column("VALUE", flexible=True)]


@click.command()
@click.argument("workflow_id", callback=_values.workflow_id, metavar="ID")
@dsn_option
@output_option
def show(workflow_id: str, dsn: str | None, output: str) -> None:
    """Show one workflow with its steps.

    JSON: an object with the fields of `durable list`, and input, output, error, state, an object of what it has
    published, and steps, an array of objects with step_name, status, attempt, output, error, error_message,
    started_at, completed_at, retry_at, at_most_once, waits_for and wait_until.

    \b
    Examples:
      durable show 0198c5f0-7a31-7c52-9d3e-1f0b5a6c7d8e
      durable show 0198c5f0-7a31-7c52-9d3e-1f0b5a6c7d8e -o json | jq .steps
    """
    with connect_to_schema(dsn) as conn, in_utc(conn):
        if output == "json":
            document = conn.execute(_AS_JSON, [workflow_id]).fetchone()
            if document is None:
                raise _not_found(workflow_id)
            click.echo(document[0])
        else:
            _print_workflow(conn, workflow_id)


def _suspicion(suspicions: int, crashes: int) -> str:
    """What its workers died of, as far as that is known: only of what came since its last checkpoint."""
    if crashes:
        return f"{crashes} since its last checkpoint, and it was to blame"
    if suspicions:
        return f"{suspicions} since its last checkpoint; " + (
            "it is a suspect" if suspicions > 1 else "it may be to blame"
        )
    return ""


def _not_found(workflow_id: str) -> WorkflowNotFound:
    return WorkflowNotFound(
        f"workflow {workflow_id} not found",
        hint="Check the id and the database. `durable list` shows what there is.",
    )


def _print_workflow(conn: Connection, workflow_id: str) -> None:
    cursor = conn.cursor(row_factory=dict_row)
    row = cursor.execute(_WORKFLOW, [workflow_id]).fetchone()
    if row is None:
        raise _not_found(workflow_id)
    now: datetime = row["now"]
    ended = row["completed_at"]
    fields = [
        ("Workflow", workflow_id),
        ("Name", row["name"]),
        ("Status", row["status"]),
        ("Paused", moment(row["paused_at"], now)),
        ("Because", preview(row["pause_reason"])),
        ("Warning", preview(row["warning"])),
        ("Queue", row["queue"]),
        ("Priority", str(row["priority"] or "")),
        ("Key", row["key"]),
        ("Tags", preview(row["tags"])),
        ("Attempt", f"{row['attempt']} ({row['failures']} of {row['max_attempts']} failed)"),
        ("Lost workers", _suspicion(row["suspicions"] or 0, row["crashes"])),
        ("Worker", row["worker"]),
        ("Created", moment(row["created_at"], now)),
        ("Started", moment(row["started_at"], now)),
        ("Due", moment(row["wake_at"], now)),
        ("Deadline", "" if ended else moment(row["deadline"], now)),
        ("Ended", moment(ended, now)),
        ("Took", duration(ended - row["started_at"]) if ended and row["started_at"] else ""),
        ("Forked from", _lineage(row["forked_from"], row["forked_at_step"])),
        ("Goes on from", _lineage(row["continued_from"])),
        ("Goes on as", _lineage(row["continued_as"])),
        ("Input", preview(row["input"])),
        ("Output", preview(row["output"])),
        ("Error", _describe(row["error"], row["traceback"])),
    ]
    print_fields((label, value) for label, value in fields if value)
    click.echo()
    steps = cursor.execute(_STEPS, [workflow_id]).fetchall()
    if steps:
        print_table(_STEP_COLUMNS, [_step_row(step, now) for step in steps])
    else:
        click.echo("It has no steps." if ended else "No step is stored yet.")
    published = cursor.execute(_STATE, [workflow_id]).fetchall()
    if published:
        click.echo()
        print_table(
            _STATE_COLUMNS,
            [[each["key"], moment(each["published_at"], now), one_line(each["value"])] for each in published],
        )


def _lineage(workflow_id: Any, step: str | None = None) -> str:
    return "" if workflow_id is None else f"{workflow_id}{'' if step is None else f', at {step}'}"


def _step_row(step: dict[str, Any], now: datetime) -> list[str]:
    started = "" if step["started_at"] is None else step["started_at"].astimezone().strftime("%H:%M:%S.%f")[:-3]
    outcome = one_line(step["outcome"])
    if step["retry_at"] is not None:
        outcome = f"{outcome} (again {moment(step['retry_at'], now)})"
    return [step["step_name"], step["status"], str(step["attempt"]), started, duration(step["took"]), outcome]


def _describe(error: str | None, traceback: str | None) -> str:
    if error is None:
        return ""
    # The end of a traceback is what it is about.
    lines = (traceback or "").strip().splitlines()
    # Without the lines that only underline.
    trace = [line for line in lines if line.strip(" ^~")]
    return "\n".join([preview(error), *trace[-_TRACE_LINES:]])
