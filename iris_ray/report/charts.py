"""The curves of one run, small charts of one width."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator, PercentFormatter

from iris_ray.report.decimation import decimate
from iris_ray.report.history import History
from iris_ray.report.panels import GRADIENT, HELD_OUT, LOSS, Line, Panel, step_panels
from iris_ray.report.rates import pairs_per_second
from iris_ray.report.svg import ALARM, FAINT, REAL, drawing, inline_svg

WIDTH, HEIGHT = 4.2, 2.2  # inches
MOST_BOUNDARIES = 40
STEEP = 30  # the factor over which values must range for a logarithmic scale
SKIPPED = "marks at the bottom: steps skipped, as loss or gradient was not finite"


@dataclass(frozen=True)
class Chart:
    """A picture and its caption."""

    title: str
    note: str
    svg: Markup


def run_charts(history: History, has_order: bool) -> list[Chart]:
    """Exact match, then everything that is recorded of each step; what has no value is left out."""
    charts = []
    if history.exact_matches:
        charts.append(_exact_match(history))
    charts += [_held_out(history, panel) for panel in HELD_OUT if history.held_out(panel.lines[0].column)]
    if len(history.steps["time"]):
        charts += [_steps(history, panel) for panel in step_panels(history, has_order)]
        charts += _speed(history)
    return charts


def chart(
    title: str, unit: str, note: str, across: str, label: str, draw: Callable[[Axes], None], name: str
) -> Chart:
    """Let `draw` draw on axes whose x-axis says `across`, and make an element of the page of them."""
    with drawing(WIDTH, HEIGHT) as figure:
        axes = figure.add_subplot()
        axes.set_title(unit)
        axes.set_xlabel(across)
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        draw(axes)
        axes.margins(x=0.02)
        if axes.get_legend_handles_labels()[1]:
            axes.legend(loc="lower right", bbox_to_anchor=(1, 1.01), ncols=3)
        return Chart(title, note, inline_svg(figure, name, label))


def _exact_match(history: History) -> Chart:
    steps, scores = (np.array(column, dtype=float) for column in zip(*history.exact_matches, strict=True))

    def draw(axes: Axes) -> None:
        axes.plot(steps, scores, color=REAL, marker="o", markersize=4, markeredgewidth=0)
        percent_axis(axes)
        mark_iterations(axes, history)

    label = f"Exact match from {scores[0]:.1%} to {scores[-1]:.1%}, best {scores.max():.1%}"
    note = "held-out prompts whose greedy answer is the annotated one"
    return chart("Exact match", "of held-out prompts", note, "optimiser step", label, draw, "exact-match")


def _held_out(history: History, panel: Panel) -> Chart:
    curves = [
        (line, np.array(history.held_out(line.column)).T)
        for line in panel.lines
        if history.held_out(line.column)
    ]

    def draw(axes: Axes) -> None:
        for line, (steps, scores) in curves:
            axes.plot(steps, scores, color=line.colour, label=line.label, marker="o", markersize=4)
        mark_iterations(axes, history)

    label = f"{panel.title}: " + "; ".join(_words(scores, line.label) for line, (_, scores) in curves)
    name = "-".join(panel.title.lower().split())
    return chart(panel.title, panel.unit, panel.note, "optimiser step", label, draw, name)


def _steps(history: History, panel: Panel) -> Chart:
    steps = history.steps
    lines = [line for line in panel.lines if np.isfinite(steps[line.column]).any()]
    skipped = np.flatnonzero(steps["skipped"] == 1) + 1 if panel in (LOSS, GRADIENT) else ()

    def draw(axes: Axes) -> None:
        for line in lines:
            _draw_line(axes, history, line)
        if len(skipped):
            axes.plot(skipped, np.zeros(len(skipped)), "|", color=ALARM, transform=axes.get_xaxis_transform())
        if panel is GRADIENT:
            limit = history.config.learner.max_grad_norm
            axes.axhline(
                limit, color=FAINT, linewidth=1, linestyle=(0, (4, 2)), label=f"clipped at {limit:g}"
            )
            steep_axis(axes, steps["grad_norm"])
        mark_iterations(axes, history)

    note = SKIPPED if len(skipped) else panel.note
    label = f"{panel.title}: " + "; ".join(_words(steps[line.column], line.label) for line in lines)
    name = "-".join("".join(c if c.isalnum() else " " for c in panel.title.lower()).split())
    return chart(panel.title, panel.unit, note, "optimiser step", label, draw, name)


def _draw_line(axes: Axes, history: History, line: Line) -> None:
    values = history.steps[line.column]
    numbers = np.arange(1, len(values) + 1)
    curve = decimate(numbers, values)
    low, high = curve.low, curve.high
    if line.spread:
        spread = decimate(numbers, history.steps[line.spread]).mean
        low, high = curve.mean - spread, curve.mean + spread
    if line.spread or len(curve.x) < len(values):
        axes.fill_between(curve.x, low, high, color=line.colour, alpha=0.18)
    dot = "o" if len(curve.x) == 1 else ""
    axes.plot(curve.x, curve.mean, color=line.colour, label=line.label, marker=dot, markersize=4)


def _speed(history: History) -> Iterable[Chart]:
    steps, rates = pairs_per_second(history)
    if not len(steps):
        return

    def draw(axes: Axes) -> None:
        axes.plot(steps, rates, color=REAL)
        axes.set_ylim(bottom=0)
        mark_iterations(axes, history)

    label = f"Pairs per second: {_words(rates, '')}"
    yield chart(
        "Speed", "pairs per second", "of the learner, while it steps", "optimiser step", label, draw, "speed"
    )


def percent_axis(axes: Axes) -> None:
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=None))


def steep_axis(axes: Axes, values: np.ndarray) -> None:
    """A logarithmic scale, if `values` range far."""
    positive = values[values > 0]
    if len(positive) and positive.max() > STEEP * positive.min():
        axes.set_yscale("log")


def mark_iterations(axes: Axes, history: History) -> None:
    """A line after the last step of each iteration but the last."""
    ends = history.last_steps[:-1]
    for end in ends[:: max(1, len(ends) // MOST_BOUNDARIES)]:
        axes.axvline(end + 0.5, color=FAINT, linewidth=0.7, linestyle=(0, (1, 2)))


def _words(values: np.ndarray, label: str) -> str:
    finite = values[np.isfinite(values)]
    extremes = (
        f"first {finite[0]:.4g}, last {finite[-1]:.4g}, least {finite.min():.4g}, largest {finite.max():.4g}"
    )
    return f"{label} {extremes}".strip()
