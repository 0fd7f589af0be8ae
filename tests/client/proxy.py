"""A way to the server that loses answers, or kills the client before or after a call."""

from __future__ import annotations

import contextlib
import json
import os
import re
import select
import signal
import socket
import struct
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

When = Literal["before", "after"]
WHEN: tuple[When, ...] = ("before", "after")
# The parts of a tick that move workflows on; the others tidy up.
_MOVES = ("recovered", "woken", "signalled", "timed_out", "fired", "released", "paused", "backfilled")


@dataclass(frozen=True)
class Crash:
    """SIGKILL to whoever makes a call for the ``turn``-th time, from 1: before it has any effect, or after its commit.

    ``call`` is the name of a function of durable, or the first word of another statement, BEGIN for example. Claims and
    ticks come by the clock; those that found nothing to do do not count.
    """

    call: str
    turn: int
    when: When

    def __str__(self) -> str:
        return f"{self.when} {self.call} {self.turn}"


class Proxy:
    """Listens on a Unix socket and passes on what clients and the server say, statement by statement.

    After ``lose(text)`` the next statement that contains the text, and is no claim that finds nothing, is executed; its
    answer is thrown away once the server is ready again, and the connection is closed. After ``crash_at(…)`` the client
    that comes to that point is killed; it hears no answer. ``calls`` are the names of the calls since then, in the order
    of the answers.
    """

    def __init__(self, server: Path, directory: Path) -> None:
        self._server = server
        self._directory = directory
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(directory / ".s.PGSQL.5432"))
        self._listener.listen(64)
        self._conversations: list[_Conversation] = []
        self._lock = threading.Lock()
        self._to_lose: list[str] = []
        self.lost: list[str] = []
        self._crash: Crash | None = None
        self.calls: list[str] = []
        # The process that was killed.
        self.killed: int | None = None
        threading.Thread(target=self._accept, daemon=True).start()

    def dsn(self, dsn: str) -> str:
        """The way through the proxy to the database of a connection string."""
        return re.sub(r"host=\S+", f"host={self._directory}", dsn)

    def lead_to(self, server: Path) -> None:
        """From now on new connections lead to another server, as an address does after a failover."""
        self._server = server

    def lose(self, *texts: str) -> None:
        with self._lock:
            self._to_lose.extend(texts)

    def crash_at(self, crash: Crash | None) -> None:
        with self._lock:
            self._crash = crash
            self._to_lose.clear()
            self.calls = []
            self.killed = None

    def is_quiet(self) -> bool:
        """Whether no request is under way: what has taken effect so far is among the calls."""
        return not any(conversation.is_passing_on for conversation in self._conversations)

    def close(self) -> None:
        _close(self._listener)
        for conversation in self._conversations:
            conversation.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            server = socket.socket(socket.AF_UNIX)
            try:
                server.connect(str(self._server))
            except OSError:
                server.close()
                _close(client)
                continue
            self._conversations = [one for one in self._conversations if one.is_open]
            self._conversations.append(_Conversation(self, client, server))

    # What the conversations ask

    def to_lose(self, statement: str) -> bool:
        """Whether the answer to this statement is to be lost; counts it if so."""
        with self._lock:
            for text in self._to_lose:
                if text in statement:
                    self._to_lose.remove(text)
                    self.lost.append(text)
                    return True
        return False

    def is_in_question(self, call: str) -> bool:
        """Whether the client is to be killed before a call of this name."""
        with self._lock:
            crash = self._crash
            return self.killed is None and crash is not None and (crash.call, crash.when) == (call, "before")

    def is_killed_before(self, call: str, pid: int) -> bool:
        return self.is_in_question(call) and self._is_the_one(call, pid, "before")

    def is_killed_after(self, call: str, pid: int) -> bool:
        with self._lock:
            self.calls.append(call)
        return self._is_the_one(call, pid, "after")

    def _is_the_one(self, call: str, pid: int, when: str) -> bool:
        with self._lock:
            crash = self._crash
            if self.killed is not None or crash is None or (crash.call, crash.when) != (call, when):
                return False
            if self.calls.count(call) != (crash.turn if when == "after" else crash.turn - 1):
                return False
            self.killed = pid
            os.kill(pid, signal.SIGKILL)
            return True


class _Conversation:
    """One connection."""

    def __init__(self, proxy: Proxy, client: socket.socket, server: socket.socket) -> None:
        self._proxy = proxy
        self._client = client
        self._server = server
        self._pid = struct.unpack("3i", client.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[0]
        self._prepared: dict[bytes, str] = {}
        self.is_open = True
        self.is_passing_on = False
        threading.Thread(target=self._run, daemon=True).start()

    def close(self) -> None:
        self.is_open = False
        _close(self._client)
        _close(self._server)

    def _run(self) -> None:
        try:
            with contextlib.suppress(OSError, EOFError):
                self._talk()
        finally:
            self.is_passing_on = False
            self.close()

    def _talk(self) -> None:
        (length,) = struct.unpack("!i", start := _read(self._client, 4))
        self._server.sendall(start + _read(self._client, length - 4))
        ready = select.poll()
        ready.register(self._client, select.POLLIN)
        ready.register(self._server, select.POLLIN)
        while True:
            # One at a time: the answer to a request may be what the server has just begun to say.
            if self._server.fileno() in {file for file, _ in ready.poll()}:
                self._client.sendall(_message(self._server)[2])
            else:
                self.is_passing_on = True
                self._pass_on_request()
                self.is_passing_on = False

    def _pass_on_request(self) -> None:
        """One statement with its answer, or what else the client says at once."""
        request = b""
        statement = None
        while True:
            kind, body, whole = _message(self._client)
            request += whole
            if kind == b"P":
                name, text, _ = body.split(b"\0", 2)
                self._prepared[name] = text.decode()
            elif kind == b"B":
                statement = self._prepared.get(body.split(b"\0", 2)[1])
            elif kind == b"Q":
                statement = body.rstrip(b"\0").decode()
            if kind not in b"PBDEC":
                break
        if statement is None:
            self._server.sendall(request)
            return
        called = re.search(r"durable\.(\w+)\(", statement)
        call = called[1] if called is not None else statement.split(None, 1)[0].upper()
        by_the_clock = call in ("claim", "tick")
        if by_the_clock and self._proxy.is_in_question(call):
            self._try(call, request)
            return
        if not by_the_clock and self._proxy.is_killed_before(call, self._pid):
            raise EOFError
        answer, rows = self._answer(request)
        if (call != "claim" or rows) and self._proxy.to_lose(statement):
            raise EOFError
        if _has_effect(call, rows) and self._proxy.is_killed_after(call, self._pid):
            raise EOFError
        self._client.sendall(answer)

    def _try(self, call: str, request: bytes) -> None:
        """Whether a call has an effect is known only once it is made: so it is made, and committed only if it may be."""
        self._answer(_query("begin"))
        answer, rows = self._answer(request)
        if _has_effect(call, rows) and self._proxy.is_killed_before(call, self._pid):
            raise EOFError
        self._answer(_query("commit"))
        if _has_effect(call, rows):
            self._proxy.is_killed_after(call, self._pid)
        # The last byte says whether the session is in a transaction.
        self._client.sendall(answer[:-1] + b"I")

    def _answer(self, request: bytes) -> tuple[bytes, list[str]]:
        """What the server says until it is ready again, and the first column of the rows; news are passed on."""
        self._server.sendall(request)
        answer = b""
        rows = []
        while True:
            kind, body, whole = _message(self._server)
            if kind in b"ANS":
                self._client.sendall(whole)
                continue
            answer += whole
            if kind == b"D":
                (length,) = struct.unpack("!i", body[2:6])
                # In binary form jsonb begins with the number of its version.
                rows.append(body[6 : 6 + max(length, 0)].decode(errors="replace").lstrip("\x01"))
            elif kind == b"Z":
                return answer, rows


def _has_effect(call: str, rows: list[str]) -> bool:
    if call == "claim":
        return bool(rows)
    if call == "tick":
        # None when it was cancelled.
        report = json.loads(rows[0]) if rows else {}
        return any(report.get(part) for part in _MOVES)
    return True


def _query(text: str) -> bytes:
    body = text.encode() + b"\0"
    return b"Q" + struct.pack("!i", len(body) + 4) + body


def _message(source: socket.socket) -> tuple[bytes, bytes, bytes]:
    """The kind, the body and the whole of the next message."""
    head = _read(source, 5)
    (length,) = struct.unpack("!i", head[1:])
    body = _read(source, length - 4)
    return head[:1], body, head + body


def _read(source: socket.socket, size: int) -> bytes:
    data = bytearray()
    while len(data) < size:
        part = source.recv(size - len(data))
        if not part:
            raise EOFError
        data += part
    return bytes(data)


def _close(one: socket.socket) -> None:
    with contextlib.suppress(OSError):
        one.shutdown(socket.SHUT_RDWR)
    one.close()
