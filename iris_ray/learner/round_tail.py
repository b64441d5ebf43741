"""How training against an opponent ended."""

from collections import deque

import torch

from iris_ray.errors import IrisRayError
from iris_ray.gap import PairMeans
from iris_ray.learner.batch_rows import BatchRows
from iris_ray.objectives import Objective

TAIL = 0.1  # share of a round's steps that counts as its end; at least two, as a pass may end on a small one


class RoundTail:
    """Keeps the rows of a round's last steps."""

    def __init__(self, steps: int):
        self.rows: deque[BatchRows] = deque(maxlen=max(2, round(TAIL * steps)))

    def add(self, rows: BatchRows) -> None:
        """Take in a step's rows; the oldest ones are let go."""
        self.rows.append(rows)

    def means(self, objective: Objective, alpha: float) -> PairMeans:
        """Means over the kept steps; losses run over all of them at once.

        Raises `IrisRayError` if there are none.
        """
        if not self.rows:
            raise IrisRayError(
                "every step of this round was skipped, as loss or gradient was not finite. Lower "
                "learner.learning_rate, or train with model.dtype=float32."
            )
        return BatchRows(torch.cat([rows.table for rows in self.rows])).means(objective, alpha)
