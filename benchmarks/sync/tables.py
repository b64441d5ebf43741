"""Rows as a table for people at a terminal."""

from typing import Any

from rich import box
from rich.console import Group
from rich.table import Table
from rich.text import Text

COLUMNS = {
    "publish to serving, s": ("publish_to_serving_s", ".3f"),
    "stood still, s": ("paused_s", ".4f"),
    "plain copy, s": ("copy_s", ".4f"),
    "still ÷ copy": ("paused_copies", ".1f"),
    "learner blocked, s": ("learner_blocked_s", ".4f"),
    "blocked ÷ copy": ("blocked_copies", ".1f"),
    "probe, s": ("probe_s", ".3f"),
}


def report_table(report: dict[str, Any]) -> Group:
    """Medians over repeats, with the least and greatest value."""
    table = Table("parameters", "generators", *COLUMNS, box=box.SIMPLE_HEAD)
    for row in report["rows"]:
        cells = [_spread(row, key, style) for key, style in COLUMNS.values()]
        table.add_row(f"{row['parameters'] / 1e6:.1f} M", str(row["generators"]), *cells)
    machine = report["machine"]
    above = f"{machine['cpu']}, {machine['cores']} cores, one thread a process. {report['repeats']} repeats."
    return Group(Text(above), table)


def _spread(row: dict[str, Any], key: str, style: str) -> str:
    low, high = (format(row[f"{key}_{end}"], style) for end in ("min", "max"))
    return f"{row[key]:{style}} ({low} to {high})"
