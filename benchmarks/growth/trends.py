"""What a long run gains from its beginning to its end."""

from collections.abc import Sequence
from statistics import median

import numpy as np

from benchmarks.growth.results import Row
from benchmarks.processes import KINDS

WARM = 0.2  # of the iterations, at the start, are left out: caches fill, libraries load


def warm(course: Sequence[Row]) -> Sequence[Row]:
    return course[round(WARM * len(course)) :]


def slope(course: Sequence[Row], column: str) -> float:
    """Gained in 1,000 iterations: a straight line through all that came after the start."""
    rows = warm(course)
    numbers, values = (np.array([float(row[name]) for row in rows]) for name in ("iteration", column))
    return 1000 * float(np.polyfit(numbers, values, 1)[0])


def trends(course: Sequence[Row]) -> list[dict[str, float | str]]:
    """Of each kind of process and of the object store: MiB and handles at the end, and gained in 1,000."""
    last = course[-1]
    rows: list[dict[str, float | str]] = [
        {
            "part": kind,
            "mib": float(last[f"{kind}_mib"]),
            "mib_per_1000": slope(course, f"{kind}_mib"),
            "handles": int(last[f"{kind}_handles"]),
            "handles_per_1000": slope(course, f"{kind}_handles"),
        }
        for kind in KINDS
    ]
    store = {"mib": float(last["store_mib"]), "mib_per_1000": slope(course, "store_mib")}
    return [*rows, {"part": "object store", **store}]


def seconds(course: Sequence[Row]) -> tuple[float, float]:
    """An iteration's, at the median of the first and the last fifth of those after the start."""
    taken = [float(row["seconds"]) for row in warm(course) if row["seconds"]]
    part = max(1, len(taken) // 5)
    return median(taken[:part]), median(taken[-part:])
