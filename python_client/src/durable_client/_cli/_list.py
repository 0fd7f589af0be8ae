from __future__ import annotations

import json
import re
from datetime import datetime
from typing import Any

import click
from psycopg.rows import dict_row

from . import _values
from ._database import connect_to_schema, in_utc
from ._options import dsn_option, output_option
from ._output import WORKFLOW_JSON, Column, duration, one_line, print_table

STATUSES = ["pending", "running", "sleeping", "waiting", "completed", "failed", "cancelled"]

_ERROR_PREVIEW = 300

_NUMBER = re.compile(r"-?(0|[1-9]\d*)(\.\d+)?")

_COLUMNS = [
    Column("WORKFLOW"),
    Column("NAME", flexible=True),
    Column("STATUS"),
    Column("QUEUE", from_width=120),
    Column("ATTEMPT", from_width=110, right=True),
    Column("AGE", from_width=75, right=True),
    Column("TOOK", from_width=90, right=True),
    Column("KEY", from_width=150, flexible=True),
    Column("ERROR", from_width=100, flexible=True),
]


@click.command("list")
@click.option("--status", "statuses", type=click.Choice(STATUSES), multiple=True, help="Repeatable.")
@click.option("--name", help="Name of the workflow.")
@click.option("--queue", help="Queue it was put into.")
@click.option("--key", help="Idempotency key.")
@click.option(
    "--tag", "tags", callback=_values.tags, multiple=True, metavar="KEY=VALUE", help="Repeatable; all must match."
)
@click.option(
    "--since", callback=_values.since, metavar="TIME|DURATION", help="Created since: 1h, 7d, or 2030-12-24T18:00."
)
@click.option("--limit", type=click.IntRange(1), default=50, show_default=True, help="At most so many, the newest.")
@dsn_option
@output_option
def list_workflows(
    statuses: tuple[str, ...],
    name: str | None,
    queue: str | None,
    key: str | None,
    tags: dict[str, str],
    since: datetime | float | None,
    limit: int,
    dsn: str | None,
    output: str,
) -> None:
    """List workflows, the newest first.

    A narrow terminal shows fewer columns; a pipe gets all of them, uncut.

    JSON: an array of objects with workflow_id, name, status, queue, key, priority, tags, attempt, failures, crashes,
    suspicions, max_attempts, error_message, created_at, started_at, completed_at, wake_at, deadline, timeout_seconds,
    worker, paused_at, pause_reason, warning, forked_from, forked_at_step, continued_from, continued_as.

    \b
    Examples:
      durable list --status failed --since 1d
      durable list --name fulfil --tag run=42 --limit 500 -o json
    """
    conditions: list[tuple[str, list[Any]]] = [
        (f"w.{column} = %s", [value])
        for column, value in (("name", name), ("queue", queue), ("key", key))
        if value is not None
    ]
    conditions += [_has_tag(tag, value) for tag, value in tags.items()]
    if statuses:
        conditions.append(("w.status = any(%s)", [list(statuses)]))
    if since is not None:
        start = "durable._now_in_view() - make_interval(secs => %s)" if isinstance(since, float) else "%s::timestamptz"
        # An id begins with the milliseconds of its creation, and there is an index on it.
        first = f"rpad(lpad(to_hex(floor(extract(epoch from {start}) * 1000)::bigint), 12, '0'), 32, '0')::uuid"
        conditions.append((f"w.workflow_id >= {first} and w.created_at >= {start}", [since, since]))

    where = " and ".join(condition for condition, _ in conditions) or "true"
    source = f"from durable.workflows w where {where} order by w.workflow_id desc limit %s"
    values = [value for _, given in conditions for value in given] + [limit]
    with connect_to_schema(dsn) as conn, in_utc(conn):
        if output == "json":
            documents = conn.execute(f"select json_build_object({WORKFLOW_JSON})::text {source}".encode(), values)
            click.echo("[" + ",\n ".join(document for (document,) in documents) + "]")
            return
        rows = (
            conn.cursor(row_factory=dict_row)
            .execute(
                "select w.workflow_id::text, w.name,"
                " w.status || case when w.paused_at is not null then ', paused' else '' end as status,"
                " w.queue, w.attempt, durable._now_in_view() - w.created_at as age,"
                " coalesce(w.completed_at, durable._now_in_view()) - w.started_at as took, coalesce(w.key, '') as key,"
                f" coalesce(left(w.error_message, {_ERROR_PREVIEW}), '') as error {source}".encode(),
                values,
            )
            .fetchall()
        )
    if not rows:
        click.echo("No workflows match.")
        return
    print_table(
        _COLUMNS,
        [
            [
                *(row["workflow_id"], row["name"], row["status"], row["queue"], str(row["attempt"])),
                *(duration(row["age"]), duration(row["took"]), row["key"], one_line(row["error"])),
            ]
            for row in rows
        ],
    )
    if len(rows) == limit:
        click.echo(f"These are the newest {limit}; --limit shows more.", err=True)


def _has_tag(tag: str, value: str) -> tuple[str, list[Any]]:
    """As containment, which has an index. What looks like a number or a truth value may be stored as one, too."""
    wanted = [json.dumps({tag: value})]
    if value in ("true", "false") or _NUMBER.fullmatch(value):
        wanted.append(f"{{{json.dumps(tag)}: {value}}}")
    return "(" + " or ".join(["w.tags @> %s::jsonb"] * len(wanted)) + ")", wanted
