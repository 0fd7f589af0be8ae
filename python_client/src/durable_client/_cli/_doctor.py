from __future__ import annotations

import click
from psycopg.rows import dict_row

from .._errors import translated
from ._database import connect_to_schema, in_utc
from ._options import dsn_option, output_option
from ._output import print_fields, print_json


@click.command()
@dsn_option
@output_option
def doctor(dsn: str | None, output: str) -> None:
    """Say what is wrong with the engine in this database, and what to do.

    Shows what durable.health() finds: ticks, locks, partitions, vacuum, notifications, clocks, sequences, dead
    workers. The exit status is 0 when nothing is critical (warnings are shown all the same), and 1 when something is,
    or when the database cannot be asked: a probe needs nothing else.

    JSON: findings, each with check, state (ok, warning or critical), since, detail, remedy.

    \b
    Examples:
      durable doctor
      durable doctor -o json | jq '.findings[] | select(.state != "ok")'
    """
    with connect_to_schema(dsn) as conn, translated(), in_utc(conn):
        findings = (
            conn.cursor(row_factory=dict_row)
            .execute('select "check", state, to_json(since) as since, detail, remedy from durable.health()')
            .fetchall()
        )
    if output == "json":
        print_json({"findings": findings})
    else:
        for finding in findings:
            since = f"since {finding['since']}: " if finding["since"] else ""
            print_fields([(finding["state"], f"{finding['check']}: {since}{finding['detail']}")])
            if finding["remedy"]:
                print_fields([("", f"  {finding['remedy']}")])
    if any(finding["state"] == "critical" for finding in findings):
        raise SystemExit(1)
