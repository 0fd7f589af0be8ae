"""How the client connects, so that it reads and does the same whatever the defaults of its role or database.

What it reads does not depend on settings: text is UTF-8, all else is binary, and times are in UTC. What its own
statements need is set for the session where a connection leads to one backend of Postgres. Through a pooler a setting
would stay with a backend that others use, so there the client copes with what it finds.
"""

from __future__ import annotations

import os
import select
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from datetime import datetime, timedelta, timezone
from typing import Any

import psycopg
from psycopg.abc import Buffer
from psycopg.adapt import Loader
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.pq import Format

from . import calls

# How often, and for how long, a pooler is asked which backend it gives a connection.
_PROBES = 3
_PROBE_SECONDS = 3
_EPOCH = datetime(2000, 1, 1, tzinfo=timezone.utc)
# For statements of the client alone, in the program that asks and in the worker.
_ASKING = {
    "search_path": "pg_catalog, pg_temp",
    "array_nulls": "on",
    "timezone": "UTC",
    "datestyle": "ISO, MDY",
    "intervalstyle": "postgres",
    "idle_session_timeout": "0",
}
# A worker repeats what fails, so that limits only make it do work again.
_WORKING = _ASKING | {
    "default_transaction_isolation": "read committed",
    "default_transaction_read_only": "off",
    "statement_timeout": "0",
    "transaction_timeout": "0",
    "idle_in_transaction_session_timeout": "0",
}


class Standby(psycopg.OperationalError):
    """The server only follows another one, or has yet to be promoted: nothing can be written to it."""

    def __init__(self) -> None:
        super().__init__("the server is a standby")


class _UtcLoader(Loader):
    """Times in UTC, whatever the TimeZone of the session."""

    format = Format.BINARY

    def load(self, data: Buffer) -> datetime:
        try:
            return _EPOCH + timedelta(microseconds=int.from_bytes(data, "big", signed=True))
        except OverflowError:
            raise psycopg.DataError("a time is outside of what Python's datetime can hold") from None


class BinaryCursor(psycopg.Cursor[Any]):
    """A cursor whose results do not depend on DateStyle, IntervalStyle, bytea_output and extra_float_digits."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.format = Format.BINARY


class AsyncBinaryCursor(psycopg.AsyncCursor[Any]):
    """The same for asynchronous connections."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.format = Format.BINARY


def conninfo(dsn: str, **parameters: Any) -> str:
    """The DSN with the encoding that the client writes and reads, and, of several hosts, for the primary.

    Raises psycopg.ProgrammingError when the DSN is not one.
    """
    given: dict[str, Any] = conninfo_to_dict(dsn, client_encoding="utf8", **parameters)
    hosts = str(given.get("host") or given.get("hostaddr") or os.environ.get("PGHOST", ""))
    if "," in hosts and "PGTARGETSESSIONATTRS" not in os.environ:
        given.setdefault("target_session_attrs", "primary")
    return make_conninfo("", **given)


def is_direct(conn: psycopg.BaseConnection[Any], backend: tuple[Any, ...]) -> bool:
    """Whether a connection leads to one backend of Postgres.

    A pooler names another process than the one that answers (``backend``, the row of ``calls.BACKEND``). It may give
    each transaction another backend, so that what is prepared on one is unknown to the next, or stands in its way.
    """
    return bool(backend[0] == conn.info.backend_pid)


def _set(settings: Mapping[str, str]) -> tuple[str, str, str]:
    return calls.SET, calls.text_array(settings), calls.text_array(settings.values())


@contextmanager
def _serializable() -> Iterator[None]:
    """For the first statement, which a standby refuses (0A000) where the default isolation level is serializable."""
    try:
        yield
    except psycopg.errors.FeatureNotSupported as error:
        raise Standby from error


def configure(conn: psycopg.Connection[Any]) -> None:
    """For a connection in autocommit mode that the statements of this client have to themselves."""
    conn.adapters.register_loader("timestamptz", _UtcLoader)
    if is_direct(conn, conn.execute(calls.BACKEND).fetchall()[0]):
        query, *parameters = _set(_ASKING)
        conn.execute(query, parameters)
    else:
        # Through a pooler nothing is prepared.
        conn.prepare_threshold = None


async def configure_async(conn: psycopg.AsyncConnection[Any]) -> None:
    """The same for asynchronous connections."""
    conn.adapters.register_loader("timestamptz", _UtcLoader)
    if is_direct(conn, (await (await conn.execute(calls.BACKEND)).fetchall())[0]):
        query, *parameters = _set(_ASKING)
        await conn.execute(query, parameters)
    else:
        conn.prepare_threshold = None


def configure_session(conn: psycopg.Connection[Any]) -> bool:
    """For the session of a worker. Returns whether it leads to one backend; raises Standby."""
    with _serializable():
        backend = conn.execute(calls.BACKEND).fetchall()[0]
    if backend[1]:
        raise Standby
    direct = is_direct(conn, backend)
    if direct:
        query, *parameters = _set(_WORKING)
        conn.execute(query, parameters)
    return direct


async def configure_link(conn: psycopg.AsyncConnection[Any], settings: Mapping[str, str]) -> bool:
    """For another connection of a worker. Returns whether it leads to one backend; raises Standby."""
    conn.adapters.register_loader("timestamptz", _UtcLoader)
    with _serializable():
        backend = (await (await conn.execute(calls.BACKEND)).fetchall())[0]
    if backend[1]:
        raise Standby
    direct = is_direct(conn, backend)
    if direct:
        query, *parameters = _set({**_WORKING, **settings})
        await conn.execute(query, parameters)
    return direct


def configure_for_steps(conn: psycopg.Connection[Any]) -> None:
    """For a connection that code of users gets: it keeps the settings of its role, but must be able to write.

    Raises Standby.
    """
    conn.autocommit = True
    with _serializable():
        backend = conn.execute(calls.BACKEND).fetchall()[0]
    if backend[1]:
        conn.close()
        raise Standby
    if not is_direct(conn, backend):
        conn.prepare_threshold = None
    conn.autocommit = False
    conn.read_only = False


async def configure_for_steps_async(conn: psycopg.AsyncConnection[Any]) -> None:
    """The same for asynchronous connections."""
    await conn.set_autocommit(True)
    with _serializable():
        backend = (await (await conn.execute(calls.BACKEND)).fetchall())[0]
    if backend[1]:
        await conn.close()
        raise Standby
    if not is_direct(conn, backend):
        conn.prepare_threshold = None
    await conn.set_autocommit(False)
    await conn.set_read_only(False)


def keeps_backend(conn: psycopg.Connection[Any], dsn: str) -> bool:
    """Whether a pooler leaves a connection its backend for as long as it lasts: session pooling.

    Otherwise two connections that are used in turn soon share a backend, or one of them gets several. False when it
    cannot be found out, because the pooler has no backend to spare.
    """

    def ask() -> int:
        return int(conn.execute(calls.BACKEND, prepare=False).fetchall()[0][0])

    try:
        # Closed as it is, for it may still be waiting.
        with closing(psycopg.connect(dsn, autocommit=True, connect_timeout=_PROBE_SECONDS)) as other:
            own = ask()
            # Twice, for a pooler that passes its backends round may have just as many as there are who ask.
            return all(ask() == ask() == own and _ask_in_time(other) not in (None, own) for _ in range(_PROBES))
    except psycopg.Error:
        return False


def _ask_in_time(conn: psycopg.Connection[Any]) -> int | None:
    """The backend of a connection; None when it got none in time, and then it is of no more use."""
    conn.pgconn.send_query(calls.BACKEND.encode())
    if not select.select([conn.pgconn.socket], [], [], _PROBE_SECONDS)[0]:
        return None
    backend = None
    while (result := conn.pgconn.get_result()) is not None:
        backend = backend or result.get_value(0, 0)
    return None if backend is None else int(backend)


def leads_to_standby(dsn: str) -> bool:
    """Whether a server answers that is a standby, when connections that must lead to the primary are refused."""
    try:
        with psycopg.connect(
            conninfo(dsn, target_session_attrs="any", connect_timeout=_PROBE_SECONDS), autocommit=True
        ) as conn:
            return bool(conn.execute(calls.BACKEND).fetchall()[0][1])
    except psycopg.Error:
        return False
