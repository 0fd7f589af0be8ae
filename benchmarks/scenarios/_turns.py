"""Two sides in turns within one run, so that both meet the same weather; what is kept is the ratio of each turn."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

T = TypeVar("T")


def in_turns(turns: int, one: Callable[[], T], other: Callable[[], T]) -> list[tuple[T, T]]:
    """What both return in each turn; each is the first of the two as often as the other."""
    found = []
    for turn in range(turns):
        if turn % 2:
            first = one()
            found.append((first, other()))
        else:
            second = other()
            found.append((one(), second))
    return found


def rates(seconds: Sequence[tuple[float, float]]) -> list[float]:
    """The rate of the one in each turn, of that of the other."""
    return [other / one for one, other in seconds]


def medians(milliseconds: Sequence[tuple[float, float]]) -> list[Any]:
    """Of both sides, for the settings of a measurement."""
    return [round(statistics.median(side), 3) for side in zip(*milliseconds, strict=True)]
