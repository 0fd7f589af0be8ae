"""A worker process that dies, and is replaced."""

from __future__ import annotations

import subprocess
from pathlib import Path
from types import TracebackType

from typing_extensions import Self

from .database import DURABLE


class Worker:
    """`durable worker` for one app. Leaving the context ends it, whatever it does."""

    def __init__(self, app: str, log: Path) -> None:
        self._app = app
        self._log = log
        self._process: subprocess.Popen[bytes] | None = None
        self.kills = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._end()

    def start(self) -> None:
        with self._log.open("ab") as log:
            self._process = subprocess.Popen([DURABLE, "worker", self._app], stdout=log, stderr=log)

    def kill(self) -> None:
        """SIGKILL: no handler runs, nothing is flushed, nobody says goodbye."""
        self._end()
        self.kills += 1

    def drain(self) -> None:
        """SIGTERM: what is under way ends before."""
        if self._process is not None:
            self._process.terminate()
            self._process.wait(60)

    def last_words(self) -> str:
        return "\n".join(self._log.read_text(errors="replace").splitlines()[-40:])

    def _end(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
