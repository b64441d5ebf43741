"""Rows as a table for people at a terminal."""

from typing import Any

from rich import box
from rich.console import Group
from rich.table import Table
from rich.text import Text

from benchmarks.end_to_end.settings import WHAT

COLUMNS = (
    "",
    "pairs/s",
    "start, s",
    "boundary, s",
    "writing, s",
    "training, s",
    "memory, MiB",
    "exact match",
    "s to {}",
)


def report_table(report: dict[str, Any]) -> Group:
    """Medians over repeats; of pairs/s also the least and greatest value."""
    parts: list[Any] = []
    for dtype in dict.fromkeys(row["dtype"] for row in report["rows"]):
        table = Table(title=dtype, title_justify="left", box=box.SIMPLE_HEAD)
        for index, column in enumerate(COLUMNS):
            named = column.format(f"{report['exact_match_wanted']:.0%}")
            table.add_column(named, justify="right" if index else "left")
        for row in report["rows"]:
            if row["dtype"] == dtype:
                table.add_row(*_cells(row))
        parts.append(table)
    lines = [f"{name}: {value:.2f}" for name, value in report["ratios"].items()]
    return Group(*parts, Text("\n".join(lines)))


def _cells(row: dict[str, Any]) -> list[str]:
    reached = row["seconds_to_exact_match"]
    return [
        WHAT[row["way"]],
        f"{row['pairs_per_s']:.1f} ({row['pairs_per_s_min']:.1f} to {row['pairs_per_s_max']:.1f})",
        f"{row['start_s']:.0f}",
        f"{row['boundary_s']:.1f}",
        f"{row['writing_s']:.1f}",
        f"{row['training_s']:.1f}",
        f"{row['peak_mib']:,.0f}",
        " ".join(f"{value:.0%}" for value in row["exact_match"]),
        "–" if reached is None else f"{reached:.0f}",
    ]
