"""Several runs on one page."""

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from matplotlib.axes import Axes
from matplotlib.ticker import PercentFormatter

from iris_ray.plugins import objective_has_order
from iris_ray.report.charts import Chart, chart
from iris_ray.report.decimation import decimate
from iris_ray.report.history import History
from iris_ray.report.pairs_shown import Writing, archives, in_turn, read_rows
from iris_ray.report.rates import pairs_per_second
from iris_ray.report.svg import SERIES
from iris_ray.report.templating import render

SHOWN = 6  # prompts
PLACE = {"run.name", "run.folder"}  # differ between any two runs
DASHES = ("-", (0, (4, 1.5)), (0, (1, 1)))  # when the colours have run out
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


@dataclass(frozen=True)
class SharedPrompt:
    """A prompt that all runs wrote to in their last archived iteration, and what each wrote."""

    prompt: str
    real: str
    written: list[Writing]


def comparison_page(histories: Sequence[History]) -> str:
    """HTML that needs nothing beside itself: results, settings that differ, curves, pairs."""
    names = distinct_names(histories)
    players = [
        Player(
            history,
            name,
            SERIES[number % len(SERIES)],
            DASHES[number // len(SERIES) % len(DASHES)],
            objective_has_order(history.config),
        )
        for number, (history, name) in enumerate(zip(histories, names, strict=True))
    ]
    return render(
        "comparison.html",
        title="Runs compared: " + ", ".join(names),
        players=players,
        series={colour: f"series-{number}" for number, colour in enumerate(SERIES, 1)},
        differences=differences(histories),
        charts=list(_charts(players)),
        prompts=shared_prompts(histories),
    )


def distinct_names(histories: Sequence[History]) -> list[str]:
    """Names of the runs; where two have the same, their folders as seen from here."""
    names = [history.name for history in histories]
    if len(set(names)) == len(names):
        return names
    return [os.path.relpath(history.folder.path) for history in histories]


def differences(histories: Sequence[History]) -> dict[str, list[Any]]:
    """Settings that are not the same in all runs, each with every run's value; `None` where it has none."""
    settings = [dict(_flat(history.config.model_dump(mode="json"))) for history in histories]
    keys = dict.fromkeys(key for mine in settings for key in mine if key not in PLACE)
    values = {key: [mine.get(key) for mine in settings] for key in keys}
    return {key: mine for key, mine in values.items() if any(value != mine[0] for value in mine)}


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, dict) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _charts(players: Sequence[Player]) -> Iterator[Chart]:
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
            axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=None))

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

    ends = ", ".join(f"{player.name} ends at {values[-1]:.4g}" for player, _, values in curves)
    yield chart(title, unit, "", "pairs trained on", f"{title}: {ends}", draw, name.replace("_", "-"))


def _pairs_at(history: History, steps: Sequence[int] | np.ndarray | range) -> np.ndarray:
    """Pairs trained on after so many steps."""
    done = np.concatenate([[0.0], np.nancumsum(history.steps["pairs"])])
    return done[np.asarray(steps, dtype=int)]


def shared_prompts(histories: Sequence[History], most: int = SHOWN) -> list[SharedPrompt]:
    """Prompts with the same annotated response that all runs wrote to in their last archived iteration.

    Prompts are taken in turn by who wrote the annotated response, of each such group the first.
    """
    files = [mine[-1] for history in histories if (mine := archives(history.folder))]
    if len(files) < len(histories):
        return []
    rows: list[dict[tuple[str, str], int]] = []
    for path in files:
        table = pq.read_table(path, columns=["prompt", "real"])
        keys = zip(table["prompt"].to_pylist(), table["real"].to_pylist(), strict=True)
        found: dict[tuple[str, str], int] = {}
        for row, key in enumerate(keys):
            found.setdefault(key, row)  # several responses to a prompt: the first that was kept
        rows.append(found)
    common = [key for key in rows[0] if all(key in mine for mine in rows)]
    if not common:
        return []
    same = np.stack(
        [_same_at(path, [mine[key] for key in common]) for path, mine in zip(files, rows, strict=True)]
    )
    patterns = np.unique(same, axis=1).T
    groups = [np.flatnonzero((pattern == same.T).all(axis=1)) for pattern in patterns]
    chosen = [common[place] for place in in_turn(groups, most)]
    written = [read_rows(path, [mine[key] for key in chosen]) for path, mine in zip(files, rows, strict=True)]
    return [
        SharedPrompt(prompt, real, list(responses))
        for (prompt, real), *responses in zip(chosen, *written, strict=True)
    ]


def _same_at(path: Any, rows: Sequence[int]) -> np.ndarray:
    table = pq.read_table(path, columns=["real", "synthetic"]).take(rows)
    return np.array(table["real"].to_pylist()) == np.array(table["synthetic"].to_pylist())
