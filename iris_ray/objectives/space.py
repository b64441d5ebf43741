"""SPACE: two independent classifications, annotated against noise, synthetic against noise."""

import math

import torch
from pydantic import PositiveFloat
from torch.nn.functional import logsigmoid

from iris_ray.objectives.registry import register_objective


@register_objective("space")
def space(real: torch.Tensor, synthetic: torch.Tensor, *, mu: PositiveFloat = 1.0) -> torch.Tensor:
    """mean softplus(log μ − r) + μ·mean softplus(r' − log μ) ([note]; μ = 1 default, 3 and 7 reported).

    Noise-contrastive estimation with μ synthetic responses for each annotated one: the Jensen–Shannon
    regime at μ = 1. Counts of both sides may differ.
    """
    log_mu = math.log(mu)
    return -logsigmoid(real - log_mu).mean() - mu * logsigmoid(log_mu - synthetic).mean()
