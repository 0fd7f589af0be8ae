"""How the end of a step or a workflow is told: stored outcomes, errors as JSON, and who may not go on."""

from __future__ import annotations

import json
import traceback
from typing import Any

from .. import _codec
from .._errors import ChildFailed, DurableError, LeaseLost, StepFailed, WorkflowCancelled, WorkflowNotFound
from .invoke import BodyTimedOut
from .run import WorkflowInterrupted

_LONGEST_TEXT = 20_000


INTERRUPTED = {
    "type": "StepInterrupted",
    "code": "WF008",
    "message": "it was begun before a crash and may have taken effect",
}


class Stored(Exception):
    """A step has an outcome already, as JSON text: its output, or its error."""

    def __init__(self, output: str | None, error: str | None) -> None:
        super().__init__("the step is already done")
        self.output = output
        self.error = error


def for_owner(error: BaseException) -> BaseException:
    """Errors that mean that this worker does not own the workflow any more end its code."""
    if isinstance(error, LeaseLost | WorkflowCancelled | WorkflowNotFound):
        return WorkflowInterrupted(error)
    return error


def error_json(error: BaseException) -> str:
    """An exception as the JSON that is stored: type, message, traceback, and the step that it came from."""
    fields: dict[str, Any] = {"type": _type_name(error), "message": _message(error), "traceback": _traceback(error)}
    if isinstance(error, BodyTimedOut):
        fields |= {"type": "StepTimedOut", "code": "WF012"}
    elif isinstance(error, StepFailed):
        fields |= {"type": error.type, "message": error.error.get("message", ""), "step": error.step}
        fields |= {"code": error.code} if error.code != StepFailed.code else {}
    elif isinstance(error, DurableError):
        fields |= {"step": error.step} if isinstance(error, ChildFailed) else {}
        fields |= {"message": error.message, "detail": error.detail, "hint": error.hint, "code": error.code}
    return json.dumps(
        {name: _storable(value) for name, value in fields.items() if value is not None}, ensure_ascii=True
    )


def short_error_json(error: BaseException) -> str:
    """The same in a few hundred bytes, for when the whole cannot be stored."""
    return json.dumps({"type": _storable(_type_name(error))[:200], "message": _storable(_message(error))[:200]})


def in_short(error: BaseException) -> str:
    """One line for the log."""
    text = _message(error).partition("\n")[0]
    return f"{_type_name(error)}: {text[:1000]}"


def _message(error: BaseException) -> str:
    try:
        return str(error)
    except Exception as unspeakable:
        return f"(its message cannot be told: {type(unspeakable).__name__})"


def _type_name(error: BaseException) -> str:
    kind = type(error)
    return (
        kind.__qualname__ if kind.__module__ in ("builtins", "__main__") else f"{kind.__module__}.{kind.__qualname__}"
    )


def _traceback(error: BaseException) -> str:
    try:
        text = "".join(traceback.format_exception(error))
    except Exception:
        text = "".join(traceback.format_tb(error.__traceback__))
    return text if len(text) <= _LONGEST_TEXT else "…" + text[-_LONGEST_TEXT:]


def _storable(value: Any) -> str:
    """The beginning of a text, without what jsonb refuses: NUL characters and halves of surrogate pairs."""
    text = value if isinstance(value, str) else _codec.text_of(value)
    return text[: _LONGEST_TEXT + 1].replace("\x00", "\ufffd").encode(errors="replace").decode()
