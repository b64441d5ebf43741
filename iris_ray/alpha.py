"""Schedules of the order α: from the gaps measured so far to the order against an opponent."""

from collections.abc import Callable, Sequence

from iris_ray.config import Alpha
from iris_ray.registry import Registry

Schedule = Callable[[Alpha, Sequence[float], int], float]
"""Settings, the gaps D̂ of all opponents so far (the current one last), iterations of the run → α.

The list of gaps is all the state there is, and it is kept in checkpoints.
"""

SCHEDULES: Registry[Schedule] = Registry("alpha.schedule", "Schedules")


@SCHEDULES.register("fixed")
def fixed(settings: Alpha, gaps: Sequence[float], iterations: int) -> float:
    """α = value."""
    return settings.value


@SCHEDULES.register("geometric")
def geometric(settings: Alpha, gaps: Sequence[float], iterations: int) -> float:
    """α runs from `first` to `last` by equal factors ([note] names the schedule; direction is [choice])."""
    way = (len(gaps) - 1) / max(1, iterations - 1)
    return settings.first ** (1 - way) * settings.last**way


@SCHEDULES.register("gap_feedback")
def gap_feedback(settings: Alpha, gaps: Sequence[float], iterations: int) -> float:
    """α = clip(1 + c·D̂, minimum, maximum), recomputed for every opponent ([note])."""
    return min(max(1 + settings.c * gaps[-1], settings.minimum), settings.maximum)
