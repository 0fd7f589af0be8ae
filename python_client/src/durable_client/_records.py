"""What the client returns about steps."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any


@dataclass(frozen=True, slots=True)
class StepRecord:
    """A step as ``durable.workflow_steps`` shows it.

    An ``output`` or ``error`` that Python cannot take in prints as the reason; any use of it raises InvalidArgument.
    """

    name: str
    status: str
    attempt: int
    output: Any
    error: dict[str, Any] | None
    started_at: datetime | None
    completed_at: datetime | None
    retry_at: datetime | None
