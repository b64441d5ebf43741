"""How fast pairs were trained on in the course of a run."""

from itertools import pairwise

import numpy as np

from iris_ray.report.clock import Clock
from iris_ray.report.history import History

WINDOWS = 60


def pairs_per_second(history: History) -> tuple[np.ndarray, np.ndarray]:
    """Steps taken, and pairs per second of the steps up to there since the point before.

    Time between two iterations does not count: the first step of each is left out, as nobody knows from the
    steps when it began.
    """
    if not len(history.times):
        return np.empty(0), np.empty(0)
    clock = Clock(history)
    size = max(4, len(history.steps["time"]) // WINDOWS)
    points, rates = [], []
    taken = 0
    for entry in history.iterations:
        steps = history.steps_of(entry["iteration"])
        ends = np.arange(0, len(steps["time"]), size)
        for begin, end in pairwise(ends):
            seconds = clock(steps["time"][end]) - clock(steps["time"][begin])
            if seconds > 0:
                points.append(taken + end + 1)
                rates.append(np.nansum(steps["pairs"][begin + 1 : end + 1]) / seconds)
        taken += len(steps["time"])
    return np.array(points, dtype=float), np.array(rates, dtype=float)
