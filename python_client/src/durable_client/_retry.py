"""How often, and after which waits, a step is tried again."""

from __future__ import annotations

from dataclasses import dataclass, field

from ._durations import Duration, seconds
from ._errors import InvalidArgument


@dataclass(frozen=True, slots=True)
class Retry:
    """A retry policy of a step. The database counts the attempts and sets the time of the next one.

    ``max_attempts`` includes the first. The wait before attempt n + 1 is ``initial * backoff ** (n - 1)``, at most
    ``max_delay``, the second half of it at random. An exception of one of the ``non_retryable`` classes fails the step
    at once.
    """

    max_attempts: int = 1
    initial: Duration = 1.0
    backoff: float = 2.0
    max_delay: Duration = 300.0
    non_retryable: tuple[type[BaseException], ...] = field(default=())

    def __post_init__(self) -> None:
        if self.max_attempts < 1:
            raise InvalidArgument(
                f"max_attempts must be at least 1, not {self.max_attempts}", hint="Use 1 for no retry."
            )
        if not 1 <= self.backoff <= 1000:
            raise InvalidArgument(f"backoff must be from 1 to 1000, not {self.backoff}")
        seconds(self.initial)
        seconds(self.max_delay)

    def attempts_after(self, error: BaseException) -> int:
        """How many attempts there may be in all, now that one ended in this error."""
        return 1 if isinstance(error, self.non_retryable) else self.max_attempts
