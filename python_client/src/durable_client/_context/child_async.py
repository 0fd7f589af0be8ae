"""A child of a workflow, as the workflow's code has it.

Written by hand; the plain twin, ``child.py``, is generated from it by ``tools/async_to_sync.py``.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Generic, TypeVar

from .._conditions import ChildEnd
from .._durations import Duration

R = TypeVar("R")


class AsyncChild(ChildEnd, Generic[R]):
    """A child that was started. It is also something to wait for, with ``wait_any`` and ``wait_all``."""

    def __init__(self, workflow_id: str, join: Callable[[Duration | None], Awaitable[Any]]) -> None:
        super().__init__(workflow_id)
        self._join = join

    def result(self, timeout: Duration | None = None) -> Awaitable[R]:
        """Waits for the end of the child and returns its output.

        Raises ChildFailed when it failed or was cancelled, WaitTimedOut when it has not ended within ``timeout``, which
        counts from the first call, also after a crash.
        """
        result: Awaitable[R] = self._join(timeout)
        return result
