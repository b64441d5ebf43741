"""Bounds on how often generators are started again."""

import math

from iris_ray.errors import ResourceError

LONGEST_PAUSE_S = 2


class Restarts:
    """Counts the deaths in a row; a pair written in between begins a new row.

    Generators that die together, as when their node is lost, count once: only what started after the death
    that counted last shows that starting anew does not help.
    """

    def __init__(self, max_failures: int):
        self.max_failures = max_failures
        self.in_a_row = 0
        self._written = 0
        self._counted_at = -math.inf

    def died(self, started: float, now: float, written: int, reason: str) -> float:
        """Seconds to wait before another generator starts: none at first, then 1, 2, 2 ...

        `started`: when the one that is dead by `now` began to start, on the same clock in s. `written`: pairs
        that generators have written so far. Raises `ResourceError` with the reason of the last death once the
        row is too long.
        """
        if started > self._counted_at:
            self.in_a_row = 1 if written > self._written else self.in_a_row + 1
            self._written, self._counted_at = written, now
        if self.in_a_row > self.max_failures:
            raise ResourceError(
                f"{self.in_a_row} generators died in a row and none wrote a pair in between; "
                f"generation.max_failures={self.max_failures} are allowed. The last one: {reason}"
            )
        return 0 if self.in_a_row == 1 else min(2.0 ** (self.in_a_row - 2), LONGEST_PAUSE_S)
