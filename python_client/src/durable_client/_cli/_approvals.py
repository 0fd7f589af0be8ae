from __future__ import annotations

from typing import Any

import click
from psycopg.rows import dict_row

from .._approvals import listed
from .._client import calls
from .._errors import translated
from . import _values
from ._database import connect_to_schema, in_utc
from ._enqueue import read_json
from ._options import dsn_option, output_option
from ._output import Column, duration, one_line, print_table, say

_STATES = ["pending", "decided", "expired", "withdrawn"]
_DECISIONS = {"approve": "approved", "reject": "rejected"}

_JSON = """
  'approval_id', approval_id, 'workflow_id', workflow_id, 'workflow', workflow, 'step_name', step_name,
  'subject', subject, 'assignee', assignee, 'form', form, 'requested_at', requested_at, 'expires_at', expires_at,
  'state', state, 'decision', decision, 'data', data, 'decided_by', decided_by, 'comment', comment,
  'decided_at', decided_at"""
_ROW = """
  approval_id::text, subject, coalesce(assignee, '') as assignee, state::text,
  durable._now_in_view() - requested_at as age,
  case when state = 'pending' then expires_at - durable._now_in_view() end as expires_in,
  workflow, coalesce(decision, '') as decision,
  coalesce(decided_by, '') as decided_by, coalesce(comment, '') as comment"""

_COLUMNS = [
    Column("APPROVAL"),
    Column("SUBJECT", flexible=True),
    Column("ASSIGNEE", from_width=80),
    Column("STATE"),
    Column("AGE", from_width=100, right=True),
    Column("EXPIRES IN", from_width=110, right=True),
    Column("WORKFLOW", from_width=130, flexible=True),
    Column("DECISION", from_width=120),
    Column("BY", from_width=120),
    Column("COMMENT", from_width=150, flexible=True),
]


@click.command()
@click.option("--assignee", help="Only what this person or team is asked.")
@click.option("--state", type=click.Choice([*_STATES, "all"]), default="pending", show_default=True)
@click.option("--limit", type=click.IntRange(1), default=50, show_default=True, help="At most so many, the newest.")
@dsn_option
@output_option
def approvals(assignee: str | None, state: str, limit: int, dsn: str | None, output: str) -> None:
    """List what workflows ask people, the newest first.

    JSON: an array of objects with approval_id, workflow_id, workflow, step_name, subject, assignee, form, requested_at,
    expires_at, state, decision, data, decided_by, comment, decided_at.

    \b
    Examples:
      durable approvals --assignee finance
      durable approvals --state decided -o json | jq '.[] | [.subject, .decision, .decided_by]'
    """
    where, values = listed(assignee, None if state == "all" else state)
    source = f"from durable.approvals where {where} order by approval_id desc limit %s"
    values = [*values, limit]
    with connect_to_schema(dsn) as conn, in_utc(conn), translated():
        if output == "json":
            documents = conn.execute(f"select json_build_object({_JSON})::text {source}".encode(), values)
            click.echo("[" + ",\n ".join(document for (document,) in documents) + "]")
            return
        rows = conn.cursor(row_factory=dict_row).execute(f"select {_ROW} {source}".encode(), values).fetchall()
    if not rows:
        click.echo("No approvals match.")
        return
    print_table(_COLUMNS, [_cells(row) for row in rows])
    if len(rows) == limit:
        click.echo(f"These are the newest {limit}; --limit shows more.", err=True)


def _cells(row: dict[str, Any]) -> list[str]:
    return [
        *(row["approval_id"], one_line(row["subject"]), row["assignee"], row["state"], duration(row["age"])),
        *(duration(row["expires_in"]), row["workflow"], row["decision"], row["decided_by"], one_line(row["comment"])),
    ]


@click.command()
@click.argument("approval_id", callback=_values.approval_id, metavar="ID")
@click.argument("decision", type=click.Choice(list(_DECISIONS)), metavar="approve|reject")
@click.option("--by", help="Who decides.  [default: the role in the database]")
@click.option("--comment", help="Stored with the decision, and handed to the workflow.")
@click.option("--data", metavar="JSON", help="What the decision comes with, or - to read it from standard input.")
@dsn_option
@output_option
def decide(
    approval_id: str, decision: str, by: str | None, comment: str | None, data: str | None, dsn: str | None, output: str
) -> None:
    """Approve or reject what a workflow asks. `durable approvals` lists it.

    The first decision stands: the same one again changes nothing, and another one fails.

    JSON: approval_id, decision, decided (false when it was decided so before).

    \b
    Examples:
      durable decide 0198c5f0-7a31-7c52-9d3e-1f0b5a6c7d8e approve --by ada
      durable decide 0198c5f0-7a31-7c52-9d3e-1f0b5a6c7d8e reject --by ada --comment "no receipt"
    """
    decided = _DECISIONS[decision]
    document = read_json(data, "'--data'")
    with connect_to_schema(dsn) as conn, translated():
        is_first = conn.execute(calls.DECIDE, [approval_id, decided, by, comment, document]).fetchone() == (True,)
    text = (
        f"{decided.capitalize()} {approval_id}"
        if is_first
        else f"{approval_id} was {decided} before; nothing was changed."
    )
    say(output, text, {"approval_id": approval_id, "decision": decided, "decided": is_first})
