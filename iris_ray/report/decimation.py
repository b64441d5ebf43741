"""Long curves as few points, without losing their extremes."""

from dataclasses import dataclass

import numpy as np

POINTS = 300  # of a curve: more than a small chart can show


@dataclass(frozen=True)
class Curve:
    """Points at `x` (P,): mean, least and greatest value of each bin; NaN for a bin without values."""

    x: np.ndarray
    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray


def decimate(x: np.ndarray, values: np.ndarray, points: int = POINTS) -> Curve:
    """Equal bins of consecutive values, at most `points`; a bin stands at the mean of its `x`.

    Up to `points` values are kept as they are.
    """
    starts = np.unique(np.arange(min(points, len(values))) * len(values) // max(1, min(points, len(values))))
    if not len(starts):
        return Curve(*(np.empty(0) for _ in range(4)))
    there = ~np.isnan(values)
    with np.errstate(invalid="ignore"):
        mean = np.add.reduceat(np.where(there, values, 0.0), starts) / np.add.reduceat(there * 1.0, starts)
    sizes = np.diff(np.append(starts, len(values)))
    low, high = np.fmin.reduceat(values, starts), np.fmax.reduceat(values, starts)
    return Curve(np.add.reduceat(x * 1.0, starts) / sizes, mean, low, high)
