"""What a run would do, for people."""

from typing import Any

from rich.console import Console
from rich.table import Table

from iris_ray.data.report import DataReport
from iris_ray.resources import GIB

GB = 1e9
UNKNOWN = "?"


def print_plan(plan: dict[str, Any], console: Console) -> None:
    """Print what `dry_run` found, without the settings."""
    if plan["data"]:
        console.print(DataReport.from_dict(plan["data"]).summary(), highlight=False)
    for download in plan["downloads"]:
        size = "its size was not told" if download["bytes"] is None else f"{download['bytes'] / GB:.1f} GB"
        console.print(f"To download: {download['kind']} {download['name']}, {size}", highlight=False)
    console.print(_iterations(plan["iterations"]))
    console.print(_processes(plan["processes"]))


def _iterations(iterations: list[dict[str, Any]]) -> Table:
    options = list(iterations[0]["options"])
    table = _table("Iterations", "iteration", "pairs", "steps", "learning rate", "α", *options)
    for entry in iterations:
        known = (entry["pairs"], entry["steps"], f"{entry['learning_rate']:g}", entry["alpha"])
        table.add_row(str(entry["iteration"]), *map(_cell, known), *map(_cell, entry["options"].values()))
    return table


def _processes(processes: list[dict[str, Any]]) -> Table:
    table = _table("Actors and workers", "role", "count", "CPUs each", "GPUs each", "memory each")
    for need in processes:
        memory = UNKNOWN if need["memory"] is None else f"{need['memory'] / GIB:.1f} GiB"
        table.add_row(need["role"], str(need["count"]), f"{need['cpus']:g}", f"{need['gpus']:g}", memory)
    for role in ("controller", "sample buffer", "weight store", "generator pool"):
        table.add_row(role, "1", "0", "0", "")
    return table


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left")
    for column in columns:
        table.add_column(column, justify="right")
    return table


def _cell(value: Any) -> str:
    if value is None:
        return UNKNOWN
    return f"{value:.3f}" if isinstance(value, float) else str(value)
