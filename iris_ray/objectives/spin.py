"""SPIN: annotated against synthetic response, pair by pair."""

from typing import Literal

import torch
from pydantic import PositiveFloat
from torch.nn.functional import logsigmoid

from iris_ray.objectives.pairs import differences
from iris_ray.objectives.registry import register_objective


@register_objective("spin")
def spin(
    real: torch.Tensor,
    synthetic: torch.Tensor,
    *,
    lam: PositiveFloat = 0.1,
    loss: Literal["logistic", "hinge", "linear"] = "logistic",
) -> torch.Tensor:
    """mean ℓ(λ·(r_i − r'_i)) over pairs, ℓ(t) = log(1 + e^{−t}); or max(0, 1 − t); or −t.

    Source: SPIN paper and code, whose scripts use λ=0.1 in iterations 0 to 2 and 5 later. The logistic
    loss is DPO's with the opponent as the reference and λ for β.
    """
    t = lam * differences(real, synthetic)
    if loss == "hinge":
        return (1 - t).clamp(min=0).mean()
    if loss == "linear":
        return -t.mean()
    return -logsigmoid(t).mean()
