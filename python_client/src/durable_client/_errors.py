"""Every exception of the client.

    DurableError
     ├── WorkflowNotFound       WF001
     ├── LeaseLost              WF002
     ├── KeyConflict            WF003
     ├── WorkflowCancelled      WF004
     ├── InvalidArgument        WF005
     ├── PayloadTooLarge        WF006
     ├── WorkflowFailed         WF007   raised by Handle.result()
     │    ├── RecoveryLimitExceeded  WF009
     │    ├── WorkflowTimedOut       WF010
     │    └── ChildFailed            raised inside a workflow by a child of it
     ├── StepFailed             WF007   raised inside a workflow by the step that failed
     │    ├── StepInterrupted   WF008
     │    └── StepTimedOut      WF012
     ├── SchemaMismatch         WF011
     ├── WorkflowEnded          WF013
     ├── WaitTimedOut           WF014   raised inside a workflow by a wait
     ├── ApprovalClosed         WF015
     └── ResultTimeout                  raised by Handle.result(timeout=…)

The codes are the SQLSTATEs that the functions of the schema raise; ``from_database`` maps one to the other.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

import psycopg


class DurableError(Exception):
    """Base of all errors of durable.

    ``message`` says what happened, ``detail`` what follows from it, ``hint`` what to do. ``code`` is the SQLSTATE.
    """

    code: ClassVar[str | None] = None

    def __init__(self, message: str, *, detail: str | None = None, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.detail = detail or None
        self.hint = hint or None

    def __str__(self) -> str:
        return "\n".join(
            [self.message]
            + [f"{label}: {text}" for label, text in (("DETAIL", self.detail), ("HINT", self.hint)) if text]
        )


class WorkflowNotFound(DurableError):
    """No workflow, or no approval, with this id is stored."""

    code = "WF001"


class LeaseLost(DurableError):
    """The workflow was taken over by another worker, given back, or ended."""

    code = "WF002"


class KeyConflict(DurableError):
    """The idempotency key belongs to a workflow of another name."""

    code = "WF003"


class WorkflowCancelled(DurableError):
    """The workflow was cancelled."""

    code = "WF004"


class InvalidArgument(DurableError):
    """A value that cannot be accepted; nothing was changed."""

    code = "WF005"


class PayloadTooLarge(DurableError):
    """An input, output, step result or error is over the setting ``max_payload_bytes``."""

    code = "WF006"


class _Failure(DurableError):
    """An error that was stored: ``error`` is the stored JSON, ``type`` the name of the exception's class."""

    def __init__(
        self, message: str, *, error: dict[str, Any], detail: str | None = None, hint: str | None = None
    ) -> None:
        super().__init__(message, detail=detail, hint=hint)
        self.error = error
        self.type = str(error.get("type", "Error"))
        trace = error.get("traceback")
        self.traceback = None if trace is None else str(trace)


class WorkflowFailed(_Failure):
    """The workflow ended as failed. ``workflow_id`` names it; ``traceback`` is the stored one, if there is one."""

    code = "WF007"
    _hint = "See its steps with: durable show {workflow_id}. Let it go on with: durable retry {workflow_id}."

    def __init__(self, workflow_id: str, error: dict[str, Any]) -> None:
        kind, message = error.get("type", "Error"), error.get("message", "")
        super().__init__(
            f"workflow {workflow_id} failed: {kind}: {message}",
            error=error,
            hint=self._hint.format(workflow_id=workflow_id),
        )
        self.workflow_id = workflow_id


class RecoveryLimitExceeded(WorkflowFailed):
    """The workflow was to blame for more deaths of its workers in a row than the setting ``max_crashes`` allows."""

    code = "WF009"
    _hint = (
        "Find out what kills the worker: a step that `durable show {workflow_id}` does not list as completed, or the "
        "code before it; see the logs of the worker and of the kernel. Then: durable retry {workflow_id}."
    )


class WorkflowTimedOut(WorkflowFailed):
    """The timeout of the workflow passed before it ended."""

    code = "WF010"


class ChildFailed(WorkflowFailed):
    """A child of this workflow failed or was cancelled: ``status`` says which, and ``workflow_id`` names the child.

    The same is raised when the workflow is replayed, also when the child was retried since. ``step`` is the step that
    waited for it: a workflow that fails with this error has its failed children run again when it is retried.
    """

    def __init__(self, workflow_id: str, status: str, step: str, error: dict[str, Any]) -> None:
        super().__init__(workflow_id, error)
        self.status = status
        self.step = step
        if status == "cancelled":
            self.message = f"workflow {workflow_id} was cancelled: {error.get('message', '')}"


class StepFailed(_Failure):
    """A step failed for good. ``step`` is its name; the original exception is the cause where it is at hand.

    The same exception is raised when the workflow is replayed, so that handlers behave alike.
    """

    code = "WF007"

    def __init__(self, workflow_id: str, step: str, error: dict[str, Any]) -> None:
        super().__init__(
            f"workflow {workflow_id}, step {step!r}: {error.get('type', 'Error')}: {error.get('message', '')}",
            error=error,
        )
        self.workflow_id = workflow_id
        self.step = step


class StepInterrupted(StepFailed):
    """An at-most-once step was begun before a crash; whether it took effect is not known, and it is not run again."""

    code = "WF008"


class StepTimedOut(StepFailed):
    """A step ran longer than its timeout."""

    code = "WF012"


class SchemaMismatch(DurableError):
    """The schema in the database is missing, or of a version that does not fit this client."""

    code = "WF011"


class WorkflowEnded(DurableError):
    """A message was sent to a workflow that has ended."""

    code = "WF013"


class WaitTimedOut(DurableError, TimeoutError):
    """What a workflow waited for did not come in time. The same is raised when the workflow is replayed."""

    code = "WF014"


class ApprovalClosed(DurableError):
    """The approval was decided otherwise, has expired, or was withdrawn with the end of its workflow."""

    code = "WF015"


class ResultTimeout(DurableError, TimeoutError):
    """The workflow did not end within the timeout of ``Handle.result()``; it goes on."""


RIGHTS_HINT = (
    "The owner of the schema gives your role what it needs: durable.grant_client('role') to enqueue and to steer, "
    "grant_observer() to look, grant_approver() to decide, grant_worker() to run workers, grant_admin() for schedules "
    "and settings."
)

_BY_CODE: dict[str, type[DurableError]] = {
    cls.code: cls
    for cls in (
        WorkflowNotFound, LeaseLost, KeyConflict, WorkflowCancelled, InvalidArgument, PayloadTooLarge, SchemaMismatch,
        WorkflowEnded, ApprovalClosed,
    )
    if cls.code
}  # fmt: skip

_STEP_BY_CODE: dict[str, type[StepFailed]] = {"WF008": StepInterrupted, "WF012": StepTimedOut}
_WORKFLOW_BY_CODE: dict[str, type[WorkflowFailed]] = {"WF009": RecoveryLimitExceeded, "WF010": WorkflowTimedOut}


def workflow_failed(workflow_id: str, error: dict[str, Any]) -> WorkflowFailed:
    """The exception for the stored error of a failed workflow."""
    return _WORKFLOW_BY_CODE.get(str(error.get("code")), WorkflowFailed)(workflow_id, error)


def step_failed(workflow_id: str, step: str, error: dict[str, Any]) -> StepFailed:
    """The exception for the stored error of a failed step."""
    return _STEP_BY_CODE.get(str(error.get("code")), StepFailed)(workflow_id, step, error)


def from_outcome(code: str, subject: str) -> DurableError:
    """The exception for the code that a batch call reported for one of its items."""
    text = {
        "WF001": "the workflow is not stored",
        "WF002": "the lease is lost",
        "WF004": "the workflow was cancelled",
        "WF005": "the step name, the error or the wait is not valid",
        "WF006": "the payload is over the setting max_payload_bytes, or nested too deep",
    }.get(code, code)
    return _BY_CODE.get(code, DurableError)(f"{subject}: {text}")


def from_database(error: psycopg.Error) -> DurableError | None:
    """The exception for an error of the schema; None when it is not one of its errors."""
    state = error.sqlstate or ""
    if isinstance(error, psycopg.DataError) and "NUL" in str(error):
        return InvalidArgument(f"a text cannot be passed to Postgres: {error}", hint="Remove the NUL character.")
    primary = error.diag.message_primary or ""
    if state in ("3F000", "42883", "42P01") and "durable" in primary:
        return SchemaMismatch(
            f"the schema durable is not installed in this database, or of another version: {primary}",
            hint="Install it with `durable install`, or with CREATE EXTENSION durable.",
        )
    if state == "42501" and "durable" in primary:
        return SchemaMismatch(
            f"this role may not use durable: {primary}",
            hint=RIGHTS_HINT,
        )
    if state.startswith("54"):
        return PayloadTooLarge(
            f"a value, or the answer, is too large for Postgres or nested too deep: {primary}",
            hint="Store the data elsewhere and pass a reference; durable.step_result() reads the output of one step.",
        )
    if state.startswith("22"):
        return InvalidArgument(
            f"Postgres does not accept a value: {primary}", hint="Pass ids as UUIDs (handle.workflow_id), JSON as JSON."
        )
    cls = _BY_CODE.get(state)
    if cls is None:
        return None
    diag = error.diag
    return cls(diag.message_primary or str(error), detail=diag.message_detail, hint=diag.message_hint)


@contextmanager
def translated() -> Iterator[None]:
    """Raises errors of the schema as the exceptions of this module."""
    try:
        yield
    except UnicodeEncodeError as error:
        raise InvalidArgument(f"a text cannot be passed to Postgres: {error}", hint="Pass valid Unicode.") from error
    except psycopg.Error as error:
        mapped = from_database(error)
        if mapped is None:
            raise
        raise mapped from error
