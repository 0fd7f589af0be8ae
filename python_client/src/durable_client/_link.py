"""A connection of the worker that is made again when it is lost.

Every call of the schema may be sent again after a lost answer, so a call is repeated until it was answered.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Sequence
from typing import Any

import psycopg

from . import _calls

log = logging.getLogger("durable")

_LONGEST_PAUSE = 0.25


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

    A pooler names another process than the one that answers (``backend``, the row of ``_calls.BACKEND``). Through it
    there are no prepared statements, session locks or notifications.
    """
    return backend is not None and backend[0] == conn.info.backend_pid


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
        """Makes the first connection; raises what psycopg raises, so that a wrong DSN is reported at once."""
        self._conn = await psycopg.AsyncConnection.connect(
            self._dsn, autocommit=True, application_name=f"durable {self._name}"
        )
        self.direct = is_direct(self._conn, await (await self._conn.execute(_calls.BACKEND)).fetchone())

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
                await self.connect()
            except psycopg.OperationalError as error:
                if tries == 0:
                    log.warning("connection %s: Postgres cannot be reached, trying again: %s", self._name, error)
                await asyncio.sleep(pause(tries))
                tries += 1
            else:
                self.reconnects += 1
                log.info("connection %s: connected again", self._name)
                return
