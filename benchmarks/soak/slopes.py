"""How fast something grows that is sampled of processes which come and go."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

WARM_UP = 0.5  # of each process's life says nothing: what fills up and stays is no leak
ENDING_S = 30.0  # in which it may take what it ends with: the driver writes its run's report
SHORTEST_S = 300.0  # of a second half that counts
JUDGED_S = 600.0  # of the longest second half, from which on a slope is held against a margin


@dataclass(frozen=True)
class Slope:
    """`per_hour` with its standard error, over `lives` processes; the longest second half is `longest_s`."""

    per_hour: float
    error: float
    lives: int
    longest_s: float

    def exceeds(self, margin: float) -> bool:
        """Beyond what its own error explains, and watched long enough."""
        return self.longest_s >= JUDGED_S and self.per_hour - 2 * self.error > margin


def slope(lives: Iterable[tuple[np.ndarray, np.ndarray]]) -> Slope | None:
    """Least squares over processes of one kind: one slope for all, a level for each.

    `lives` has each process's times in s and values. The first half of a life and its end are left out, and
    who lived too short in between. `None` if nobody is left. The error takes samples as independent, so it is
    a lower bound.
    """
    times, values, longest, count = [], [], 0.0, 0
    for at, value in lives:
        counts = (at >= at[0] + WARM_UP * (at[-1] - at[0])) & (at <= at[-1] - ENDING_S)
        at, value = at[counts], value[counts]
        if len(at) < 3 or at[-1] - at[0] < SHORTEST_S:
            continue
        times.append(at - at.mean())
        values.append(value - value.mean())
        longest, count = max(longest, float(at[-1] - at[0])), count + 1
    if not times:
        return None
    x, y = np.concatenate(times) / 3600, np.concatenate(values)
    per_hour = float(x @ y / (x @ x))
    free = max(len(x) - count - 1, 1)
    error = float(np.sqrt(((y - per_hour * x) ** 2).sum() / free / (x @ x)))
    return Slope(per_hour, error, count, longest)
