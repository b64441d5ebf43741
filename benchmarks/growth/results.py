"""CSV files: all points in one, and the course of each long run in one of its own."""

import csv
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.growth.measurement import COLUMNS, COURSE

Row = dict[str, str]


class Results:
    """In a folder."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.points = folder / "points.csv"

    def course(self, iterations: int) -> Path:
        return self.folder / f"iterations-{iterations}.csv"

    def rows(self, curve: str) -> list[Row]:
        """What was measured of a curve, in order of its values."""
        rows = [row for row in load(self.points) if row["curve"] == curve]
        return sorted(rows, key=lambda row: int(row["value"]))

    def add(self, row: dict[str, Any], course: Sequence[dict[str, Any]]) -> None:
        """Of iterations, the course as well."""
        self.folder.mkdir(parents=True, exist_ok=True)
        if row["curve"] == "iterations":
            _write(self.course(row["value"]), COURSE, course, "w")
        _write(self.points, COLUMNS, [row], "a")


def load(path: Path) -> list[Row]:
    """Rows of a CSV file; none if there is no file."""
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def _write(path: Path, columns: Sequence[str], rows: Iterable[dict[str, Any]], mode: str) -> None:
    fresh = mode == "w" or not path.exists()
    with path.open(mode, newline="") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        if fresh:
            writer.writeheader()
        for row in rows:
            writer.writerow({k: f"{v:.7g}" if isinstance(v, float) else v for k, v in row.items()})
