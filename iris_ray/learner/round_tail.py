"""How training against an opponent ended."""

from collections import deque

import torch

from iris_ray.alpha import RoundEnd
from iris_ray.objectives import Objective, coefficients

TAIL = 0.1  # share of a round's steps that counts as its end


class RoundTail:
    """Keeps the rewards of a round's last steps."""

    def __init__(self, steps: int):
        self._rows: deque[torch.Tensor] = deque(maxlen=max(1, round(TAIL * steps)))

    def add(self, rows: torch.Tensor) -> None:
        """`rows` of a `StepResult`."""
        self._rows.append(rows)

    def end(self, objective: Objective, alpha: float) -> RoundEnd:
        """Means over the kept steps; the loss is the objective's on all of them at once."""
        rows = torch.cat(tuple(self._rows))
        real, synthetic, tokens, _ = rows.T
        return RoundEnd(
            reward_real=real.mean().item(),
            reward_synthetic=synthetic.mean().item(),
            loss=coefficients(objective, real, synthetic, alpha=alpha).loss,
            alpha=alpha,
            response_tokens=tokens.mean().item(),
        )
