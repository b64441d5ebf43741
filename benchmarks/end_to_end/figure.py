"""The picture of a result: `python -m benchmarks.end_to_end.figure RESULT.json FIGURE.svg`."""

import json
from pathlib import Path
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
import typer
from matplotlib.axes import Axes
from matplotlib.ticker import PercentFormatter

from benchmarks.style import STYLE

COLOURS = {
    "iteration": "tab:green",
    "online": "tab:olive",
    "no_overlap": "tab:cyan",
    "vllm_trl": "tab:red",
    "generate_trl": "tab:orange",
}

mpl.rcParams.update(STYLE)


def draw(result: Path, figure: Path) -> None:
    """Pairs/s of each way with the range of repeats, and exact match over time."""
    rows = [row for row in json.loads(result.read_text())["rows"] if row["way"] in COLOURS]
    dtypes = list(dict.fromkeys(row["dtype"] for row in rows))
    picture, panels = plt.subplots(1, 2 * len(dtypes), figsize=(12, 3.2))
    for number, dtype in enumerate(dtypes):
        here = [row for row in rows if row["dtype"] == dtype]
        _rates(panels[2 * number], here)
        _course(panels[2 * number + 1], here)
        for axes, what in zip(panels[2 * number :], ("pairs/s", "exact match over seconds"), strict=False):
            axes.set_title(f"{what}, {dtype}")
    handles = [plt.Rectangle((0, 0), 1, 1, color=colour) for colour in COLOURS.values()]
    picture.legend(handles, list(COLOURS), loc="lower center", ncols=len(COLOURS), frameon=False)
    picture.tight_layout(rect=(0, 0.08, 1, 1))
    picture.savefig(figure, metadata={"Date": None})


def _rates(axes: Axes, rows: list[dict[str, Any]]) -> None:
    for place, row in enumerate(rows):
        rate = row["pairs_per_s"]
        spread = [[rate - row["pairs_per_s_min"]], [row["pairs_per_s_max"] - rate]]
        axes.bar(place, rate, color=COLOURS[row["way"]], yerr=spread, capsize=3)
        axes.annotate(f"{rate:.0f}", (place, row["pairs_per_s_max"]), ha="center", va="bottom")
    axes.set_xticks([])


def _course(axes: Axes, rows: list[dict[str, Any]]) -> None:
    for row in rows:
        axes.plot([0, *row["iteration_ends_s"]], row["exact_match"], marker=".", color=COLOURS[row["way"]])
    axes.yaxis.set_major_formatter(PercentFormatter(1))


if __name__ == "__main__":
    typer.run(draw)
