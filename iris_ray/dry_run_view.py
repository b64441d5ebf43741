"""What `dry_run` tells, for people."""

from typing import Any

from rich.console import Console
from rich.table import Table

from iris_ray.data.report import DataReport
from iris_ray.resources import GIB

GB = 1e9
UNKNOWN = "?"


def print_dry_run(plan: dict[str, Any], console: Console) -> None:
    """Print what `dry_run` found, without the settings."""
    if plan["data"]:
        console.print(DataReport.from_dict(plan["data"]).summary(), highlight=False)
    for download in plan["downloads"]:
        size = "its size was not told" if download["bytes"] is None else f"{download['bytes'] / GB:.1f} GB"
        console.print(f"To download: {download['kind']} {download['name']}, {size}", highlight=False)
    if not plan["data"] and plan["train"] is not None:
        console.print(f"Counted on {plan['train']} pairs to train on; the run will see how many can be used.")
    console.print(_iterations(plan))
    console.print(_processes(plan["processes"]))


def _iterations(plan: dict[str, Any]) -> Table:
    iterations = plan["iterations"]
    order = ["α"] if plan["has_order"] else []
    title = f"Iterations with {plan['objective']}"
    table = _table(title, "iteration", "pairs", "steps", "learning rate", *order, *iterations[0]["options"])
    for entry in iterations:
        orders = ["by the gap" if entry["alpha"] is None else entry["alpha"]] if order else []
        known = [entry[name] for name in ("iteration", "pairs", "steps", "learning_rate")]
        table.add_row(*map(_cell, [*known, *orders, *entry["options"].values()]))
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
    return f"{value:.4g}" if isinstance(value, float) else str(value)
