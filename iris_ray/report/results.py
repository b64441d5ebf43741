"""The run's result as a table on the console."""

from typing import Any

from rich import box
from rich.table import Table

from iris_ray.evaluation import share
from iris_ray.objectives import build_objective


def results_table(summary: dict[str, Any]) -> Table:
    """One row an iteration, the start model first."""
    title = f"Run {summary['run']}: {summary['status']}"
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for column in ("iteration", "α", "gap", "loss", "exact match", "pairs", "pairs/s", "seconds"):
        table.add_column(column, justify="right")
    objective = summary["objective"]
    has_order = build_objective(objective["name"], **objective["options"]).has_order
    baseline = summary.get("baseline", {}).get("exact_match")
    table.add_row("start", "", "", "", share(baseline), "", "", "")
    for entry in summary.get("iterations", []):
        table.add_row(
            str(entry["iteration"]),
            f"{entry['alpha']:.3f}" if has_order else "",
            f"{entry['gap']:.4f}",
            f"{entry['loss']:.4f}",
            share(entry["exact_match"]),
            str(entry["pairs"]),
            f"{entry['pairs_per_s']:.1f}",
            f"{entry['seconds']:.1f}",
        )
    return table
