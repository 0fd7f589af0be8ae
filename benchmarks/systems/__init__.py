"""The systems that are compared. Each adapter is imported only when it is used, with what it depends on."""

from __future__ import annotations

from importlib import import_module

from benchmarks.systems._protocol import Drain, Producer, System

TITLES = {"durable": "durable", "absurd": "Absurd", "dbos": "DBOS"}
NAMES = tuple(TITLES)

__all__ = ["NAMES", "Drain", "Producer", "System", "TITLES", "load"]


def load(name: str) -> System:
    system: System = import_module(f"benchmarks.systems.{name}").SYSTEM
    return system
