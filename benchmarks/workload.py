"""The work that every system does: the same names, the same payloads, the same step."""

from __future__ import annotations

from typing import Any

QUEUE = "orders"

# Workflows, registered under these names by every system.
NO_STEP = "no_step"
ONE_STEP = "one_step"
TEN_STEPS = "ten_steps"
ONE_STEP_DEF = "one_step_def"  # the same with plain functions
TEN_STEPS_DEF = "ten_steps_def"
MARK = "mark"  # reports that its body began
HOLD = "hold"  # reports that its body began, and then runs for as long as it is let
RECEIVE = "receive"  # waits for a message, and reports that it came
AWAIT_EVENT = "await_event"  # waits for an event
FAN_OUT = "fan_out"  # runs children and waits for all of them
LONG = "long"  # runs many steps, and then reports each message that comes
NAP = "nap"  # takes some time, or sleeps again and again and reports when it should have woken
STEADY = "steady"  # runs some steps that take a moment each
POISON = "poison"  # kills its worker

TOPIC = "topic"
EVENT = "event"

STEPS = {NO_STEP: 0, ONE_STEP: 1, TEN_STEPS: 10, ONE_STEP_DEF: 1, TEN_STEPS_DEF: 10}

ORDER: dict[str, Any] = {"order": 12345, "sku": "abc"}


def nth(n: int) -> str:
    """The name of one of many workflows that are like ONE_STEP."""
    return f"{ONE_STEP}_{n}"


def charge(order: dict[str, Any]) -> dict[str, Any]:
    """What a step returns, and with it the workflow. It does nothing, for the engine is measured."""
    return {"payment": f"pay-{order['order']}", "cents": 1999}
