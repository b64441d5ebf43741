"""Results on disk: one CSV row a cell, so that a study can be stopped and resumed, and read anywhere."""

import csv
import os
from collections.abc import Iterable
from dataclasses import fields
from pathlib import Path
from typing import Any

from benchmarks.method.cell import ITERATIONS, Cell

Row = dict[str, float]
"""`kl_3` is the KL after iteration 3, `kl_0` that of the start. A diverged run lacks what it never saw."""

METRICS = {"kl": 0, "tv": 0, "validity": 0, "alpha": 1, "ess_synthetic": 1}
"""What is kept of each iteration, and the first one that has it."""

_KEY = [field.name for field in fields(Cell)]
_VALUES = [f"{metric}_{i}" for metric, first in METRICS.items() for i in range(first, ITERATIONS + 1)]
_COLUMNS = [*_KEY, *_VALUES, "seconds"]


def load(path: Path) -> dict[Cell, Row]:
    """All finished cells; a row that was cut by a crash is left out."""
    if not path.exists():
        return {}
    results = {}
    with path.open(newline="") as file:
        for row in csv.DictReader(file):
            if None not in row.values():
                cell = Cell(row["world"], row["method"], float(row["learning_rate"]), int(row["seed"]))
                results[cell] = {name: float(row[name]) for name in _VALUES if row[name]}
    return results


def append(path: Path, entry: dict[str, Any]) -> None:
    """Add a finished cell (what `play` returns), on a line of its own whatever stands before it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new, cut = not path.exists(), False
    if not new:
        with path.open("rb") as old:
            old.seek(-1, os.SEEK_END)
            cut = old.read() != b"\n"
    with path.open("a", newline="") as file:
        file.write("\n" if cut else "")
        writer = csv.DictWriter(file, _COLUMNS, lineterminator="\n")
        if new:
            writer.writeheader()
        writer.writerow({name: entry[name] for name in [*_KEY, "seconds"]} | values(entry))


def values(entry: dict[str, Any]) -> Row:
    """The numbers of a finished cell; five digits are more than five seeds can tell."""
    return {
        f"{metric}_{i}": float(f"{iteration[metric]:.5g}")
        for i, iteration in enumerate(entry["iterations"])
        for metric in METRICS
        if metric in iteration
    }


def missing(cells: Iterable[Cell], path: Path) -> list[Cell]:
    """The cells that have no result yet."""
    done = load(path)
    return [cell for cell in cells if cell not in done]


def cell_of(entry: dict[str, Any]) -> Cell:
    """Which cell a result belongs to."""
    return Cell(**{name: entry[name] for name in _KEY})
