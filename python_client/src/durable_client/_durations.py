"""Lengths of time as people write them."""

from __future__ import annotations

import math
import re
from datetime import timedelta

from ._errors import InvalidArgument

Duration = float | int | str | timedelta
"""Seconds as a number, a ``timedelta``, or text like ``"30s"``, ``"1.5 hours"``, ``"1h 30m"``."""

_UNITS = {
    **dict.fromkeys(["ms", "millisecond", "milliseconds"], 0.001),
    **dict.fromkeys(["s", "sec", "second", "seconds"], 1.0),
    **dict.fromkeys(["m", "min", "minute", "minutes"], 60.0),
    **dict.fromkeys(["h", "hour", "hours"], 3600.0),
    **dict.fromkeys(["d", "day", "days"], 86400.0),
    **dict.fromkeys(["w", "week", "weeks"], 604800.0),
}
_PART = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([a-z]+)\s*,?")


def seconds(value: Duration) -> float:
    """The length in seconds. Raises InvalidArgument for one that is negative, not finite, or not understood."""
    if isinstance(value, timedelta):
        result = value.total_seconds()
    elif isinstance(value, int | float):
        result = float(value)
    elif not isinstance(value, str):
        raise InvalidArgument(f"{value!r} is not a duration", hint='Pass seconds, a timedelta, or text such as "5m".')
    else:
        result, end = 0.0, 0
        for part in _PART.finditer(value.lower()):
            if part.start() != end or part[2] not in _UNITS:
                break
            result, end = result + float(part[1]) * _UNITS[part[2]], part.end()
        if not value.strip() or end != len(value):
            raise InvalidArgument(
                f"{value!r} is not a duration", hint='Write for example "30s", "5m", "1h 30m" or "3 days".'
            )
    if not math.isfinite(result) or result < 0:
        raise InvalidArgument(f"the duration {value!r} is not a finite, positive length of time")
    return result
