"""An approval that a workflow has requested, as the workflow's code has it.

Generated from ``approval_async.py`` by ``tools/async_to_sync.py``; do not edit.
"""

from __future__ import annotations

from collections.abc import Callable

from .._approvals import Decision
from .._conditions import Approval


class ApprovalRequest(Approval):
    """What a workflow has asked people. It is also something to wait for, with ``wait_any`` and ``wait_all``.

    ``approval_id`` is what ``durable.decide()`` takes: put it into the message that tells whoever decides.
    """

    def __init__(self, approval_id: str, step_name: str, wait: Callable[[], Decision]) -> None:
        super().__init__(approval_id, step_name)
        self._wait = wait

    def decision(self) -> Decision:
        """Waits until it is decided, or has expired."""
        decision: Decision = self._wait()
        return decision
