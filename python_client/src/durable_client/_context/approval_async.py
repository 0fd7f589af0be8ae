"""An approval that a workflow has requested, as the workflow's code has it.

Written by hand; the plain twin, ``approval.py``, is generated from it by ``tools/async_to_sync.py``.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from .._approvals import Decision
from .._conditions import Approval


class AsyncApprovalRequest(Approval):
    """What a workflow has asked people. It is also something to wait for, with ``wait_any`` and ``wait_all``.

    ``approval_id`` is what ``durable.decide()`` takes: put it into the message that tells whoever decides.
    """

    def __init__(self, approval_id: str, step_name: str, wait: Callable[[], Awaitable[Decision]]) -> None:
        super().__init__(approval_id, step_name)
        self._wait = wait

    def decision(self) -> Awaitable[Decision]:
        """Waits until it is decided, or has expired."""
        decision: Awaitable[Decision] = self._wait()
        return decision
