"""What happens to the run: the same in the same order for the same seed."""

import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

Means = Literal["kill", "hang", "driver", "order"]


@dataclass(frozen=True)
class Fault:
    """`victim`: the kind of process, or the order. `times`: how often a deck holds it.

    `calm`: what holds the run's state, the learner and the driver live on.
    """

    means: Means
    victim: str
    times: int = 1
    calm: bool = False

    @property
    def name(self) -> str:
        return f"{self.means} {self.victim}"


FAULTS = (
    Fault("kill", "generator", 3, calm=True),
    Fault("kill", "engine", 2, calm=True),
    Fault("hang", "engine", 1, calm=True),
    Fault("hang", "generator", 1, calm=True),
    Fault("kill", "learner", 2),
    Fault("kill", "buffer"),
    Fault("kill", "controller"),
    Fault("kill", "store"),
    Fault("kill", "pool"),
    Fault("kill", "train"),
    Fault("driver", "SIGINT"),
    Fault("driver", "SIGKILL"),
    Fault("order", "scale", 4, calm=True),
    Fault("order", "pause", 1, calm=True),
    Fault("order", "checkpoint", 1, calm=True),
    Fault("order", "stop"),
)


@dataclass(frozen=True)
class Planned:
    """`after_s`: from the one before, or from when the run played again.

    `draw`: a number in [0, 1) that settles what else is open.
    """

    after_s: float
    fault: Fault
    draw: float


def plan(seed: int, gap_s: float, calm: bool) -> Iterator[Planned]:
    """Shuffled decks of all faults, or of the calm ones, card by card and without an end."""
    rng = random.Random(f"{seed} {calm}")
    while True:
        deck = [fault for fault in FAULTS if fault.calm or not calm for _ in range(fault.times)]
        rng.shuffle(deck)
        for fault in deck:
            yield Planned(gap_s * rng.uniform(0.4, 1.6), fault, rng.random())
