"""What the sample buffer gives generators to do."""

from dataclasses import dataclass
from typing import NamedTuple

from iris_ray.contracts import Demonstration
from iris_ray.data.splits import demonstrations
from iris_ray.round_buffer import sampling_seed


@dataclass(frozen=True)
class Task:
    """One prompt to answer; `seed` makes the answer independent of who writes it.

    `replica` counts the answers to the same prompt from 0.
    """

    position: int
    demonstration: Demonstration
    seed: int
    replica: int = 0


class RoundKey(NamedTuple):
    """Names a round: an iteration is played again when the run goes back to a checkpoint."""

    attempt: int
    iteration: int


@dataclass(frozen=True)
class Lease:
    """Prompts of a round that a generator has promised to answer with weights `version`.

    For each of `positions` the row of its prompt, and which answer to it this is. `seed` is the run's.
    """

    round: RoundKey
    version: int
    seed: int
    positions: list[int]
    replicas: list[int]
    rows: bytes

    def tasks(self) -> list[Task]:
        """Made by who does them: the buffer has many to serve."""
        prompts = demonstrations(self.rows)
        seeds = [
            sampling_seed(self.seed, self.round.iteration, row.prompt_id, replica)
            for row, replica in zip(prompts, self.replicas, strict=True)
        ]
        return list(map(Task, self.positions, prompts, seeds, self.replicas))
