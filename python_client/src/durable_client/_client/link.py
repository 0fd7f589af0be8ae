"""A connection of the worker that is made again when it is lost.

Every call of the schema may be sent again after a lost answer, so a call is repeated until it was answered. It is
repeated, too, for as long as the database refuses it for reasons that have nothing to do with what was asked.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Sequence
from typing import Any

import psycopg
from psycopg.pq import PGconn, Ping

from .._threads import DaemonThreads
from . import calls
from .connection import AsyncBinaryCursor, Standby, configure_link, conninfo, leads_to_standby

log = logging.getLogger("durable")

_LONGEST_PAUSE = 0.25
# For what is not over at once: a full disk, a lock.
LONGEST_TROUBLE_PAUSE = 0.5
# Longer than PgBouncer keeps clients waiting after a server has refused it (server_login_retry, 15 s).
_PING_SECONDS = 20
_pinging = DaemonThreads("durable-ping", 2)


def connection_lost(error: psycopg.Error, closed: bool) -> bool:
    """Whether the server, or the way to it, is gone: the statement may or may not have been committed.

    A server that is read-only (25006) is the standby of a failover: the way to the primary must be found again.
    """
    state = error.sqlstate or ""
    return closed or isinstance(error, Standby) or state.startswith(("08", "57P")) or state == "25006"


def passes(state: str) -> bool:
    """Whether the error of a SQLSTATE says nothing about what was asked, so that it may succeed when sent again.

    Serialization failures and deadlocks (40), lack of resources (53), locks (55P03), cancelled statements (57014),
    errors of the system below (58), snapshots that are too old (72).
    """
    return state in ("55P03", "57014") or (state.startswith(("40", "53", "58", "72")) and state != "40002")


def transient(error: psycopg.Error) -> bool:
    """The same for an error."""
    return passes(error.sqlstate or "")


def pause(tries: int, longest: float = _LONGEST_PAUSE) -> float:
    """The wait before another try: exponential from 10 ms, with jitter."""
    return min(longest, 0.01 * 2.0 ** min(tries, 10)) * (0.5 + random.random() / 2)


# After so many seconds without an answer, the log has a line.
_UNANSWERED = 10
# A call that was refused this often, within about four seconds, is worth a line even when others are answered.
MANY_TRIES = 10


class Trouble:
    """Tells the log of errors that pass: when they begin, when they are over, and the rest at the level debug.

    Also of a call that is not answered for long.
    """

    def __init__(self, subject: str) -> None:
        self._subject = subject
        self._count = 0
        self._is_unanswered = False

    def met(self, error: object, tries: int) -> None:
        """An error of a call that met so many before."""
        self._count += 1
        # A single one is no news: it is over at the next try.
        level = logging.WARNING if self._count == 2 or tries == MANY_TRIES else logging.DEBUG
        reason = str(error).partition("\n")[0]
        log.log(level, "%s: Postgres refuses for the moment, trying again: %s", self._subject, reason)

    def unanswered(self) -> None:
        """A call has no answer after ``_UNANSWERED`` seconds. Its commit may wait for a standby, say."""
        if not self._is_unanswered:
            self._is_unanswered = True
            log.warning("%s: Postgres has not answered for %d s; see `durable doctor`", self._subject, _UNANSWERED)

    def over(self) -> None:
        """A call was answered."""
        if self._count > 1 or self._is_unanswered:
            log.info("%s: Postgres answers again", self._subject)
        self._count = 0
        self._is_unanswered = False


async def _accepts_connections(dsn: str) -> bool:
    """Whether there is a server that answers, be it with a refusal, and is not about to start, stop or be promoted."""
    # Only libpq sees the SQLSTATE by which this is told, and it blocks.
    ping = conninfo(dsn, connect_timeout=_PING_SECONDS).encode()
    loop = asyncio.get_running_loop()
    if await loop.run_in_executor(_pinging, PGconn.ping, ping) != Ping.OK:
        return False
    return not await loop.run_in_executor(_pinging, leads_to_standby, dsn)


class Link:
    """One autocommit connection. Statements are sent one at a time, prepared unless a pooler is between, and again
    after the connection was lost. ``settings`` are set where it leads to one backend."""

    def __init__(self, dsn: str, name: str, **settings: str) -> None:
        self._dsn = dsn
        self._name = name
        self._settings = settings
        self._conn: psycopg.AsyncConnection[tuple[Any, ...]] | None = None
        self._lock = asyncio.Lock()
        self._trouble = Trouble(f"connection {name}")
        # When the statement under way was sent.
        self._sent_at: float | None = None
        self.reconnects = 0
        self.direct = True

    @property
    def is_busy(self) -> bool:
        """Whether a statement is under way."""
        return self._lock.locked()

    def tell_if_unanswered(self) -> None:
        """For the log: a statement that is not answered for long."""
        if self._sent_at is not None and time.monotonic() - self._sent_at > _UNANSWERED:
            self._trouble.unanswered()

    async def connect(self) -> None:
        """Makes the first connection. A server that is still to come up, or to be promoted, is waited for.

        Raises what psycopg raises when waiting would not help: for a host that nobody knows, or when the server is up
        and refuses.
        """
        tries = 0
        is_up = False
        while True:
            try:
                return await self._connect()
            except psycopg.Error as error:
                if isinstance(error, psycopg.ProgrammingError) or str(error).startswith("failed to resolve host"):
                    raise
                passes = connection_lost(error, False) or transient(error)
                if is_up and not passes:
                    raise
                # Asked between two attempts, so that one that failed while the server came up does not count.
                is_up = not passes and await _accepts_connections(self._dsn)
                if not is_up:
                    if tries == 0:
                        log.warning("connection %s: Postgres is not ready yet, waiting for it: %s", self._name, error)
                    await asyncio.sleep(pause(tries))
                    tries += 1

    async def _connect(self) -> None:
        self._conn = conn = await psycopg.AsyncConnection.connect(
            conninfo(self._dsn), autocommit=True, application_name=f"durable {self._name}",
            cursor_factory=AsyncBinaryCursor,
        )  # fmt: skip
        try:
            self.direct = await configure_link(conn, self._settings)
        except BaseException:
            await conn.close()
            raise

    async def close(self) -> None:
        if self._conn is not None:
            await self._conn.close()

    async def execute(
        self, query: str, parameters: Sequence[Any] = (), *, patient: bool = True
    ) -> list[tuple[Any, ...]]:
        """The rows of a statement. Raises psycopg.Error only for errors that sending it again would not mend.

        With ``patient`` false, it is the caller who sends it again after errors that pass.
        """
        tries = 0
        while True:
            try:
                async with self._lock:
                    rows = await self._send(query, parameters)
            except psycopg.Error as error:
                if not patient or not transient(error):
                    raise
                self._trouble.met(error, tries)
            else:
                self._trouble.over()
                return rows
            tries += 1
            # Others may use the connection meanwhile.
            await asyncio.sleep(pause(tries, LONGEST_TROUBLE_PAUSE))

    async def _send(self, query: str, parameters: Sequence[Any]) -> list[tuple[Any, ...]]:
        """The rows of a statement, which is sent again for as often as the connection is lost."""
        tries = 0
        while True:
            try:
                if self._conn is None or self._conn.closed:
                    await self._reconnect()
                assert self._conn is not None
                self._sent_at = time.monotonic()
                cursor = await self._conn.execute(query, parameters, prepare=self.direct)
                return await cursor.fetchall()
            except psycopg.Error as error:
                if not await self._is_lost(error, tries):
                    raise
                if self._conn is not None:
                    await self._conn.close()
            finally:
                self._sent_at = None
            await asyncio.sleep(pause(tries))
            tries += 1

    async def _is_lost(self, error: psycopg.Error, tries: int) -> bool:
        """Whether the statement is to be sent over another connection."""
        if connection_lost(error, self._conn is None or self._conn.closed):
            return True
        if not isinstance(error, psycopg.errors.FeatureNotSupported):
            return False
        # What is said of a statement that was prepared before the schema was upgraded, once.
        if tries == 0:
            return True
        # What a standby says of unlogged tables; the server may have become one under this connection.
        assert self._conn is not None
        try:
            return bool((await (await self._conn.execute(calls.IN_RECOVERY)).fetchall())[0][0])
        except psycopg.Error:
            return True

    async def _reconnect(self) -> None:
        tries = 0
        while True:
            try:
                await self._connect()
            except psycopg.Error as error:
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
