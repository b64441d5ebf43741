"""The game's rules: which opponent comes next, at which order, and when it is over."""

from dataclasses import asdict, dataclass
from typing import Any

from iris_ray.alpha import SCHEDULES
from iris_ray.config import RunConfig
from iris_ray.gap import GAP_ESTIMATORS, PairMeans


@dataclass(frozen=True)
class Round:
    """Training against one frozen opponent. `iteration` counts from 1; `version` is its weights.

    `gap` is D̂ in nats per response token (or response), `alpha` the order that follows, `reason` how.
    """

    iteration: int
    version: int
    alpha: float
    gap: float
    reason: str


class Game:
    """Hands out rounds one after the other; deterministic, its state is a small dict."""

    def __init__(self, config: RunConfig):
        self.config = config
        self.schedule = SCHEDULES[config.alpha.schedule]
        self.estimator = GAP_ESTIMATORS[config.alpha.gap]
        self.gaps: list[float] = []
        self.end: PairMeans | None = None

    @property
    def iterations(self) -> int:
        """Rounds that were handed out so far."""
        return len(self.gaps)

    def next_round(self, version: int) -> Round | None:
        """The round against the opponent `version`, or `None` when the game is over."""
        if len(self.gaps) >= self.config.schedule.iterations:  # fewer than before a resume, maybe
            return None
        if self.end is not None and self.estimator.at == "end":
            self.gaps.append(self._gap(self.end))
            return self._round(version, f"{self.config.alpha.gap} gap")
        self.gaps.append(self.config.alpha.initial_gap)
        return self._round(version, "initial gap")

    def measured_start(self, round_: Round, start: PairMeans) -> Round:
        """The same round, its order set anew if the gap is measured on the opponent's first batch."""
        if self.estimator.at != "start":
            return round_
        self.gaps[-1] = self._gap(start)
        return self._round(round_.version, f"{self.config.alpha.gap} gap")

    def measured_end(self, end: PairMeans) -> None:
        """Take in how training against the opponent ended."""
        self.end = end

    def _gap(self, means: PairMeans) -> float:
        per_token = self.estimator.estimate(means)
        return per_token * means.tokens if self.config.alpha.gap_per == "sequence" else per_token

    def _round(self, version: int, source: str) -> Round:
        settings, gap = self.config.alpha, self.gaps[-1]
        alpha = self.schedule(settings, self.gaps, self.config.schedule.iterations)
        reason = f"{settings.schedule}, {source} {gap:.4f}"
        return Round(len(self.gaps), version, alpha, gap, reason)

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint must keep to go on with the same orders. Plain JSON types."""
        return {"gaps": list(self.gaps), "end": self.end and asdict(self.end)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state_dict` was taken."""
        self.gaps = list(state["gaps"])
        self.end = PairMeans(**state["end"]) if state["end"] else None
