"""What an adapter does for the scenarios."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from psycopg import Connection

from benchmarks.processes import IN_FLIGHT, WorkerOptions

# Enqueues one workflow by name with an input, as an application would.
Producer = Callable[[str, dict[str, Any]], None]


@dataclass(frozen=True, slots=True)
class Drain:
    """What is known of a backlog that was worked off. The times are the server's where it keeps them."""

    completed: int
    with_output: int | None  # None where the system keeps no outputs
    checkpoints: int
    seconds: float  # from the start of the first workflow to the end of the last


@dataclass(frozen=True, slots=True)
class Shape:
    """How a backlog is worked off."""

    processes: int
    in_flight: int  # in each process

    def __str__(self) -> str:
        return f"{self.processes} × {self.in_flight:,} in flight"


@dataclass(frozen=True, slots=True)
class Load:
    """A backlog that worker processes worked off. What belongs to Postgres is 0 for a system that does without."""

    drain: Drain
    worker_cpu: float  # seconds, the start of the processes included
    server_cpu: float  # seconds, of running
    wal_bytes: int = 0  # of enqueueing and running
    commits: int = 0  # of running
    statements: int = 0  # of running, while the cluster counts them


class Queue(Protocol):
    """A system on Postgres that works off a backlog."""

    name: str

    def throughput_settings(self, in_flight: int = IN_FLIGHT) -> dict[str, Any]:
        """What is chosen for speed; the profile "default" chooses nothing."""

    def install(self, dsn: str) -> None:
        """Puts the schema into an empty database."""

    def enqueue_backlog(self, dsn: str, workflow: str, count: int) -> None: ...

    def serve(self, options: WorkerOptions) -> None:
        """Runs a worker in this process, until it is told to stop by a signal."""

    def unfinished(self, conn: Connection[Any]) -> bool: ...

    def drained(self, conn: Connection[Any]) -> Drain: ...


class System(Queue, Protocol):
    """One whose clients the scenarios also use one by one."""

    def producer(self, dsn: str) -> AbstractContextManager[Producer]: ...


@runtime_checkable
class Engine(Protocol):
    """A server with a storage of its own."""

    name: str

    def throughput_settings(self, in_flight: int = IN_FLIGHT) -> dict[str, Any]: ...

    def run_load(self, workflow: str, count: int, shape: Shape) -> Load: ...
