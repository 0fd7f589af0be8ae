"""Writes docs/reference/python.md from the signatures and docstrings of durable_client."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import durable_client

from _reference import publish

PAGES = {
    "Declaring and asking": ["Durable", "Workflow", "Step", "Retry", "Handle", "StepRecord", "Client"],
    "Schedules": ["Schedule", "Firing", "BackfillStep"],
    "Inside a workflow": ["Context", "current_step", "StepInfo", "WorkflowInterrupted"],
    "What to wait for": ["Message", "Event", "Timer", "Child", "Met"],
    "Approvals": ["Decision", "ApprovalRequest", "ApprovalRecord"],
    "Working": ["Worker"],
    "The schema": ["install", "schema_sql"],
    "A Postgres to try things out": ["EmbeddedPostgres"],
    "The asynchronous face": ["AsyncContext", "AsyncHandle", "AsyncChild", "AsyncApprovalRequest", "AsyncClient"],
}
ERRORS = "Errors"


def render_parameter(parameter: inspect.Parameter) -> str:
    stars: dict[Any, str] = {inspect.Parameter.VAR_POSITIONAL: "*", inspect.Parameter.VAR_KEYWORD: "**"}
    text = stars.get(parameter.kind, "") + parameter.name
    annotated = parameter.annotation is not parameter.empty
    if annotated:
        text += f": {render_annotation(parameter.annotation)}"
    if parameter.default is not parameter.empty:
        text += f" = {parameter.default!r}" if annotated else f"={parameter.default!r}"
    return text


def render_annotation(annotation: Any) -> str:
    return str(annotation if isinstance(annotation, str) else inspect.formatannotation(annotation))


def render_signature(name: str, call: Callable[..., Any], *, returns: bool = True) -> str:
    signature = inspect.signature(call)
    parts: list[str] = []
    kinds = [parameter.kind for parameter in signature.parameters.values()]
    for index, parameter in enumerate(signature.parameters.values()):
        if parameter.name == "self" and index == 0:
            continue
        if (
            parameter.kind is parameter.KEYWORD_ONLY
            and parameter.KEYWORD_ONLY not in kinds[:index]
            and (parameter.VAR_POSITIONAL not in kinds)
        ):
            parts.append("*")
        parts.append(render_parameter(parameter))
        if parameter.kind is parameter.POSITIONAL_ONLY and parameter.POSITIONAL_ONLY not in kinds[index + 1 :]:
            parts.append("/")
    result = signature.return_annotation
    arrow = f" -> {render_annotation(result)}" if returns and result is not signature.empty else ""
    whole = f"{name}({', '.join(parts)}){arrow}"
    if len(whole) <= 110:
        return whole
    return f"{name}(\n  " + ",\n  ".join(parts) + f"\n){arrow}"


def docstring(thing: Any, name: str) -> str:
    text = inspect.getdoc(thing)
    if not text:
        raise SystemExit(f"durable_client.{name} has no docstring")
    return text


def describe(name: str) -> list[str]:
    thing = getattr(durable_client, name)
    lines = [f"### {name}", ""]
    if not inspect.isclass(thing):
        return [*lines, "```text", render_signature(name, thing), "```", "", docstring(thing, name), ""]
    if not issubclass(thing, BaseException):
        lines += ["```text", render_signature(name, thing, returns=False), "```", ""]
    lines += [docstring(thing, name), ""]
    for member, value in vars(thing).items():
        if member.startswith("_"):
            continue
        title = f"{name}.{member}"
        if isinstance(value, property):
            kind = render_annotation(inspect.signature(value.fget).return_annotation) if value.fget else "Any"
            lines += [f"#### {title}", "", "```text", f"{member}: {kind}", "```", "", docstring(value, title), ""]
        elif inspect.isfunction(value):
            prefix = "async " if inspect.iscoroutinefunction(value) else ""
            text = prefix + render_signature(member, value)
            lines += [f"#### {title}", "", "```text", text, "```", "", docstring(value, title), ""]
    return lines


def main() -> None:
    errors = [
        name
        for name in durable_client.__all__
        if inspect.isclass(getattr(durable_client, name))
        and issubclass(getattr(durable_client, name), durable_client.DurableError)
    ]
    pages = PAGES | {ERRORS: sorted(errors)}
    left = set(durable_client.__all__) - {"__version__"} - {name for names in pages.values() for name in names}
    if left:
        raise SystemExit(f"no section of the Python reference names {', '.join(sorted(left))}")
    lines = [
        "# Python reference",
        "",
        "Generated from the docstrings of `durable_client` by `docs/generate_python_reference.py`; do not edit. The guide is",
        "[python.md](../python.md), the errors are explained in [errors.md](../errors.md).",
        "",
    ]
    for title, names in pages.items():
        lines += [f"## {title}", ""]
        for name in names:
            lines += describe(name)
    publish("python.md", "\n".join(lines).rstrip() + "\n")


if __name__ == "__main__":
    main()
