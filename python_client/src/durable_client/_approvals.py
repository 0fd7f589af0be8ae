"""What workflows ask people, and what they are told."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Literal, get_args

from . import _codec
from ._definitions import check_texts
from ._durations import Duration, seconds
from ._errors import InvalidArgument

ApprovalState = Literal["pending", "decided", "expired", "withdrawn"]


@dataclass(frozen=True, slots=True)
class Decision:
    """What was decided on an approval or, when ``expired``, that nobody did in time; the rest is then None.

    ``decision`` is ``"approved"``, ``"rejected"`` or what else ``durable.decide()`` was told, with ``data``. The truth
    of a decision is whether it is ``approved``.
    """

    approval_id: str
    decision: str | None
    data: Any
    by: str | None
    comment: str | None
    decided_at: datetime | None
    expired: bool

    @property
    def approved(self) -> bool:
        """Whether the decision is ``"approved"``."""
        return self.decision == "approved"

    def __bool__(self) -> bool:
        # So that `if decision:` is not true of a rejection.
        return self.approved


@dataclass(frozen=True, slots=True)
class ApprovalRecord:
    """An approval as ``durable.approvals`` shows it. ``state`` is pending, decided, expired or withdrawn.

    A ``form`` or ``data`` that Python cannot take in prints as the reason; any use of it raises InvalidArgument.
    """

    approval_id: str
    workflow_id: str
    workflow: str
    step_name: str
    subject: str
    assignee: str | None
    form: Any
    requested_at: datetime
    expires_at: datetime | None
    state: ApprovalState
    decision: str | None
    data: Any
    decided_by: str | None
    comment: str | None
    decided_at: datetime | None


def record_of(row: tuple[Any, ...]) -> ApprovalRecord:
    """An approval by its row of ``calls.APPROVALS``, in which ``form`` and ``data`` are JSON text."""
    record = ApprovalRecord(*row)
    return replace(
        record,
        form=_codec.parse_or_mark(record.form, f"approval {record.approval_id}: the form"),
        data=_codec.parse_or_mark(record.data, f"approval {record.approval_id}: the data of the decision"),
    )


_decode = _codec.decoder(Decision)


def decision_of(value: Any) -> Decision:
    """The decision by what a wait for it ended with."""
    decision: Decision = _codec.decode(value, _decode, "the decision on an approval")
    return decision


def request_parameters(subject: str, assignee: str | None, form: Any, expires: Duration | None) -> list[Any]:
    """What ``durable.request_approval()`` takes after the name of the step."""
    check_texts(subject=subject, assignee=assignee)
    return [
        subject,
        assignee,
        None if form is None else _codec.encode(form, f"the form of the approval {subject!r}"),
        None if expires is None else seconds(expires),
    ]


def listed(assignee: str | None, state: str | None) -> tuple[str, list[Any]]:
    """The condition for a list of approvals, without parts that would keep it from an index, and its parameters."""
    check_texts(assignee=assignee, state=state)
    if state is not None and state not in get_args(ApprovalState):
        raise InvalidArgument(f"state must be one of {', '.join(get_args(ApprovalState))}, not {state!r}")
    given = [("assignee = %s", assignee), ("state = %s", state)]
    parts = [(condition, value) for condition, value in given if value is not None]
    return " and ".join(condition for condition, _ in parts) or "true", [value for _, value in parts]
