"""The curves of several runs over each other."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from iris_ray.report.charts import Chart, chart, percent_axis, steep_axis
from iris_ray.report.decimation import decimate
from iris_ray.report.history import History
from iris_ray.report.rates import pairs_per_second

# Titles, units and columns of the overlaid curves.
OVERLAID = (
    ("Loss", "each objective's own", "loss"),
    ("Order α", "", "alpha"),
    ("Gap D̂", "nats", "gap"),
    ("Reward of annotated responses", "nats per response", "reward_real"),
    ("Reward of synthetic responses", "nats per response", "reward_synthetic"),
    ("Effective sample size, annotated", "responses", "ess_real"),
    ("Effective sample size, synthetic", "responses", "ess_synthetic"),
    ("Gradient norm", "before clipping", "grad_norm"),
    ("Learning rate", "", "learning_rate"),
    ("Response length", "tokens", "response_tokens"),
    ("Staleness", "versions, mean", "staleness_mean"),
)


@dataclass(frozen=True)
class Player:
    """A run in the comparison; `colour` and `dash` are those of its curves."""

    history: History
    name: str
    colour: str
    dash: Any
    has_order: bool


def overlaid_charts(players: Sequence[Player]) -> Iterator[Chart]:
    """Every curve over the pairs trained on, as batches may differ in size."""
    evaluated = [
        (player, _pairs_at(player.history, [step for step, _ in player.history.exact_matches]), scores)
        for player in players
        if (scores := [score for _, score in player.history.exact_matches])
    ]
    if evaluated:

        def draw(axes: Axes) -> None:
            for player, pairs, scores in evaluated:
                style = {"color": player.colour, "linestyle": player.dash}
                axes.plot(pairs, scores, marker="o", markersize=4, markeredgewidth=0, **style)
            percent_axis(axes)

        label = "Exact match: " + ", ".join(
            f"{player.name} from {scores[0]:.1%} to {scores[-1]:.1%}" for player, _, scores in evaluated
        )
        yield chart("Exact match", "of held-out prompts", "", "pairs trained on", label, draw, "exact-match")
    for title, unit, column in OVERLAID:
        curves = []
        for player in players:
            values = player.history.steps[column]
            if np.isfinite(values).any() and (column != "alpha" or player.has_order):
                pairs = _pairs_at(player.history, range(1, len(values) + 1))
                curve = decimate(pairs, values)
                curves.append((player, curve.x, curve.mean))
        if column != "staleness_mean" or any(mean.max(initial=0) > 0 for *_, mean in curves):
            yield from _overlay(title, unit, column, curves)
    speeds = []
    for player in players:
        steps, rates = pairs_per_second(player.history)
        if len(steps):
            speeds.append((player, _pairs_at(player.history, steps.astype(int)), rates))
    yield from _overlay("Speed", "pairs per second", "speed", speeds)


def _overlay(
    title: str, unit: str, name: str, curves: Sequence[tuple[Player, np.ndarray, np.ndarray]]
) -> Iterator[Chart]:
    if not curves:
        return

    def draw(axes: Axes) -> None:
        for player, x, values in curves:
            axes.plot(x, values, color=player.colour, linestyle=player.dash, linewidth=1.2)
        if name == "grad_norm":
            steep_axis(axes, np.concatenate([values for *_, values in curves]))

    ends = ", ".join(f"{player.name} ends at {values[-1]:.4g}" for player, _, values in curves)
    yield chart(title, unit, "", "pairs trained on", f"{title}: {ends}", draw, name.replace("_", "-"))


def _pairs_at(history: History, steps: Sequence[int] | np.ndarray | range) -> np.ndarray:
    """Pairs trained on after so many steps."""
    done = np.concatenate([[0.0], np.nancumsum(history.steps["pairs"])])
    return done[np.asarray(steps, dtype=int)]
