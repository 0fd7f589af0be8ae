"""What an adapter does for the scenarios."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

from psycopg import Connection

from benchmarks.processes import Profile

# Enqueues one workflow by name with an input, as an application would.
Producer = Callable[[str, dict[str, Any]], None]


@dataclass(frozen=True, slots=True)
class Drain:
    """What the database says about a backlog that was worked off. The times are the server's."""

    completed: int
    with_output: int
    checkpoints: int
    seconds: float  # from the start of the first workflow to the end of the last


class System(Protocol):
    name: str
    throughput_settings: ClassVar[dict[str, Any]]  # what was chosen for speed; the profile "default" chooses nothing

    def install(self, dsn: str) -> None:
        """Puts the schema into an empty database."""

    def enqueue_backlog(self, dsn: str, workflow: str, count: int) -> None: ...

    def producer(self, dsn: str) -> AbstractContextManager[Producer]: ...

    def serve(self, dsn: str, profile: Profile, mark: Callable[[int], None]) -> None:
        """Runs a worker in this process, until it is told to stop by a signal."""

    def unfinished(self, conn: Connection[Any]) -> bool: ...

    def drained(self, conn: Connection[Any]) -> Drain: ...
