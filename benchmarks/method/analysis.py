"""From cells to what the study says: chosen learning rates, final values with confidence intervals."""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from math import exp, inf, log, sqrt
from statistics import fmean, stdev

from benchmarks.method.cell import ITERATIONS, LEARNING_RATES, Cell
from benchmarks.method.results import Row

Results = dict[Cell, Row]

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


def geometric_mean(values: Iterable[float]) -> float:
    """exp(mean log); infinite if one of `values` is."""
    return exp(fmean(map(log, values)))


class Study:
    """All finished cells of one world."""

    def __init__(self, results: Results, world: str):
        self.world = world
        self.cells = {cell: row for cell, row in results.items() if cell.world == world}
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
        worst = {"validity": 0.0, "tv": 1.0}.get(metric, inf)
        return self.cells[Cell(self.world, method, rate, seed)].get(f"{metric}_{iteration}", worst)

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
        at_start = {cell.seed: row[f"{metric}_0"] for cell, row in self.cells.items()}
        return Estimate.of(at_start.values())

    def log_ratios(self, method: str, other: str, rate: float) -> list[float]:
        """log(final KL of `method` ÷ that of `other`) at one learning rate, paired by seed."""
        seeds = sorted(set(self.seeds[method]) & set(self.seeds[other]))
        return [
            log(self.value("kl", method, rate, seed) / self.value("kl", other, rate, seed)) for seed in seeds
        ]

    def worsened(self, method: str, rate: float | None = None) -> float:
        """Final KL over start KL, geometric mean over seeds; at the chosen rates unless one is given."""
        rates = {seed: rate or self.rate(method, seed) for seed in self.seeds[method]}
        return geometric_mean(
            self.value("kl", method, rates[seed], seed) / self.value("kl", method, rates[seed], seed, 0)
            for seed in rates
        )
