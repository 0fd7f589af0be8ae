from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import click
import psycopg
from psycopg import sql

from .._client import calls
from .._client.schema import check_version
from .._client.schema import install as install_plain
from .._errors import SchemaMismatch
from .._version import __version__
from ._database import Connection, connect
from ._options import dsn_option, output_option
from ._output import say


@dataclass(frozen=True, slots=True)
class Installation:
    version: str
    form: Literal["extension", "sql"]
    is_new: bool


def install_schema(conn: Connection, form: Literal["extension", "sql"] | None = None) -> Installation:
    """Installs the schema unless one that fits is there, in the given form or as an extension where there is one.

    Raises SchemaMismatch for a schema that does not fit.
    """
    with conn.transaction():
        # Two at once: the second one waits, and finds what the first one installed.
        conn.execute("select pg_advisory_xact_lock(hashtext('durable install'))")
        is_new = conn.execute("select to_regnamespace('durable') is null").fetchone() == (True,)
        if is_new:
            version = None if form == "sql" else _fitting_extension(conn)
            if version is None and form == "extension":
                raise SchemaMismatch(
                    f"this server has no extension durable that fits durable-client {__version__}",
                    hint="Install it on the server (make install), or install plain SQL: durable install --form sql",
                )
            if version is None:
                install_plain(conn)
            else:
                conn.execute(sql.SQL("create extension durable version {}").format(version))
        return _inspect(conn, is_new)


def _fitting_extension(conn: Connection) -> str | None:
    rows = conn.execute("select version from pg_available_extension_versions where name = 'durable'").fetchall()
    fitting = [row[0] for row in rows if row[0].split(".")[:2] == __version__.split(".")[:2]]
    return max(fitting, key=lambda version: [int(part) for part in version.split(".")], default=None)


def _inspect(conn: Connection, is_new: bool) -> Installation:
    try:
        row = conn.execute(calls.VERSION).fetchone()
    except psycopg.errors.UndefinedFunction as error:
        raise SchemaMismatch(
            "there is a schema named durable in this database, but it is not the one of this project",
            detail="It has no function durable.version(). Nothing was changed.",
            hint="Install into another database, or rename or drop that schema.",
        ) from error
    check_version(row)
    assert row is not None
    extension = conn.execute("select from pg_extension where extname = 'durable'").fetchone()
    return Installation(row[0], "sql" if extension is None else "extension", is_new)


@click.command()
@dsn_option
@click.option(
    "--form",
    type=click.Choice(["extension", "sql"]),
    help="Insist on one form. [default: extension, where there is one]",
)
@output_option
def install(dsn: str | None, form: Literal["extension", "sql"] | None, output: str) -> None:
    """Install the schema durable into the database.

    As an extension where the server has it (make install), else as plain SQL, which any role can do that may create
    a schema. Does nothing when a schema that fits is there, and refuses when there is one of another version.

    JSON: version, form ("extension" or "sql"), installed (false when it was there before).

    \b
    Example:
      durable install --dsn postgresql://postgres@localhost/shop
    """
    with connect(dsn) as conn:
        found = install_schema(conn, form)
    shape = "as an extension" if found.form == "extension" else "as plain SQL"
    text = (
        f"Installed durable {found.version} {shape}."
        if found.is_new
        else f"durable {found.version} is already installed {shape}; nothing was changed."
    )
    say(output, text, {"version": found.version, "form": found.form, "installed": found.is_new})
