from __future__ import annotations

import json

import click

from .._client import calls
from .._errors import DurableError, translated
from . import _values
from ._database import Connection, connect_to_schema
from ._enqueue import read_json
from ._options import dsn_option, output_option
from ._output import say

_ENDED = ("completed", "failed", "cancelled")
_REPLACE = "'--replace'"


@click.command()
@click.argument("workflow_id", callback=_values.workflow_id, metavar="ID")
@click.option("--reason", help="Stored with the workflow.")
@dsn_option
@output_option
def cancel(workflow_id: str, reason: str | None, dsn: str | None, output: str) -> None:
    """Cancel a workflow, whatever it is doing. Fails when it has already ended.

    JSON: workflow_id, status.

    \b
    Example:
      durable cancel 0198c5f0-7a31-7c52-9d3e-1f0b5a6c7d8e --reason "ordered twice"
    """
    with connect_to_schema(dsn) as conn, translated():
        if conn.execute(calls.CANCEL, [workflow_id, reason]).fetchone() != (True,):
            raise DurableError(
                f"workflow {workflow_id} was not cancelled",
                detail=f"It has already ended: it is {_status(conn, workflow_id)}.",
            )
    say(output, f"Cancelled {workflow_id}", {"workflow_id": workflow_id, "status": "cancelled"})


@click.command()
@click.argument("workflow_id", callback=_values.workflow_id, metavar="ID")
@dsn_option
@output_option
def retry(workflow_id: str, dsn: str | None, output: str) -> None:
    """Let a failed or cancelled workflow go on from its last checkpoint. Fails when it is neither.

    JSON: workflow_id, status.

    \b
    Example:
      durable retry 0198c5f0-7a31-7c52-9d3e-1f0b5a6c7d8e
    """
    with connect_to_schema(dsn) as conn, translated():
        if conn.execute(calls.RETRY, [workflow_id]).fetchone() != (True,):
            raise DurableError(
                f"workflow {workflow_id} cannot be retried",
                detail=f"It is {_status(conn, workflow_id)}.",
                hint="Only failed and cancelled workflows can.",
            )
    say(
        output,
        f"Workflow {workflow_id} goes on from its last checkpoint.",
        {"workflow_id": workflow_id, "status": "pending"},
    )


@click.command()
@click.argument("workflow_id", callback=_values.workflow_id, metavar="ID")
@click.option("--reason", help="Shown with the workflow.")
@dsn_option
@output_option
def pause(workflow_id: str, reason: str | None, dsn: str | None, output: str) -> None:
    """Pause a workflow: no worker runs it until it is resumed. Fails when it has ended or is paused already.

    JSON: workflow_id, status.

    \b
    Example:
      durable pause 0198c5f0-7a31-7c52-9d3e-1f0b5a6c7d8e --reason "the bank is down"
    """
    with connect_to_schema(dsn) as conn, translated():
        done = conn.execute(calls.PAUSE, [workflow_id, reason]).fetchone() == (True,)
        status = _status(conn, workflow_id)
    if not done:
        raise DurableError(
            f"workflow {workflow_id} was not paused",
            detail=f"It is {status}{'' if status in _ENDED else ' and paused already'}.",
        )
    say(output, f"Paused {workflow_id}", {"workflow_id": workflow_id, "status": status})


@click.command()
@click.argument("workflow_id", callback=_values.workflow_id, metavar="ID")
@dsn_option
@output_option
def resume(workflow_id: str, dsn: str | None, output: str) -> None:
    """Let a paused workflow go on. Fails when it is not paused.

    JSON: workflow_id, status.

    \b
    Example:
      durable resume 0198c5f0-7a31-7c52-9d3e-1f0b5a6c7d8e
    """
    with connect_to_schema(dsn) as conn, translated():
        done = conn.execute(calls.RESUME, [workflow_id]).fetchone() == (True,)
        status = _status(conn, workflow_id)
    if not done:
        raise DurableError(f"workflow {workflow_id} is not paused", detail=f"It is {status}.")
    say(output, f"Resumed {workflow_id}", {"workflow_id": workflow_id, "status": status})


@click.command()
@click.argument("workflow_id", callback=_values.workflow_id, metavar="ID")
@click.option(
    "--from", "from_step", metavar="STEP", help="The step from which it runs again; without one, from the start."
)
@click.option("--input", "input_json", metavar="JSON", help="Another input, or - to read it from standard input.")
@click.option(
    "--replace", "outputs", callback=_values.tags, multiple=True, metavar="STEP=JSON",
    help="What a step is to have returned; repeatable.",
)  # fmt: skip
@dsn_option
@output_option
def fork(
    workflow_id: str,
    from_step: str | None,
    input_json: str | None,
    outputs: dict[str, str],
    dsn: str | None,
    output: str,
) -> None:
    """Start a copy of a workflow, finished or not, from one of its steps.

    The copy has the outcomes of all steps that ended before that one did, and shares nothing with the original after
    that.

    JSON: workflow_id, forked_from.

    \b
    Examples:
      durable fork 0198c5f0-7a31-7c52-9d3e-1f0b5a6c7d8e --from charge
      durable fork 0198c5f0-7a31-7c52-9d3e-1f0b5a6c7d8e --from ship --replace 'charge={"paid": true}'
    """
    document = read_json(input_json, "'--input'")
    replaced = ", ".join(f"{json.dumps(step)}: {read_json(text, _REPLACE)}" for step, text in outputs.items())
    with connect_to_schema(dsn) as conn, translated():
        row = conn.execute(calls.FORK, [workflow_id, from_step, document, f"{{{replaced}}}"]).fetchone()
    assert row is not None
    say(output, f"Forked {workflow_id} as {row[0]}", {"workflow_id": row[0], "forked_from": workflow_id})


def _status(conn: Connection, workflow_id: str) -> str:
    row = conn.execute(calls.STATUS, [workflow_id]).fetchone()
    assert row is not None
    return str(row[0])
