"""A child of a workflow, as the workflow's code has it.

Generated from ``child_async.py`` by ``tools/async_to_sync.py``; do not edit.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, TypeVar

from .._conditions import ChildEnd
from .._durations import Duration

R = TypeVar("R")


class Child(ChildEnd, Generic[R]):
    """A child that was started. It is also something to wait for, with ``wait_any`` and ``wait_all``."""

    def __init__(self, workflow_id: str, join: Callable[[Duration | None], Any]) -> None:
        super().__init__(workflow_id)
        self._join = join

    def result(self, timeout: Duration | None = None) -> R:
        """Waits for the end of the child and returns its output.

        Raises ChildFailed when it failed or was cancelled, WaitTimedOut when it has not ended within ``timeout``, which
        counts from the first call, also after a crash.
        """
        result: R = self._join(timeout)
        return result
