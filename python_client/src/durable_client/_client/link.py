"""A connection of the worker that is made again when it is lost.

Every call of the schema may be sent again after a lost answer, so a call is repeated until it was answered.
"""

from __future__ import annotations

import asyncio
import logging
import random
import select
from collections.abc import Sequence
from contextlib import closing
from typing import Any

import psycopg
from psycopg.conninfo import make_conninfo
from psycopg.pq import PGconn, Ping

from .._threads import DaemonThreads
from . import calls

log = logging.getLogger("durable")

_LONGEST_PAUSE = 0.25
# How often, and for how long, a pooler is asked which backend it gives a connection.
_PROBES = 3
_PROBE_SECONDS = 3
# Longer than PgBouncer keeps clients waiting after a server has refused it (server_login_retry, 15 s).
_PING_SECONDS = 20
_pinging = DaemonThreads("durable-ping", 1)


def connection_lost(error: psycopg.Error, closed: bool) -> bool:
    """Whether the server, or the way to it, is gone: the statement may or may not have been committed.

    A server that is read-only (25006) is the standby of a failover: the way to the primary must be found again.
    """
    state = error.sqlstate or ""
    return closed or state.startswith(("08", "57P")) or state == "25006"


def transient(error: psycopg.Error) -> bool:
    """Whether the same statement may succeed when sent again: serialization, deadlock, timeout, lack of resources."""
    state = error.sqlstate or ""
    return state in ("40001", "40P01", "55P03", "57014") or state.startswith("53")


def pause(tries: int, longest: float = _LONGEST_PAUSE) -> float:
    """The wait before another try: exponential from 10 ms, with jitter."""
    return min(longest, 0.01 * 2.0 ** min(tries, 10)) * (0.5 + random.random() / 2)


def is_direct(conn: psycopg.BaseConnection[Any], backend: tuple[Any, ...] | None) -> bool:
    """Whether a connection leads to one backend of Postgres.

    A pooler names another process than the one that answers (``backend``, the row of ``calls.BACKEND``). It may give
    each transaction another backend, so that what is prepared on one is unknown to the next, or stands in its way.
    """
    return backend is not None and backend[0] == conn.info.backend_pid


def configure(conn: psycopg.Connection[Any]) -> None:
    """For a pool's new connections: through a pooler nothing is prepared."""
    autocommit = conn.autocommit
    conn.autocommit = True
    if not is_direct(conn, conn.execute(calls.BACKEND).fetchone()):
        conn.prepare_threshold = None
    conn.autocommit = autocommit


async def configure_async(conn: psycopg.AsyncConnection[Any]) -> None:
    """The same for asynchronous pools."""
    autocommit = conn.autocommit
    await conn.set_autocommit(True)
    if not is_direct(conn, await (await conn.execute(calls.BACKEND)).fetchone()):
        conn.prepare_threshold = None
    await conn.set_autocommit(autocommit)


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


async def _accepts_connections(dsn: str) -> bool:
    """Whether there is a server that answers, be it with a refusal, and is not about to start or to stop."""
    # Only libpq sees the SQLSTATE by which this is told, and it blocks.
    conninfo = make_conninfo(dsn, connect_timeout=_PING_SECONDS).encode()
    ping = asyncio.get_running_loop().run_in_executor(_pinging, PGconn.ping, conninfo)
    return await ping == Ping.OK


class Link:
    """One autocommit connection. Statements are sent one at a time, prepared unless a pooler is between, and again
    after the connection was lost."""

    def __init__(self, dsn: str, name: str) -> None:
        self._dsn = dsn
        self._name = name
        self._conn: psycopg.AsyncConnection[tuple[Any, ...]] | None = None
        self._lock = asyncio.Lock()
        self.reconnects = 0
        self.direct = True

    async def connect(self) -> None:
        """Makes the first connection. A server that is still to come up is waited for.

        Raises what psycopg raises when waiting would not help: for a host that nobody knows, or when the server is up
        and refuses.
        """
        tries = 0
        is_up = False
        while True:
            try:
                return await self._connect()
            except psycopg.OperationalError as error:
                if is_up or str(error).startswith("failed to resolve host"):
                    raise
                # Asked between two attempts, so that one that failed while the server came up does not count.
                is_up = await _accepts_connections(self._dsn)
                if not is_up:
                    if tries == 0:
                        log.warning("connection %s: Postgres is not up yet, waiting for it: %s", self._name, error)
                    await asyncio.sleep(pause(tries))
                    tries += 1

    async def _connect(self) -> None:
        self._conn = await psycopg.AsyncConnection.connect(
            self._dsn, autocommit=True, application_name=f"durable {self._name}"
        )
        self.direct = is_direct(self._conn, await (await self._conn.execute(calls.BACKEND)).fetchone())

    async def close(self) -> None:
        if self._conn is not None:
            await self._conn.close()

    async def execute(self, query: str, parameters: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """The rows of a statement. Raises psycopg.Error only for errors that sending it again would not mend."""
        async with self._lock:
            tries = 0
            while True:
                try:
                    if self._conn is None or self._conn.closed:
                        await self._reconnect()
                    assert self._conn is not None
                    cursor = await self._conn.execute(query, parameters, prepare=self.direct)
                    return await cursor.fetchall()
                except psycopg.Error as error:
                    lost = connection_lost(error, self._conn is None or self._conn.closed)
                    if not lost and not (transient(error) and tries < 10):
                        raise
                    if lost and self._conn is not None:
                        await self._conn.close()
                    await asyncio.sleep(pause(tries))
                    tries += 1

    async def _reconnect(self) -> None:
        tries = 0
        while True:
            try:
                await self._connect()
            except psycopg.OperationalError as error:
                if tries == 0:
                    log.warning("connection %s: Postgres cannot be reached, trying again: %s", self._name, error)
                await asyncio.sleep(pause(tries))
                tries += 1
            else:
                self.reconnects += 1
                log.info("connection %s: connected again", self._name)
                return


async def wait_until_up(dsn: str) -> None:
    """Returns when there is a server; see ``Link.connect``."""
    link = Link(dsn, "supervisor")
    await link.connect()
    await link.close()
