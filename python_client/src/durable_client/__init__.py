"""Durable workflows in Python on nothing but Postgres."""

from ._app import Durable
from ._approval import ApprovalRequest
from ._approval_async import AsyncApprovalRequest
from ._approvals import ApprovalRecord, Decision
from ._child import Child
from ._child_async import AsyncChild
from ._client import Client, Handle
from ._client_async import AsyncClient, AsyncHandle
from ._conditions import Event, Message, Met, Timer
from ._context import Context
from ._context_async import AsyncContext
from ._definitions import Step, Workflow
from ._embedded import EmbeddedPostgres, EmbeddedPostgresError
from ._errors import (
    ApprovalClosed,
    ChildFailed,
    DurableError,
    InvalidArgument,
    KeyConflict,
    LeaseLost,
    PayloadTooLarge,
    RecoveryLimitExceeded,
    ResultTimeout,
    SchemaMismatch,
    StepFailed,
    StepInterrupted,
    StepTimedOut,
    WaitTimedOut,
    WorkflowCancelled,
    WorkflowEnded,
    WorkflowFailed,
    WorkflowNotFound,
    WorkflowTimedOut,
)
from ._records import StepRecord
from ._retry import Retry
from ._run import StepInfo, WorkflowInterrupted, current_step
from ._schedules import BackfillStep, Firing, Schedule
from ._schema import install, schema_sql
from ._version import __version__
from ._worker import Worker

__all__ = [
    "ApprovalClosed",
    "ApprovalRecord",
    "ApprovalRequest",
    "AsyncApprovalRequest",
    "AsyncChild",
    "AsyncClient",
    "AsyncContext",
    "AsyncHandle",
    "BackfillStep",
    "Child",
    "ChildFailed",
    "Client",
    "Context",
    "Decision",
    "Durable",
    "DurableError",
    "EmbeddedPostgres",
    "EmbeddedPostgresError",
    "Event",
    "Firing",
    "Handle",
    "InvalidArgument",
    "KeyConflict",
    "LeaseLost",
    "Message",
    "Met",
    "PayloadTooLarge",
    "RecoveryLimitExceeded",
    "ResultTimeout",
    "Retry",
    "Schedule",
    "SchemaMismatch",
    "Step",
    "StepFailed",
    "StepInfo",
    "StepInterrupted",
    "StepRecord",
    "StepTimedOut",
    "Timer",
    "WaitTimedOut",
    "Worker",
    "Workflow",
    "WorkflowCancelled",
    "WorkflowEnded",
    "WorkflowFailed",
    "WorkflowInterrupted",
    "WorkflowNotFound",
    "WorkflowTimedOut",
    "__version__",
    "current_step",
    "install",
    "schema_sql",
]
