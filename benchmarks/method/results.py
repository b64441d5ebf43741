"""Results on disk: one JSON object a line and cell, so that a study can be stopped and resumed."""

import json
from collections.abc import Iterable
from dataclasses import fields
from pathlib import Path
from typing import Any

from benchmarks.method.cell import Cell


def load(path: Path) -> dict[Cell, dict[str, Any]]:
    """All finished cells; a line that was cut by a crash is left out."""
    results = {}
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            entry = json.loads(line)
        except json.JSONDecodeError:
            continue
        results[Cell(**{field.name: entry[field.name] for field in fields(Cell)})] = entry
    return results


def append(path: Path, entry: dict[str, Any]) -> None:
    """Add a finished cell, on a line of its own whatever stands before it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        file.write("\n" + json.dumps(_rounded(entry)))


def missing(cells: Iterable[Cell], path: Path) -> list[Cell]:
    """The cells that have no result yet."""
    done = load(path)
    return [cell for cell in cells if cell not in done]


def _rounded(value: Any) -> Any:
    """Six digits are more than five seeds can tell."""
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, dict):
        return {key: _rounded(inner) for key, inner in value.items()}
    return [_rounded(inner) for inner in value] if isinstance(value, list) else value
