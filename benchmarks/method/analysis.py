"""From cells to what the study says: chosen learning rates, final values with confidence intervals."""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from math import inf, sqrt
from statistics import fmean, stdev
from typing import Any

from benchmarks.method.cell import ITERATIONS, LEARNING_RATES, Cell

Results = dict[Cell, dict[str, Any]]

# Two-sided 95 % quantiles of Student's t by degrees of freedom.
T95 = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262}


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds and the half width of its 95 % confidence interval (Student's t)."""

    mean: float
    half_width: float

    @classmethod
    def of(cls, values: Iterable[float]) -> "Estimate":
        values = list(values)
        if len(values) < 2 or inf in values:
            return cls(fmean(values), inf)
        return cls(fmean(values), T95[len(values) - 1] * stdev(values) / sqrt(len(values)))

    def __str__(self) -> str:
        return f"{self.mean:.3f} ± {self.half_width:.3f}"


class Study:
    """All finished cells of one world."""

    def __init__(self, results: Results, world: str):
        self.world = world
        self.cells = {cell: entry for cell, entry in results.items() if cell.world == world}
        by_method: dict[str, set[int]] = defaultdict(set)
        for cell in self.cells:
            if all((cell.method, rate, cell.seed) in self for rate in LEARNING_RATES):
                by_method[cell.method].add(cell.seed)
        self.seeds = {method: sorted(seeds) for method, seeds in by_method.items()}
        """Seeds of each method whose cells are there at every learning rate."""

    def __contains__(self, key: tuple[str, float, int]) -> bool:
        return Cell(self.world, *key) in self.cells

    def value(self, metric: str, method: str, rate: float, seed: int, iteration: int = ITERATIONS) -> float:
        """`metric` after `iteration`; of a diverged run the worst there is."""
        iterations = self.cells[Cell(self.world, method, rate, seed)]["iterations"]
        if iteration < len(iterations):
            return iterations[iteration][metric]
        return {"validity": 0.0, "tv": 1.0}.get(metric, inf)

    def rate(self, method: str, seed: int) -> float:
        """The rate with the lowest mean final KL on the other seeds: no seed chooses for itself."""
        others = [other for other in self.seeds[method] if other != seed] or [seed]
        return min(
            LEARNING_RATES, key=lambda rate: fmean(self.value("kl", method, rate, other) for other in others)
        )

    def chosen(self, metric: str, method: str, iteration: int = ITERATIONS) -> list[float]:
        """`metric` of each seed at its chosen learning rate."""
        return [
            self.value(metric, method, self.rate(method, seed), seed, iteration)
            for seed in self.seeds[method]
        ]

    def against(self, method: str, other: str, metric: str = "kl") -> Estimate:
        """Paired difference method − other over the seeds that both have."""
        seeds = sorted(set(self.seeds[method]) & set(self.seeds[other]))
        return Estimate.of(
            self.value(metric, method, self.rate(method, seed), seed)
            - self.value(metric, other, self.rate(other, seed), seed)
            for seed in seeds
        )

    def start(self, metric: str) -> Estimate:
        """`metric` of the start models."""
        at_start = {cell.seed: entry["iterations"][0][metric] for cell, entry in self.cells.items()}
        return Estimate.of(at_start.values())

    def worsened(self, method: str, rate: float) -> float:
        """Final KL over start KL at one learning rate, the mean over seeds."""
        return fmean(
            self.value("kl", method, rate, seed) / self.value("kl", method, rate, seed, 0)
            for seed in self.seeds[method]
        )
