"""The schema in the database: installing it, and whether it fits this client."""

from __future__ import annotations

import logging
import re
from functools import cache
from importlib import resources
from typing import Any

import psycopg

from .._errors import SchemaMismatch
from .._version import __version__

log = logging.getLogger("durable")


def check_version(row: tuple[Any, ...] | None) -> None:
    """Raises SchemaMismatch unless the row of ``calls.VERSION`` names a version that fits this client.

    Warns when it is the version that comes with this client, made from other sources.
    """
    assert row is not None
    installed, build = row
    if installed == __version__ and build != _our_build():
        log.warning(
            "the schema durable %s in this database (build %s) was made from other sources than the one that comes "
            "with this client (build %s); if calls fail, install both from one checkout",
            installed, build, _our_build(),
        )  # fmt: skip
    ours, theirs = (tuple(int(part) for part in version.split(".")[:2]) for version in (__version__, installed))
    if ours != theirs:
        older = f"the schema (now {installed})" if theirs < ours else f"durable-client (now {__version__})"
        raise SchemaMismatch(
            f"durable-client {__version__} does not fit the schema durable {installed} in this database",
            hint=f"Upgrade {older}.",
        )


@cache
def _our_build() -> str:
    found = re.search(r"function durable\.build\(\).*?'([0-9a-f]+)'", schema_sql(), re.DOTALL)
    assert found is not None
    return found[1]


def schema_sql() -> str:
    """The schema as one SQL script, for databases where no extension can be added."""
    return resources.files("durable_client").joinpath("durable.sql").read_text()


def install(conn: psycopg.Connection[Any]) -> None:
    """Installs the plain SQL schema in one transaction. Raises psycopg.errors.DuplicateSchema when there is one."""
    with conn.transaction():
        # Many statements at once cannot have binary results, which the connection may ask for.
        psycopg.Cursor(conn).execute(schema_sql().encode())
