from __future__ import annotations

import json
import sys
from datetime import datetime
from typing import NoReturn

import click

from .._errors import translated
from . import _values
from ._database import connect_to_schema
from ._options import dsn_option, output_option
from ._output import say


@click.command()
@click.argument("workflow")
@click.argument("input_json", required=False)
@click.option(
    "--queue",
    default="default",
    show_default=True,
    help="The queue it waits in; what @app.workflow(queue=…) says is not known here.",
)
@click.option("--key", help="Idempotency key: the same key starts nothing new and prints the id of the first.")
@click.option("--priority", type=int, default=0, show_default=True, help="Lower numbers run first.")
@click.option(
    "--run-at", callback=_values.moment, metavar="TIME", help="Not before this time: 2030-12-24T18:00, or with +01:00."
)
@click.option(
    "--delay", callback=_values.duration, metavar="DURATION", help="Not before this much time has passed: 30s, 5m, 2h."
)
@click.option("--max-attempts", type=int, default=1, show_default=True, help="How many attempts may fail.")
@click.option(
    "--timeout", callback=_values.duration, metavar="DURATION", help="How long it may take from its first start."
)
@click.option(
    "--tag", "tags", callback=_values.tags, multiple=True, metavar="KEY=VALUE", help="For your own queries; repeatable."
)
@dsn_option
@output_option
def enqueue(
    workflow: str,
    input_json: str | None,
    queue: str,
    key: str | None,
    priority: int,
    run_at: datetime | None,
    delay: float | None,
    max_attempts: int,
    timeout: float | None,
    tags: dict[str, str],
    dsn: str | None,
    output: str,
) -> None:
    """Enqueue the workflow named WORKFLOW with the input INPUT_JSON, or - to read it from standard input.

    JSON: workflow_id.

    \b
    Examples:
      durable enqueue fulfil '{"id": "A-7", "cents": 995}' --queue orders --key order-A-7
      durable enqueue report --delay 10m --max-attempts 3 --timeout 1h --tag month=2030-12
      durable enqueue load - < input.json
    """
    if run_at is not None and delay is not None:
        raise click.UsageError("Give --run-at or --delay, not both.")
    document = read_json(input_json, "'INPUT_JSON'")
    with connect_to_schema(dsn) as conn, translated():
        row = conn.execute(
            "select durable.enqueue(%s, %s::jsonb, %s, %s, %s,"
            " coalesce(%s, durable._now_in_view() + make_interval(secs => %s)),"
            " %s, make_interval(secs => %s), %s::jsonb)::text",
            [workflow, document, queue, key, priority, run_at, delay, max_attempts, timeout, json.dumps(tags)],
        ).fetchone()
    assert row is not None
    say(output, f"Enqueued {workflow} as {row[0]}", {"workflow_id": row[0]})


def read_json(text: str | None, hint: str) -> str | None:
    """JSON, or - for standard input, as it was written: the database gets each number with all of its digits."""
    if text == "-":
        text = sys.stdin.read()
    if text is not None:
        try:
            json.loads(text, parse_constant=_refuse, parse_int=str, parse_float=str)
        except (ValueError, RecursionError) as error:
            raise click.BadParameter(f"not valid JSON: {error}", param_hint=hint) from None
    return text


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not a number in JSON")
