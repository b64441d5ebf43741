"""What happens to the run, and when: the same for the same seed."""

import random
from dataclasses import dataclass
from typing import Literal

from benchmarks.soak.settings import Settings

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
    Fault("driver", "SIGINT"),
    Fault("driver", "SIGKILL"),
    Fault("order", "scale", 4, calm=True),
    Fault("order", "pause", 1, calm=True),
    Fault("order", "checkpoint", 1, calm=True),
    Fault("order", "stop"),
)


@dataclass(frozen=True)
class Planned:
    """`at_s`: from the first step on; `draw`: a number in [0, 1) that settles what else is open."""

    at_s: float
    fault: Fault
    draw: float


def schedule(settings: Settings) -> list[Planned]:
    """Decks of all faults, shuffled, one card at a time; from half-time on only of the calm ones."""
    rng = random.Random(settings.seed)
    planned: list[Planned] = []
    deck: list[Fault] = []
    now, calm = 0.0, False
    while (now := now + settings.gap_s * rng.uniform(0.4, 1.6)) < settings.seconds:
        if not calm and now >= settings.half_s:
            calm, deck = True, []
        if not deck:
            deck = [fault for fault in FAULTS if fault.calm or not calm for _ in range(fault.times)]
            rng.shuffle(deck)
        planned.append(Planned(now, deck.pop(), rng.random()))
    return planned
