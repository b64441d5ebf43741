"""A run's metrics, on their way to Ray's endpoint for Prometheus."""

from typing import Any

from ray.util.metrics import Counter, Gauge

from iris_ray.metrics import METRICS


class RunMetrics:
    """Lives in the driver, which asks for the run's status anyhow, several times a second.

    Ray forgets a gauge that is not set anew, so those of a generator that left go with it.
    """

    def __init__(self, run: str):
        self.run = run
        self.metrics = [metric for metrics in METRICS.values() for metric in metrics]
        self.exported: dict[str, Any] = {
            metric.name: (Counter if metric.is_counter else Gauge)(metric.name, metric.help, metric.labels)
            for metric in self.metrics
        }
        self.counted: dict[tuple[str, ...], float] = {}

    def update(self, status: dict[str, Any]) -> None:
        for metric in self.metrics:
            for labels, value in metric.samples(self.run, status):
                if metric.is_counter:
                    self._count((metric.name, *labels.values()), value, labels)
                else:
                    self.exported[metric.name].set(value, labels)

    def _count(self, key: tuple[str, ...], value: float, labels: dict[str, str]) -> None:
        """Add what came since the last time; a value that fell is that of a run that went back."""
        grown = value - self.counted.get(key, 0.0)
        self.counted[key] = value
        if grown > 0:
            self.exported[key[0]].inc(grown, labels)
