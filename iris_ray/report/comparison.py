"""The page that puts several runs side by side."""

import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from iris_ray.plugins import objective_has_order
from iris_ray.report.history import History
from iris_ray.report.overlays import Player, overlaid_charts
from iris_ray.report.shared_prompts import shared_prompts
from iris_ray.report.svg import SERIES
from iris_ray.report.templating import render

PLACE = {"run.name", "run.folder"}  # differ between any two runs
DASHES = ("-", (0, (4, 1.5)), (0, (1, 1)))  # when the colours have run out


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
        charts=list(overlaid_charts(players)),
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
