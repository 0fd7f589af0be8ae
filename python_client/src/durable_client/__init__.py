"""Durable workflows in Python on nothing but Postgres."""

from ._app import Durable
from ._approvals import ApprovalRecord, Decision
from ._client.client import Client, Handle
from ._client.client_async import AsyncClient, AsyncHandle
from ._client.schema import install, schema_sql
from ._conditions import Event, Message, Met, Timer
from ._context.approval import ApprovalRequest
from ._context.approval_async import AsyncApprovalRequest
from ._context.child import Child
from ._context.child_async import AsyncChild
from ._context.context import Context
from ._context.context_async import AsyncContext
from ._context.run import StepInfo, WorkflowInterrupted, current_step
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
from ._schedules import BackfillStep, Firing, Schedule
from ._version import __version__
from ._worker.worker import Worker

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
