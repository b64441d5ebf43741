"""How both sides fare as sequences, batches, vocabulary and model grow, one at a time."""

import csv
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.learner.arithmetic import needed_flops
from benchmarks.learner.measurement import Say, Settings, measure
from benchmarks.learner.worker_process import WorkerFailed
from benchmarks.learner.workload import DType, Workload

VALUES = {
    "length": (64, 128, 256, 512, 1024, 2048),
    "pairs": (4, 8, 16, 32, 64),
    "vocab": (512, 4096, 32768, 151936),
    "hidden": (128, 256, 512, 1024),
}
REPEATS = 3
BATCH_TOKENS = 2048  # of the curve over lengths: prompt and one response, summed over pairs
BATCH_PAIRS = 8  # of the other curves
BLOCK_GFLOP = 120.0  # about a second of our steps on two cores
LEAST_STEPS, MOST_STEPS = 2, 8

SPREADS = (
    *("pairs_per_s", "with_reference_pairs_per_s", "peer_pairs_per_s"),
    *("ratio", "with_reference_ratio", "peak_fraction"),
)
MEMORIES = ("peak_memory_mib", "imported_memory_mib")
COLUMNS = (
    *("curve", "value", "dtype", "pairs", "steps"),
    *("peer", "gflop_per_pair", "peak_gflops"),
    *(f"{name}{end}" for name in SPREADS for end in ("", "_min", "_max")),
    *(f"{name}_{side}" for name in MEMORIES for side in ("ours", "peer")),
)
Row = dict[str, str]


@dataclass(frozen=True)
class Point:
    """A place on a curve. Values are tokens of prompt and response, pairs, entries, or the hidden size."""

    curve: str
    value: int

    @property
    def workload(self) -> Workload:
        match self.curve:
            case "length":
                prompt = round(0.45 * self.value)
                return Workload(
                    prompt_tokens=prompt,
                    response_tokens=self.value - prompt,
                    pairs=max(2, BATCH_TOKENS // self.value),
                )
            case "pairs":
                return Workload(pairs=self.value)
            case "vocab":
                return Workload(vocab=self.value, pairs=BATCH_PAIRS)
            case _:
                heads = self.value // 64
                return Workload(
                    hidden=self.value,
                    intermediate=3 * self.value,
                    heads=heads,
                    kv_heads=heads // 2,
                    pairs=BATCH_PAIRS,
                )

    @property
    def steps(self) -> int:
        """Steps of a block: fewer where one takes longer."""
        gflop = needed_flops(self.workload, self.workload.batches(1)[0]).total / 1e9
        return min(MOST_STEPS, max(LEAST_STEPS, round(BLOCK_GFLOP / gflop)))


def points() -> Iterator[Point]:
    """All places of all curves."""
    for curve, values in VALUES.items():
        yield from (Point(curve, value) for value in values)


def measure_curves(path: Path, settings: Settings, dtypes: list[DType], say: Say) -> list[str]:
    """Measure every point that has no row in the CSV file yet. Returns what failed, one line each."""
    known = {(row["curve"], int(row["value"]), row["dtype"]) for row in load(path)}
    todo = [
        (point, dtype)
        for point in points()
        for dtype in dtypes
        if (point.curve, point.value, dtype) not in known
    ]
    failures = []
    for index, (point, dtype) in enumerate(todo):
        name = f"{index + 1} of {len(todo)}: {point.curve} {point.value}"
        here = replace(
            settings,
            workload=point.workload,
            steps=point.steps,
            repeats=REPEATS,
            precomputed=False,
            every_peer=False,
        )
        try:
            report = measure(here, dtype, lambda text, name=name: say(f"{name}, {text}"))  # type: ignore[misc]
        except WorkerFailed as failure:
            failures.append(f"{point.curve} {point.value} {dtype}: {failure}")
            continue
        _append(path, _row(point, dtype, here, report))
    return failures


def load(path: Path) -> list[Row]:
    """Rows of the CSV file; none if there is no file."""
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def _row(point: Point, dtype: DType, settings: Settings, report: dict[str, Any]) -> dict[str, Any]:
    row = {
        "curve": point.curve,
        "value": point.value,
        "dtype": dtype,
        "pairs": settings.workload.pairs,
        "steps": settings.steps,
    }
    flat = report | {f"{name}_{side}": amount for name in MEMORIES for side, amount in report[name].items()}
    return row | {
        key: f"{flat[key]:.5g}" if isinstance(flat[key], float) else flat[key]
        for key in COLUMNS
        if key not in row
    }


def _append(path: Path, row: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        if fresh:
            writer.writeheader()
        writer.writerow(row)
