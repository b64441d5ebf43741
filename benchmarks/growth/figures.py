"""Figures of the curves and of long runs, from the CSV files alone."""

from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from benchmarks.growth.results import Results, Row, load
from benchmarks.growth.tables import TITLES
from benchmarks.processes import KINDS
from benchmarks.style import STYLE

COLORS = dict(
    zip(KINDS, ("tab:blue", "tab:red", "tab:purple", "tab:green", "tab:orange", "tab:gray"), strict=True)
)
STORE = "tab:brown"
FAR = 5  # the factor over which values must range for a logarithmic scale
PANELS = (  # title; columns with label and colour
    ("pairs per second", {"pairs_per_s": ("", "tab:green")}),
    (
        "seconds",
        {
            "start_s": ("start", "tab:blue"),
            "prepare_s": ("of it data", "tab:cyan"),
            "boundary_s": ("boundary", "tab:orange"),
        },
    ),
    ("peak memory, MiB", {"peak_mib": ("", "black")}),
    ("peak private memory, MiB", {f"{kind}_mib": (kind, COLORS[kind]) for kind in KINDS}),
)

mpl.rcParams.update(STYLE)


def draw(results: Results) -> list[Path]:
    """Draw a figure for each curve that has points, beside the CSV files."""
    drawn = []
    for curve, title in TITLES.items():
        rows = results.rows(curve)
        if rows:
            drawn.append(results.folder / f"{curve}.svg")
            if curve == "iterations":
                _draw_course(load(results.course(int(rows[-1]["value"]))), drawn[-1])
            else:
                _draw(rows, title, drawn[-1])
    return drawn


def _draw(rows: list[Row], title: str, path: Path) -> None:
    figure, axes = plt.subplots(1, len(PANELS), figsize=(14, 3.2))
    values = [int(row["value"]) for row in rows]
    for axis, (name, columns) in zip(axes, PANELS, strict=True):
        for column, (label, color) in columns.items():
            _line(axis, values, [float(row[column]) for row in rows], color, label, "o")
        _ends(axis, name, title)
        if values[-1] > FAR * values[0]:
            axis.set_xscale("log")
        axis.set_xticks(values, [_short(value) for value in values])
        axis.xaxis.set_minor_locator(NullLocator())
        shown = [float(row[column]) for row in rows for column in columns]
        if max(shown) > FAR * min(shown):
            axis.set_yscale("log")
            axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            axis.yaxis.set_minor_locator(NullLocator())
        else:
            axis.set_ylim(bottom=0)
    _save(figure, path)


def _draw_course(rows: list[Row], path: Path) -> None:
    figure, (seconds, memory, store, handles) = plt.subplots(1, 4, figsize=(14, 3.2))
    numbers = [int(row["iteration"]) for row in rows]
    _line(seconds, numbers[1:], [float(row["seconds"]) for row in rows[1:]], "tab:blue", "")
    for kind in KINDS:
        _line(memory, numbers, [float(row[f"{kind}_mib"]) for row in rows], COLORS[kind], kind)
        _line(handles, numbers, [float(row[f"{kind}_handles"]) for row in rows], COLORS[kind], "")
    _line(store, numbers, [float(row["store_mib"]) for row in rows], STORE, "")
    titles = ("seconds of an iteration", "private memory, MiB", "object store, MiB", "file handles")
    for axis, name in zip((seconds, memory, store, handles), titles, strict=True):
        _ends(axis, name, "iterations")
        axis.set_ylim(bottom=0)
    _save(figure, path)


def _line(
    axis: Axes, x: list[int], y: list[float], color: str, label: str, marker: str | None = None
) -> None:
    axis.plot(x, y, color=color, label=label or None, marker=marker, markersize=2.5, linewidth=1.3)


def _ends(axis: Axes, name: str, title: str) -> None:
    axis.set_title(name)
    axis.set_xlabel(title)
    if axis.get_legend_handles_labels()[1]:
        axis.legend(frameon=False, fontsize=7, loc="upper left", bbox_to_anchor=(1, 1), borderaxespad=0)


def _short(value: int) -> str:
    return f"{value:,}" if value < 10_000 else f"$10^{len(str(value)) - 1}$"


def _save(figure: plt.Figure, path: Path) -> None:
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)
