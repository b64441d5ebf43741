"""IRIS: two independent tilted risks, one per kind of data."""

import torch

from iris_ray.objectives.registry import register_objective
from iris_ray.objectives.tilted import tilted_mean


@register_objective("iris")
def iris(real: torch.Tensor, synthetic: torch.Tensor, *, alpha: float) -> torch.Tensor:
    """L_α = −M_{α−1}(r) + M_α(r') ([note], confirmed by an independent numeric example).

    Its gradient weighs each sequence: −softmax((α−1)·r) on annotated and +softmax(α·r') on synthetic
    ones. L_α ≥ −D_α(p_data‖p_t)/α, with equality exactly when p_θ = p_data ([derived]).
    """
    return -tilted_mean(real, alpha - 1) + tilted_mean(synthetic, alpha)
