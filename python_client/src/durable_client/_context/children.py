"""Children of a workflow, apart from how they are waited for: what starts them, and what becomes of their results."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from .. import _codec
from .._client import calls
from .._definitions import Workflow, check_integers, check_texts, name_of
from .._durations import Duration, seconds
from .._errors import ChildFailed, InvalidArgument, WorkflowNotFound
from .run import as_stored, fit, read


def start_parameters(
    workflow: Workflow[..., Any] | str,
    inputs: Sequence[Any],
    *,
    queue: str | None = None,
    priority: int | None = None,
    max_parallel: int | None = None,
    max_attempts: int | None = None,
    timeout: Duration | None = None,
    tags: dict[str, Any] | None = None,
) -> list[Any]:
    """What ``durable.start_children()`` takes after the name of the step."""
    known = workflow if isinstance(workflow, Workflow) else None
    name = name_of(workflow)
    check_texts(queue=queue)
    check_integers(priority=priority, max_attempts=max_attempts)
    if known is not None and not known.takes_input and any(item is not None for item in inputs):
        raise InvalidArgument(
            f"workflow {name!r} takes no input", hint="Leave it out, or add a parameter to the function."
        )
    return [
        name,
        calls.text_array(
            None if item is None else _codec.encode(item, f"the input of workflow {name!r}") for item in inputs
        ),
        queue if queue is not None or known is None else known.queue,
        priority if priority is not None or known is None else known.priority,
        max_parallel,
        max_attempts if max_attempts is not None else known.max_attempts if known is not None else 1,
        seconds(timeout) if timeout is not None else known.timeout if known is not None else None,
        _codec.encode(tags or {}, f"the tags of workflow {name!r}"),
    ]


@dataclass(frozen=True, slots=True)
class Group:
    """The children of one call: their ids differ in the last six digits, which count from 0."""

    first: str
    workflow: Workflow[..., Any] | str

    @property
    def condition(self) -> str:
        """The JSON that ``durable.wait()`` takes."""
        return json.dumps([{"children": self.first}])

    def child_id(self, place: int) -> str:
        return f"{self.first[:-6]}{place:06x}"

    def outputs(self, step: str, value: dict[str, Any], texts: Sequence[str | None]) -> list[Any]:
        """The outputs, when they were not stored with the wait, a ``step``.

        Raises WorkflowNotFound when some are gone, Misfit for one that cannot be read.
        """
        if len(texts) != value["children"]:
            raise WorkflowNotFound(
                f"of the {value['children']} children from {self.first} on, {len(texts)} are stored",
                detail="Their parent had ended, and their history was removed when its time had passed.",
                hint="Keep it for longer, see the setting retention, to retry what has large children.",
            )
        return [read(text, step, f"the output of workflow {self.child_id(place)}") for place, text in enumerate(texts)]

    def results(self, step: str, value: dict[str, Any], outputs: Sequence[Any]) -> list[Any]:
        """The outputs, in the order of the inputs, or the exceptions of those that failed.

        ``value`` is what the wait, a ``step``, ended with. It decides: what it calls a failure is one, whatever the
        child came to since. Raises Misfit for an output that does not fit the type of the workflow.
        """
        results: list[Any] = []
        with as_stored(step):
            failures = {
                int(place): ChildFailed(
                    self.child_id(int(place)), failed["status"], step, _codec.as_error(failed["error"])
                )
                for place, failed in value["failed"].items()
            }
        for place, output in enumerate(outputs):
            if place in failures:
                results.append(failures[place])
            elif isinstance(self.workflow, Workflow):
                subject = f"step {step!r}: the output of workflow {self.child_id(place)}"
                annotation = partial(_codec.return_type, self.workflow.function)
                results.append(fit(output, self.workflow.decode_output, subject, annotation))
            else:
                results.append(output)
        return results


def first_failure(results: Sequence[Any]) -> ChildFailed | None:
    """The failure to raise for all: the first in the order of the inputs, with how many there are."""
    failures = [result for result in results if isinstance(result, ChildFailed)]
    if not failures:
        return None
    if len(results) > 1:
        failures[0].detail = f"{len(failures)} of {len(results)} children failed or were cancelled."
    return failures[0]
