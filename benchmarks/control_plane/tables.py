"""Rows as a table for people at a terminal."""

from typing import Any

from rich import box
from rich.console import Group
from rich.table import Table
from rich.text import Text

COLUMNS = {
    "generators": ("generators", "d"),
    "offered, pairs/s": ("offered_pairs_per_s", ",.0f"),
    "trained, pairs/s": ("pairs_per_s", ",.0f"),
    "leases/s": ("leases_per_s", ",.0f"),
    "lease, ms": ("lease_ms_p50", ".1f"),
    "p99": ("lease_ms_p99", ".1f"),
    "adds/s": ("adds_per_s", ",.0f"),
    "add, ms": ("add_ms_p50", ".1f"),
    "p99 ": ("add_ms_p99", ".1f"),
    "waiting": ("ahead_after", ",d"),
    "CPU µs/pair": ("cpu_us_per_pair", ",.0f"),
    "MiB": ("buffer_mib", ",.0f"),
}


def report_table(report: dict[str, Any]) -> Group:
    table = Table(box=box.SIMPLE_HEAD)
    for column in COLUMNS:
        table.add_column(column, justify="right")
    for row in report["rows"]:
        table.add_row(*(format(row[key], style) for key, style in COLUMNS.values()))
    machine = report["machine"]
    return Group(Text(f"{machine['cpu']}, {machine['cores']} cores, which buffer and players share."), table)
