"""The connection that --dsn leads to."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psycopg

from .._client import calls
from .._client.connection import BinaryCursor, configure, conninfo
from .._client.schema import check_version
from .._errors import DurableError, translated

Connection = psycopg.Connection[tuple[Any, ...]]


def _require_dsn(dsn: str | None) -> str:
    if not dsn:
        raise DurableError(
            "no database was named",
            hint="Pass --dsn, or set DURABLE_DSN, for example to postgresql://user:password@host:5432/database. "
            "`durable dev` works without one.",
        )
    return dsn


@contextmanager
def connect(dsn: str | None) -> Iterator[Connection]:
    """A connection in autocommit mode. Nothing is prepared on it, for there may be a pooler."""
    try:
        conn = psycopg.connect(
            conninfo(_require_dsn(dsn)), autocommit=True, application_name="durable", prepare_threshold=None,
            cursor_factory=BinaryCursor,
        )  # fmt: skip
    except psycopg.ProgrammingError as error:
        raise DurableError(
            "the DSN is not valid",
            detail=str(error),
            hint="It looks like postgresql://user:password@host:5432/database or host=… dbname=… user=…",
        ) from error
    except psycopg.OperationalError as error:
        raise DurableError(
            "cannot connect to the database",
            detail=str(error),
            hint="Check --dsn or DURABLE_DSN, and that the server runs and accepts you.",
        ) from error
    with conn:
        configure(conn)
        yield conn


@contextmanager
def connect_to_schema(dsn: str | None) -> Iterator[Connection]:
    """A connection to a database whose schema fits this client. Raises SchemaMismatch."""
    with connect(dsn) as conn:
        with translated():
            check_version(conn.execute(calls.VERSION).fetchone())
        yield conn


@contextmanager
def in_utc(conn: Connection) -> Iterator[None]:
    """A transaction in which the server writes times in UTC; through a pooler, a setting of the session may be lost."""
    with conn.transaction():
        conn.execute("set local timezone = 'UTC'")
        yield
