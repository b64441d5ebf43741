"""Bounds on how often generators are started again."""

from iris_ray.errors import ResourceError

LONGEST_PAUSE_S = 2


class Restarts:
    """Counts the deaths in a row; a pair written in between begins a new row."""

    def __init__(self, max_failures: int):
        self.max_failures = max_failures
        self.in_a_row = 0
        self.total = 0
        self._written = 0

    def died(self, written: int, reason: str) -> float:
        """Seconds to wait before another generator starts: none at first, then 1, 2, 2 ...

        `written`: pairs that generators have written so far. Raises `ResourceError` with the reason of the
        last death once the row is too long.
        """
        self.total += 1
        self.in_a_row = 1 if written > self._written else self.in_a_row + 1
        self._written = written
        if self.in_a_row > self.max_failures:
            raise ResourceError(
                f"{self.in_a_row} generators died in a row and none wrote a pair in between; "
                f"generation.max_failures={self.max_failures} are allowed. The last one: {reason}"
            )
        return 0 if self.in_a_row == 1 else min(2.0 ** (self.in_a_row - 2), LONGEST_PAUSE_S)
