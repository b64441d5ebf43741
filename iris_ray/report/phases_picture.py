"""What the learner spent its time on, drawn: a bar for each iteration."""

import numpy as np
from markupsafe import Markup
from matplotlib.ticker import MaxNLocator

from iris_ray.report.history import History
from iris_ray.report.svg import FAINT, SERIES, drawing, inline_svg

MOST_ITERATIONS = 24  # the newest
# Phases of `iris_ray.contracts.PHASES`, those that say the same to who looks at a run in one.
SHOWN = {
    "waits for pairs": ("wait", "fetch"),
    "scores references": ("score",),
    "forward": ("forward",),
    "backward": ("backward",),
    "optimiser": ("optimizer",),
    "publishes weights": ("publish",),
    "between iterations": ("between",),
    "checkpoints and the rest": ("checkpoint", "other"),
}
COLOURS = (FAINT, SERIES[2], SERIES[0], SERIES[3], SERIES[5], SERIES[4], SERIES[1], SERIES[6])


def phases_svg(history: History) -> Markup | None:
    """`None` while no step was taken."""
    entries = history.iterations[-MOST_ITERATIONS:]
    if not entries:
        return None
    shown = [
        np.array([sum(entry["learner_seconds"][phase] for phase in phases) for entry in entries])
        for phases in SHOWN.values()
    ]
    with drawing(10, 0.9 + 0.26 * len(entries)) as figure:
        axes = figure.add_subplot()
        begins = np.zeros(len(entries))
        for name, seconds, colour in zip(SHOWN, shown, COLOURS, strict=True):
            axes.barh(range(len(entries)), seconds, left=begins, height=0.7, color=colour, label=name)
            begins += seconds
        axes.set_yticks(range(len(entries)), [str(entry["iteration"]) for entry in entries])
        axes.set_ylim(len(entries) - 0.45, -0.55)
        axes.tick_params(axis="y", length=0)
        axes.xaxis.set_major_locator(MaxNLocator(12))
        axes.grid(visible=False, axis="y")
        axes.set_ylabel("iteration")
        axes.set_xlabel("seconds of the learner")
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1.01), ncols=len(SHOWN))
        total = begins.sum() or 1.0
        parts = ", ".join(f"{name} {s.sum() / total:.0%}" for name, s in zip(SHOWN, shown, strict=True))
        return inline_svg(figure, "phases", f"The learner's time: {parts}")
