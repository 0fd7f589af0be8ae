"""What the bodies of steps really did: a file that survives the death of the process that wrote it."""

from __future__ import annotations

import asyncio
import json
import os
import time
from pathlib import Path
from typing import Any

PATIENCE = 60.0
_LOOK = 0.005


class Journal:
    """Notes that processes append, and holds that keep a step where it is until the test lets it go on."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.path.touch()

    def note(self, *values: Any) -> None:
        file = os.open(self.path, os.O_WRONLY | os.O_APPEND)
        try:
            os.write(file, (json.dumps(values) + "\n").encode())
        finally:
            os.close(file)

    def read(self) -> list[list[Any]]:
        return [json.loads(line) for line in self.path.read_text().splitlines()]

    def count(self, *values: Any) -> int:
        """How many notes begin with these values."""
        return sum(note[: len(values)] == list(values) for note in self.read())

    def wait(self, *values: Any, times: int = 1) -> None:
        give_up = time.monotonic() + PATIENCE
        while self.count(*values) < times:
            if time.monotonic() > give_up:
                raise AssertionError(f"{values} was not noted {times} times: {self.read()}")
            time.sleep(_LOOK)

    def _hold(self, name: str) -> Path:
        return self.path.with_name(f"{self.path.name}.hold.{name}")

    def hold(self, name: str) -> None:
        """Makes whoever passes ``name`` wait until ``release``."""
        self._hold(name).touch()

    def release(self, name: str) -> None:
        self._hold(name).unlink()

    def pass_by(self, name: str) -> None:
        while self._hold(name).exists():
            time.sleep(_LOOK)

    async def pass_by_async(self, name: str) -> None:
        while self._hold(name).exists():
            await asyncio.sleep(_LOOK)
