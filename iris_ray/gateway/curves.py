"""The run's curves, as its folder has them."""

import math

import numpy as np

from iris_ray.config import RunConfig
from iris_ray.gateway.answers import Curve, Metrics
from iris_ray.gateway.recent import Recent
from iris_ray.plugins import objective_has_order
from iris_ray.report.decimation import decimate
from iris_ray.report.history import STEP_COLUMNS, read_history
from iris_ray.report.rates import pairs_per_second
from iris_ray.run_folder import RunFolder

FRESH_S = 1.0
NO_CURVE = ("iteration", "step", "time")


class Curves:
    """Reads metrics.jsonl now and then."""

    def __init__(self, folder: RunFolder, config: RunConfig):
        self._folder = folder
        self._config = config
        self._recent = Recent(self._read, FRESH_S)

    def __call__(self) -> Metrics:
        return self._recent()

    def _read(self) -> Metrics:
        history = read_history(self._folder, self._config, {})
        steps = history.steps
        numbers = np.arange(1, len(steps["time"]) + 1)
        hidden = (*NO_CURVE, *(() if objective_has_order(self._config) else ("alpha",)))
        curves = {
            name: _curve(numbers, steps[name]) for name in STEP_COLUMNS if name not in hidden and len(numbers)
        }
        curves["pairs_per_s"] = _curve(*pairs_per_second(history))
        scores = np.array(history.exact_matches, dtype=float).reshape(-1, 2)
        curves["exact_match"] = _curve(scores[:, 0], scores[:, 1])
        return Metrics(
            run=history.name,
            steps=len(numbers),
            ends=history.last_steps[:-1],
            curves={name: curve for name, curve in curves.items() if curve.x},
        )


def _curve(numbers: np.ndarray, values: np.ndarray) -> Curve:
    points = decimate(numbers, np.asarray(values, dtype=float))
    there = [(x, y) for x, y in zip(points.x.tolist(), points.mean.tolist(), strict=True) if math.isfinite(y)]
    return Curve(x=[x for x, _ in there], y=[y for _, y in there])
