"""The systems that are compared. Each adapter is imported only when it is used, with what it depends on."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from benchmarks.systems._protocol import Drain, Engine, Load, Producer, Queue, Shape, System

TITLES = {
    "durable": "durable",
    "absurd": "Absurd",
    "dbos": "DBOS",
    "restate": "Restate",
    "procrastinate": "Procrastinate",
    "pgqueuer": "PgQueuer",
    "graphile_worker": "graphile-worker",
    "pg_boss": "pg-boss",
    "bare": "bare table",
}
NAMES = tuple(TITLES)

__all__ = ["NAMES", "Drain", "Engine", "Load", "Producer", "Queue", "Shape", "System", "TITLES", "load"]


def load(name: str) -> Any:
    """The adapter of a name: a System, a Queue or an Engine."""
    return import_module(f"benchmarks.systems.{name}").SYSTEM
