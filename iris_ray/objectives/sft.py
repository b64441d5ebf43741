"""Ordinary supervised fine-tuning, the baseline."""

import torch

from iris_ray.objectives.registry import LogProbObjective, register_objective


@register_objective("sft", kind=LogProbObjective)
def sft(real: torch.Tensor) -> torch.Tensor:
    """−mean log p_θ(y) per sequence; synthetic responses do not enter."""
    return -real.mean()
