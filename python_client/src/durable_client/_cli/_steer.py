from __future__ import annotations

import click

from .. import _calls
from .._errors import DurableError, translated
from . import _values
from ._database import Connection, connect_to_schema
from ._options import dsn_option, output_option
from ._output import print_json


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
        if conn.execute(_calls.CANCEL, [workflow_id, reason]).fetchone() != (True,):
            raise DurableError(
                f"workflow {workflow_id} was not cancelled",
                detail=f"It has already ended: it is {_status(conn, workflow_id)}.",
            )
    if output == "json":
        print_json({"workflow_id": workflow_id, "status": "cancelled"})
    else:
        click.echo(f"Cancelled {workflow_id}")


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
        if conn.execute(_calls.RETRY, [workflow_id]).fetchone() != (True,):
            raise DurableError(
                f"workflow {workflow_id} cannot be retried",
                detail=f"It is {_status(conn, workflow_id)}.",
                hint="Only failed and cancelled workflows can.",
            )
    if output == "json":
        print_json({"workflow_id": workflow_id, "status": "pending"})
    else:
        click.echo(f"Workflow {workflow_id} goes on from its last checkpoint.")


def _status(conn: Connection, workflow_id: str) -> str:
    row = conn.execute(_calls.STATUS, [workflow_id]).fetchone()
    assert row is not None
    return str(row[0])
