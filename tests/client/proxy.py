"""A way to the server that loses answers, or ends the client before or after a call: the server has done it or has not."""

from __future__ import annotations

import contextlib
import re
import socket
import struct
import threading
from collections.abc import Callable
from pathlib import Path


class Proxy:
    """Listens on a Unix socket and passes on what clients and the server say, statement by statement.

    ``calls`` are the functions of durable that were called so far. After ``crash(function, n, when, kill)``, ``kill`` is
    called at the n-th call of a function, before it reaches the server, or after it was executed; the client hears
    nothing either way. After ``lose(text)`` the next statement that contains the text is executed; its answer is thrown away once the
    server is ready again, and the connection is closed.
    """

    def __init__(self, server: Path, directory: Path) -> None:
        self._server = server
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(directory / ".s.PGSQL.5432"))
        self._listener.listen(64)
        self._sockets: list[socket.socket] = []
        self._lock = threading.Lock()
        self._to_lose: list[str] = []
        self.lost: list[str] = []
        self.calls: list[str] = []
        self._crash: tuple[str, int, str, Callable[[], object]] | None = None
        threading.Thread(target=self._accept, daemon=True).start()

    def lose(self, *texts: str) -> None:
        with self._lock:
            self._to_lose.extend(texts)

    def crash(self, function: str, n: int, when: str, kill: Callable[[], object]) -> None:
        with self._lock:
            self.calls.clear()
            self._crash = (function, n, when, kill)

    def crashes(self, statement: str) -> tuple[str, Callable[[], object]] | None:
        """When the client ends at this statement, if it does, and what ends it."""
        with self._lock:
            called = re.search(r"durable\.(\w+)\(", statement)
            if called is None:
                return None
            self.calls.append(called[1])
            if self._crash is not None:
                function, n, when, kill = self._crash
                if called[1] == function and self.calls.count(function) == n:
                    self._crash = None
                    return when, kill
            return None

    def close(self) -> None:
        for one in [self._listener, *self._sockets]:
            _close(one)

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            server = socket.socket(socket.AF_UNIX)
            server.connect(str(self._server))
            self._sockets += [client, server]
            _Conversation(self, client, server)

    def take(self, statement: str) -> bool:
        """Whether the answer to this statement is to be lost; counts it if so."""
        with self._lock:
            for text in self._to_lose:
                if text in statement:
                    self._to_lose.remove(text)
                    self.lost.append(text)
                    return True
        return False


class _Conversation:
    """One connection, in two threads."""

    def __init__(self, proxy: Proxy, client: socket.socket, server: socket.socket) -> None:
        self._proxy = proxy
        self._client = client
        self._server = server
        self._prepared: dict[bytes, str] = {}
        self._losing = threading.Event()
        self._kill: Callable[[], object] | None = None
        for call in (self._from_client, self._from_server):
            threading.Thread(target=call, daemon=True).start()

    def _from_client(self) -> None:
        with contextlib.suppress(OSError, EOFError):
            (length,) = struct.unpack("!i", start := _read(self._client, 4))
            self._server.sendall(start + _read(self._client, length - 4))
            while True:
                kind, body, whole = _message(self._client)
                statement = None
                if kind == b"P":
                    name, text, _ = body.split(b"\0", 2)
                    self._prepared[name] = text.decode()
                elif kind == b"B":
                    statement = self._prepared.get(body.split(b"\0", 2)[1])
                elif kind == b"Q":
                    statement = body.rstrip(b"\0").decode()
                crash = None if statement is None else self._proxy.crashes(statement)
                if crash is not None and crash[0] == "before":
                    crash[1]()
                    break
                if crash is not None:
                    self._kill = crash[1]
                    self._losing.set()
                elif statement is not None and self._proxy.take(statement):
                    self._losing.set()
                self._server.sendall(whole)
        self._hang_up()

    def _from_server(self) -> None:
        with contextlib.suppress(OSError, EOFError):
            while True:
                kind, _, whole = _message(self._server)
                if not self._losing.is_set():
                    self._client.sendall(whole)
                elif kind == b"Z":
                    if self._kill is not None:
                        self._kill()
                    break
        self._hang_up()

    def _hang_up(self) -> None:
        _close(self._client)
        _close(self._server)


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
