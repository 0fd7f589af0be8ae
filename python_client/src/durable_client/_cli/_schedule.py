from __future__ import annotations

import os
from datetime import datetime
from typing import Any

import click

from .._client import calls
from .._errors import DurableError, translated
from . import _values
from ._app import load_app
from ._database import Connection, connect_to_schema, in_utc
from ._options import dsn_option, output_option
from ._output import PREVIEW, Column, moment, one_line, preview, print_fields, print_json, print_table, say

_SCHEDULE_JSON = """
  'name', s.name, 'cron', s.cron, 'timezone', s.timezone, 'workflow', s.workflow, 'queue', s.queue, 'input', s.input,
  'overlap', s.overlap, 'catchup_seconds', extract(epoch from s.catchup), 'catchup_mode', s.catchup_mode,
  'jitter_seconds', extract(epoch from s.jitter), 'starts_at', s.starts_at, 'ends_at', s.ends_at,
  'max_firings', s.max_firings, 'pause_on_failure', s.pause_on_failure, 'next_at', s.next_at, 'firings', s.firings,
  'waiting', s.waiting, 'paused_at', s.paused_at, 'pause_reason', s.pause_reason, 'error', s.error"""
_FIRING_JSON = """
  'due_at', f.due_at, 'outcome', f.outcome, 'reason', f.reason, 'handled_at', f.handled_at,
  'missed_until', f.missed_until, 'workflow_id', f.workflow_id, 'earlier_ids', f.earlier_ids"""

_LIST_COLUMNS = [
    Column("SCHEDULE", flexible=True),
    Column("CRON", flexible=True),
    Column("TIME ZONE", from_width=110),
    Column("WORKFLOW", from_width=90, flexible=True),
    Column("STATE"),
    Column("NEXT", flexible=True),
]
_FIRING_COLUMNS = [
    Column("DUE"),
    Column("OUTCOME"),
    Column("WORKFLOW", from_width=80),
    Column("REASON", flexible=True),
]
_BACKFILL_COLUMNS = [Column("DUE"), Column("BEFORE"), Column("ACTION", flexible=True)]


@click.group()
def schedule() -> None:
    """List and steer schedules, which enqueue workflows when a cron line falls due.

    \b
    Examples:
      durable schedule apply shop:app
      durable schedule show nightly-report
    """


@schedule.command("list")
@dsn_option
@output_option
def list_schedules(dsn: str | None, output: str) -> None:
    """List all schedules.

    JSON: an array of objects with name, cron, timezone, workflow, queue, input, overlap, catchup_seconds,
    catchup_mode, jitter_seconds, starts_at, ends_at, max_firings, pause_on_failure, next_at, firings, waiting,
    paused_at, pause_reason, error.

    \b
    Example:
      durable schedule list
    """
    with connect_to_schema(dsn) as conn, in_utc(conn):
        if output == "json":
            query = f"select json_build_object({_SCHEDULE_JSON})::text from durable.schedules s order by s.name"
            click.echo("[" + ",\n ".join(document for (document,) in conn.execute(query.encode())) + "]")
            return
        rows = conn.execute(
            "select s.name, s.cron, s.timezone, s.workflow,"
            " case when s.error is not null then 'broken' when s.paused_at is not null then 'paused'"
            "   when s.next_at is null then 'ended' else 'active' end, s.next_at, durable._now_in_view()"
            " from durable.schedules s order by s.name"
        ).fetchall()
    if not rows:
        click.echo("There are no schedules.")
        return
    print_table(_LIST_COLUMNS, [[*row[:5], moment(row[5], row[6])] for row in rows])


@schedule.command()
@click.argument("name")
@click.option("--limit", type=click.IntRange(1, 10000), default=10, show_default=True, help="Past and next due times.")
@dsn_option
@output_option
def show(name: str, limit: int, dsn: str | None, output: str) -> None:
    """Show one schedule: what it does, its next due times, and what became of the past ones, the latest first.

    JSON: an object with the fields of `durable schedule list`, and next, an array of times, and firings_listed, an
    array of objects with due_at, outcome, reason, handled_at, missed_until, workflow_id, earlier_ids.

    \b
    Example:
      durable schedule show nightly-report --limit 30
    """
    with connect_to_schema(dsn) as conn, in_utc(conn), translated():
        following = [row[0] for row in conn.execute(calls.NEXT_FIRINGS, [name, limit])]
        if output == "json":
            document = conn.execute(
                f"select json_build_object({_SCHEDULE_JSON}, 'next', %s::timestamptz[], 'firings_listed', array("
                f"  select json_build_object({_FIRING_JSON}) from durable.schedule_firings f where f.schedule = s.name"
                "   order by f.due_at desc limit %s))::text from durable.schedules s where s.name = %s".encode(),
                [following, limit, name],
            ).fetchone()
            assert document is not None
            click.echo(document[0])
            return
        _print_schedule(conn, name, following, limit)


def _print_schedule(conn: Connection, name: str, following: list[datetime], limit: int) -> None:
    row = conn.execute(
        "select s.cron, s.timezone, s.workflow, s.queue, s.overlap, s.catchup::text, s.catchup_mode, s.jitter::text,"
        " s.firings, s.max_firings, s.waiting, s.paused_at, coalesce(s.pause_reason, ''), s.error,"
        f" left(s.input::text, {PREVIEW + 1}), durable._now_in_view()"
        " from durable.schedules s where s.name = %s".encode(),
        [name],
    ).fetchone()
    assert row is not None
    cron, zone, workflow, queue, overlap, catchup, mode, jitter, firings, most, waiting = row[:11]
    paused_at, reason, error, given, now = row[11:]
    fields = [
        ("schedule", name), ("cron", f"{cron}  ({zone})"), ("workflow", f"{workflow}  (queue {queue})"),
        ("overlap", overlap), ("catchup", f"{catchup}  ({mode})"), ("jitter", jitter), ("input", preview(given)),
        ("fired", f"{firings} of {most}" if most is not None else str(firings)), ("waiting", str(waiting)),
        ("paused", " ".join(filter(None, [moment(paused_at, now), reason]))), ("error", error or ""),
        ("next", "\n".join(moment(due, now) for due in following)),
    ]  # fmt: skip
    print_fields((label, text) for label, text in fields if text)
    past = conn.execute(
        "select f.due_at, f.outcome::text, coalesce(f.workflow_id::text, ''), coalesce(f.reason, ''), f.missed_until"
        " from durable.schedule_firings f where f.schedule = %s order by f.due_at desc limit %s",
        [name, limit],
    ).fetchall()
    if past:
        click.echo()
        print_table(
            _FIRING_COLUMNS,
            [
                [
                    _time(due),
                    outcome,
                    workflow_id,
                    one_line(reason if until is None else f"{reason} (and all until {_time(until)})"),
                ]
                for due, outcome, workflow_id, reason, until in past
            ],
        )


def _time(at: datetime) -> str:
    return at.astimezone().isoformat(sep=" ", timespec="seconds")


@schedule.command()
@click.argument("app", callback=_values.app_name)
@dsn_option
@output_option
def apply(app: str, dsn: str | None, output: str) -> None:
    """Make the schedules that APP, which is module:attribute, declares; or change them to what it says now.

    To do it again changes nothing, so it can be part of each deploy. All of them are made, or none.

    JSON: an object with the name of each schedule and when it is due next.

    \b
    Example:
      durable schedule apply shop:app
    """
    if dsn:
        os.environ["DURABLE_DSN"] = dsn
    application = load_app(app)
    try:
        applied = application.apply_schedules()
    finally:
        application.close()
    if output == "json":
        print_json({name: None if due is None else due.isoformat() for name, due in applied.items()})
        return
    for name, due in applied.items():
        click.echo(f"{name}: {'never due again' if due is None else f'due next at {_time(due)}'}")
    if not applied:
        click.echo(f"{app} declares no schedules.")


@schedule.command()
@click.argument("name")
@click.option("--reason", help="Stored with the schedule.")
@dsn_option
@output_option
def pause(name: str, reason: str | None, dsn: str | None, output: str) -> None:
    """Let a schedule start nothing until it is resumed.

    JSON: schedule, paused.

    \b
    Example:
      durable schedule pause nightly-report --reason "the warehouse is being moved"
    """
    _call(dsn, calls.PAUSE_SCHEDULE, [name, reason])
    say(output, f"Paused {name}", {"schedule": name, "paused": True})


@schedule.command()
@click.argument("name")
@dsn_option
@output_option
def resume(name: str, dsn: str | None, output: str) -> None:
    """End the pause of a schedule. What fell due during it is not made up for: see backfill.

    JSON: schedule, next_at.

    \b
    Example:
      durable schedule resume nightly-report
    """
    due = _call(dsn, calls.RESUME_SCHEDULE, [name])
    said = "it is not due again" if due is None else f"due next at {_time(due)}"
    say(output, f"Resumed {name}: {said}", {"schedule": name, "next_at": None if due is None else due.isoformat()})


@schedule.command()
@click.argument("name")
@dsn_option
@output_option
def trigger(name: str, dsn: str | None, output: str) -> None:
    """Start the workflow of a schedule now.

    JSON: schedule, workflow_id.

    \b
    Example:
      durable schedule trigger nightly-report
    """
    workflow_id = _call(dsn, calls.TRIGGER_SCHEDULE, [name])
    say(output, f"Enqueued {workflow_id}", {"schedule": name, "workflow_id": workflow_id})


@schedule.command()
@click.argument("name")
@dsn_option
@output_option
def remove(name: str, dsn: str | None, output: str) -> None:
    """Remove a schedule. Workflows that it started go on, and its past stays listed.

    JSON: schedule, removed.

    \b
    Example:
      durable schedule remove nightly-report
    """
    if not _call(dsn, calls.UNSCHEDULE, [name]):
        raise DurableError(f"there is no schedule {name!r}", hint="`durable schedule list` shows what there is.")
    say(output, f"Removed {name}", {"schedule": name, "removed": True})


@schedule.command()
@click.argument("name")
@click.option("--from", "from_at", callback=_values.moment, required=True, metavar="TIME", help="First due time.")
@click.option("--until", "until_at", callback=_values.moment, required=True, metavar="TIME", help="Last due time.")
@click.option("--run", is_flag=True, help="Do it; without this it is only said what would be done.")
@click.option("--max-parallel", type=click.IntRange(1), default=1, show_default=True, help="Workflows at a time.")
@click.option("--redo", is_flag=True, help="Run again what ran already.")
@dsn_option
@output_option
def backfill(
    name: str,
    from_at: datetime,
    until_at: datetime,
    run: bool,
    max_parallel: int,
    redo: bool,
    dsn: str | None,
    output: str,
) -> None:
    """Run a schedule for due times of the past, the oldest first.

    JSON: an array of objects with due_at, outcome, action.

    \b
    Examples:
      durable schedule backfill nightly-report --from 2030-12-01 --until 2030-12-24
      durable schedule backfill nightly-report --from 2030-12-01 --until 2030-12-24 --run --max-parallel 4
    """
    with connect_to_schema(dsn) as conn, translated():
        parameters = [name, from_at, until_at, not run, max_parallel, redo]
        if output == "json":
            query = f"select to_json(b)::text from ({calls.BACKFILL_SCHEDULE}) b"
            click.echo("[" + ",\n ".join(document for (document,) in conn.execute(query.encode(), parameters)) + "]")
            return
        plan = conn.execute(calls.BACKFILL_SCHEDULE, parameters).fetchall()
    if not plan:
        click.echo("Nothing was due in that range.")
        return
    print_table(_BACKFILL_COLUMNS, [[_time(due), before or "", action] for due, before, action in plan])
    if not run:
        click.echo("Nothing was changed; --run does it.", err=True)


def _call(dsn: str | None, query: str, parameters: list[Any]) -> Any:
    with connect_to_schema(dsn) as conn, translated():
        row = conn.execute(query.encode(), parameters).fetchone()
    assert row is not None
    return row[0]
