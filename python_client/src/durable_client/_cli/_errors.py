"""What people see of an error: message, detail and hint, never a traceback for a mistake of theirs."""

from __future__ import annotations

import sys
from typing import Any

import click
import psycopg

from .._errors import RIGHTS_HINT, DurableError, from_database


class ReportingGroup(click.Group):
    """A group whose commands end with exit status 1 and a report on standard error when something goes wrong.

    Mistakes in the command line itself end with 2, as click has it.
    """

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except (DurableError, psycopg.Error) as error:
            report(error)
            sys.exit(1)


def report(error: DurableError | psycopg.Error) -> None:
    if isinstance(error, psycopg.Error):
        error = explain(error)
    click.echo(f"{click.style('Error:', fg='red', bold=True)} {error.message}", err=True)
    for label, text in (("Detail", error.detail), ("Hint", error.hint)):
        if text:
            first, *rest = text.strip().splitlines()
            indent = "\n" + " " * (len(label) + 4)
            click.echo(f"  {click.style(f'{label}:', bold=True)} {indent.join([first, *rest])}", err=True)


def explain(error: psycopg.Error) -> DurableError:
    """An error of the database as one that says what to do about it."""
    known = from_database(error)
    if known is not None:
        return known
    diag = error.diag
    if error.sqlstate is None and isinstance(error, psycopg.OperationalError):
        return DurableError(
            "the database cannot be reached, or the connection to it was lost",
            detail=str(error),
            hint="Check --dsn or DURABLE_DSN, and that the server runs and accepts you.",
        )
    if isinstance(error, psycopg.errors.ReadOnlySqlTransaction):
        return DurableError(
            diag.message_primary or str(error),
            hint="The server is a standby: pass the DSN of the primary, or of several hosts of which it is one. Or "
            "default_transaction_read_only is on: alter role … set default_transaction_read_only = off.",
        )
    if isinstance(error, psycopg.errors.InsufficientPrivilege):
        return DurableError(
            diag.message_primary or str(error),
            detail=diag.message_detail,
            hint=RIGHTS_HINT,
        )
    return DurableError(diag.message_primary or str(error), detail=diag.message_detail, hint=diag.message_hint)
