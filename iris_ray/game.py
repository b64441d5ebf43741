"""The game's rules: which opponent comes next, at which order, and when it is over."""

from dataclasses import dataclass

from iris_ray.alpha import RoundEnd, next_order
from iris_ray.config import RunConfig


@dataclass(frozen=True)
class Round:
    """Training against one frozen opponent. `iteration` counts from 1; `version` is its weights."""

    iteration: int
    version: int
    alpha: float
    gap: float
    reason: str


class Game:
    """Hands out rounds one after the other."""

    def __init__(self, config: RunConfig):
        self.config = config
        self.iteration = 0

    def next_round(self, version: int, end: RoundEnd | None) -> Round | None:
        """The round against the opponent `version`, or `None` when the game is over.

        `end` tells how the previous round ended; `None` for the first.
        """
        if self.iteration == self.config.schedule.iterations:
            return None
        self.iteration += 1
        order = next_order(self.config.alpha, end)
        return Round(self.iteration, version, order.alpha, order.gap, order.reason)
