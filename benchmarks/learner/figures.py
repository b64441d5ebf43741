"""Figures of the curves, from their CSV file alone."""

from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, NullLocator

from benchmarks.learner.curves import VALUES, Row, load
from benchmarks.style import STYLE

TITLES = {
    "length": "mean tokens of a sequence",
    "pairs": "pairs a step",
    "vocab": "vocabulary",
    "hidden": "hidden size",
}
OURS, SCORING, PEER = "tab:green", "tab:olive", "tab:red"
STYLES = {"bf16": "-", "fp32": ":"}

mpl.rcParams.update(STYLE)


def draw(path: Path) -> list[Path]:
    """Draw a figure for each curve beside the CSV file."""
    rows = load(path)
    drawn = []
    for curve in VALUES:
        here = sorted((row for row in rows if row["curve"] == curve), key=lambda row: int(row["value"]))
        if here:
            drawn.append(path.parent / f"{curve}.svg")
            _draw(here, TITLES[curve], drawn[-1])
    return drawn


def _draw(rows: list[Row], title: str, path: Path) -> None:
    figure, axes = plt.subplots(1, 4, figsize=(12, 3.2))
    for dtype in dict.fromkeys(row["dtype"] for row in rows):
        here = [row for row in rows if row["dtype"] == dtype]
        style = STYLES[dtype]
        rates, ratios, fractions, memory = axes
        _line(rates, here, "pairs_per_s", OURS, style, f"ours, references known, {dtype}")
        _line(rates, here, "with_reference_pairs_per_s", SCORING, style, f"ours, scoring references, {dtype}")
        _line(rates, here, "peer_pairs_per_s", PEER, style, f"TRL, {dtype}")
        _line(ratios, here, "ratio", OURS, style)
        _line(ratios, here, "with_reference_ratio", SCORING, style)
        _line(fractions, here, "peak_fraction", OURS, style)
        _line(memory, here, "peak_memory_mib_ours", OURS, style)
        _line(memory, here, "peak_memory_mib_peer", PEER, style)
    ticks = sorted({int(row["value"]) for row in rows})
    for axis, name in zip(
        axes,
        ("pairs per second", "our rate ÷ TRL's", "share of the matrix peak", "peak memory, MiB"),
        strict=True,
    ):
        axis.set_title(name)
        axis.set_xlabel(title)
        axis.set_xscale("log")
        axis.set_xticks(ticks, [f"{tick / 1000:.0f}k" if tick >= 4000 else str(tick) for tick in ticks])
        axis.xaxis.set_minor_locator(NullLocator())
    axes[0].set_yscale("log")
    axes[0].yaxis.set_major_formatter(FuncFormatter(lambda rate, _: f"{rate:g}"))
    axes[0].yaxis.set_minor_formatter(FuncFormatter(lambda rate, _: f"{rate:g}"))
    axes[1].axhline(1, color="black", linewidth=0.8)
    axes[1].set_ylim(0, 1.1 * max(1, axes[1].dataLim.y1))
    axes[2].set_ylim(0, 1)
    axes[2].yaxis.set_major_formatter(FuncFormatter(lambda share, _: f"{share:.0%}"))
    axes[3].set_ylim(0, 1.1 * axes[3].dataLim.y1)
    figure.tight_layout(rect=(0, 0.08, 1, 1))
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="lower center", ncols=len(labels), frameon=False)
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


def _line(axis: Axes, rows: list[Row], column: str, color: str, style: str, label: str = "") -> None:
    """Medians, with a band from the least to the greatest value where the file has them."""
    values = [int(row["value"]) for row in rows]
    axis.plot(
        values,
        [float(row[column]) for row in rows],
        color=color,
        linestyle=style,
        marker="o",
        markersize=2.5,
        linewidth=1.3,
        label=label or None,
    )
    if f"{column}_min" in rows[0]:
        low, high = ([float(row[f"{column}_{end}"]) for row in rows] for end in ("min", "max"))
        axis.fill_between(values, low, high, color=color, alpha=0.15, linewidth=0)
