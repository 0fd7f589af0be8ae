"""The worker's session: its advisory lock, its heartbeat and its doorbell, in a thread of their own.

A thread, so that code that blocks the event loop does not let the lease run out.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import psycopg

from .._client import calls
from .._client.connection import BinaryCursor, Standby, configure_session, conninfo, keeps_backend
from .._client.link import LONGEST_TROUBLE_PAUSE, Trouble, connection_lost, pause, transient

log = logging.getLogger("durable")

Held = Callable[[], tuple[Sequence[str], Sequence[int], list[dict[str, Any]]]]

# How long a server may go on with a claim after its connection was lost: it may wait for a lock, or a replica.
_WATCH = 600.0
# How long the thread sleeps at the most before it looks whether it must stop.
_LOOK = 0.2
# A session that lasted this long and is lost is news; one that never came up is not, after the first time.
_STEADY = 5.0


class Session(threading.Thread):
    """Holds the session of one worker until it is stopped.

    ``held`` gives the workflows, leases and long-running steps for the heartbeat; ``on_bell``, ``on_lost``,
    ``on_stray`` (a lease about to be given back) and ``on_attach`` (a new channel) are called in this thread.
    """

    def __init__(
        self, dsn: str, worker: str, queues: Sequence[str], beat: float, held: Held, *,
        on_bell: Callable[[], None], on_lost: Callable[[str, int, str], None],
        on_stray: Callable[[int], None], on_attach: Callable[[], None],
    ) -> None:  # fmt: skip
        super().__init__(name="durable-session", daemon=True)
        self._dsn = dsn
        self._worker = worker
        self._queues = calls.text_array(queues)
        self._beat = beat
        self._held = held
        self._on_bell = on_bell
        self._on_lost = on_lost
        self._on_stray = on_stray
        self._strays: set[tuple[str, int]] = set()
        self._watch_until = 0.0
        self._on_attach = on_attach
        self._stopping = threading.Event()
        self._channel = ""
        # Whether all that this connection asks comes to one backend, which can hold the lock and listen.
        self._keeps_backend = True
        self._is_attached = False
        # Set also when the thread ends.
        self._attached = threading.Event()
        self._refusal: psycopg.Error | None = None

    def stop(self) -> None:
        """Ends the thread; its connection, and with it the lock, is closed."""
        self._stopping.set()

    def watch_for_strays(self) -> None:
        """From now on and for a while, gives back what a claim brings whose connection was lost."""
        self._watch_until = time.monotonic() + _WATCH

    def wait_until_attached(self) -> None:
        """Raises what psycopg raised when the first attempt was refused for good."""
        self._attached.wait()
        if self._refusal is not None:
            raise self._refusal

    def run(self) -> None:
        try:
            self._hold()
        finally:
            self._attached.set()

    def _hold(self) -> None:
        tries = 0
        while not self._stopping.is_set():
            began = time.monotonic()
            try:
                with psycopg.connect(
                    conninfo(self._dsn), autocommit=True, application_name="durable session",
                    cursor_factory=BinaryCursor,
                ) as conn:  # fmt: skip
                    self._channel = ""
                    self._keeps_backend = configure_session(conn) or keeps_backend(conn, self._dsn)
                    if not self._keeps_backend:
                        conn.prepare_threshold = None
                    if tries:
                        log.info("worker %s: its session is there again", self._worker)
                    try:
                        self._keep(conn)
                    except psycopg.errors.FeatureNotSupported:
                        # What a standby says of unlogged tables; the server may have become one.
                        if conn.execute(calls.IN_RECOVERY).fetchall()[0][0]:
                            raise Standby from None
                        raise
            except psycopg.Error as error:
                passes = connection_lost(error, False) or transient(error)
                if not self._is_attached and error.sqlstate and not passes:
                    self._refusal = error
                    return
                if not self._stopping.is_set():
                    if time.monotonic() - began > _STEADY:
                        tries = 0
                    # Once, and not for each attempt while Postgres is away.
                    level = logging.WARNING if tries == 0 else logging.DEBUG
                    log.log(level, "worker %s: its session is lost, connecting again: %s", self._worker, error)
                    self._stopping.wait(pause(tries))
                    tries += 1

    def _keep(self, conn: psycopg.Connection[Any]) -> None:
        trouble = Trouble(f"worker {self._worker}, its session")
        tries = 0
        is_new = True
        next_beat = time.monotonic()
        while not self._stopping.is_set():
            if time.monotonic() >= next_beat:
                try:
                    if is_new:
                        self._attach(conn)
                        is_new, self._is_attached = False, True
                        self._attached.set()
                    self._heartbeat(conn)
                    # Also after this worker was declared dead: it comes back under a new number, and a new channel.
                    self._attach(conn)
                except psycopg.Error as error:
                    if conn.closed or not transient(error):
                        raise
                    trouble.met(error, tries)
                    tries += 1
                    next_beat = time.monotonic() + pause(tries, LONGEST_TROUBLE_PAUSE)
                else:
                    trouble.over()
                    tries = 0
                    next_beat = time.monotonic() + self._beat
            wait = max(0.0, min(_LOOK, next_beat - time.monotonic()))
            if not self._keeps_backend:
                self._stopping.wait(wait)
                continue
            # A list, for the generator keeps the connection to itself until it is exhausted.
            for notification in list(conn.notifies(timeout=wait, stop_after=1)):
                if notification.payload == "cancel":
                    next_beat = time.monotonic()
                else:
                    self._on_bell()

    def _attach(self, conn: psycopg.Connection[Any]) -> None:
        if not self._keeps_backend:
            if not self._is_attached:
                log.info("worker %s: through a pooler only its lease counts, and it polls for work", self._worker)
            return
        row = conn.execute(calls.ATTACH, (self._worker, self._queues), prepare=True).fetchone()
        assert row is not None
        if row[0] != self._channel:
            self._channel = row[0]
            conn.execute(f'listen "{self._channel}"')
            self._on_attach()

    def _heartbeat(self, conn: psycopg.Connection[Any]) -> None:
        workflow_ids, leases, steps = self._held()
        rows = conn.execute(
            calls.HEARTBEAT, calls.heartbeat(self._worker, workflow_ids, leases, steps), prepare=self._keeps_backend
        ).fetchall()
        for workflow_id, reason, lease in rows:
            if reason is not None:
                self._on_lost(workflow_id, lease, reason)
        if time.monotonic() < self._watch_until:
            self._give_back_strays(conn, workflow_ids)

    def _give_back_strays(self, conn: psycopg.Connection[Any], known: Sequence[str]) -> None:
        """Gives back what the database says we hold, and no claim has told us of since the last heartbeat.

        The answer to a claim can be lost, and the claim be committed only after we asked what it had brought.
        """
        rows = conn.execute(
            calls.RECLAIM, (self._worker, calls.plain_array(known)), prepare=self._keeps_backend
        ).fetchall()
        strays = {(row[0], row[1]) for row in rows}
        for workflow_id, lease in strays & self._strays:
            log.warning("worker %s: gives workflow %s back, which it never got to know of", self._worker, workflow_id)
            self._on_stray(lease)
            conn.execute(calls.RELEASE, (calls.plain_array([workflow_id]), calls.plain_array([lease])))
        self._strays = strays
