from __future__ import annotations

import click

from .._client import calls
from .._errors import translated
from . import _values
from ._database import connect_to_schema
from ._enqueue import read_json
from ._options import dsn_option, output_option
from ._output import say


@click.command()
@click.argument("workflow_id", callback=_values.workflow_id, metavar="ID")
@click.argument("topic")
@click.argument("payload_json", required=False)
@click.option("--key", help="Sent once, however often it is sent with this key.")
@dsn_option
@output_option
def send(workflow_id: str, topic: str, payload_json: str | None, key: str | None, dsn: str | None, output: str) -> None:
    """Send a message to one workflow, with the payload PAYLOAD_JSON, or - to read it from standard input.

    JSON: workflow_id, topic, sent (false when a message with this key was sent before).

    \b
    Examples:
      durable send 0198c5f0-7a31-7c52-9d3e-1f0b5a6c7d8e payment '{"cents": 1250}' --key payment-1
      durable send 0198c5f0-7a31-7c52-9d3e-1f0b5a6c7d8e stop
    """
    payload = read_json(payload_json, "'PAYLOAD_JSON'")
    with connect_to_schema(dsn) as conn, translated():
        is_first = conn.execute(calls.SEND, [workflow_id, topic, payload, key]).fetchone() == (True,)
    text = (
        f"Sent to {workflow_id}"
        if is_first
        else f"{workflow_id} was sent a message with this key before; nothing was sent."
    )
    say(output, text, {"workflow_id": workflow_id, "topic": topic, "sent": is_first})


@click.command()
@click.argument("event")
@click.argument("payload_json", required=False)
@dsn_option
@output_option
def emit(event: str, payload_json: str | None, dsn: str | None, output: str) -> None:
    """Tell of an event, with the payload PAYLOAD_JSON, or - to read it from standard input.

    Whoever waits for it goes on, and whoever waits for it later does so at once. The first emit of a name stands.

    JSON: event, emitted (false when it was emitted before).

    \b
    Examples:
      durable emit "warehouse open"
      durable emit "recall of A-7" '{"reason": "a sharp edge"}'
    """
    payload = read_json(payload_json, "'PAYLOAD_JSON'")
    with connect_to_schema(dsn) as conn, translated():
        is_first = conn.execute(calls.EMIT, [event, payload]).fetchone() == (True,)
    text = f"Emitted {event}" if is_first else f"{event} was emitted before; nothing was changed."
    say(output, text, {"event": event, "emitted": is_first})
