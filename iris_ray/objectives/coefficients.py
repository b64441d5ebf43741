"""What each sequence contributes to the gradient of a whole batch."""

from dataclasses import dataclass

import torch

from iris_ray.objectives.registry import Objective


@dataclass(frozen=True)
class Coefficients:
    """Loss of a batch and its derivative with respect to each sequence log-ratio (float64).

    Every objective sees θ through the log-ratios alone, so `real` (N,) and `synthetic` (M,) are the
    factors of ∇log p_θ of each sequence: all that a micro-batch must know of the others.
    """

    loss: float
    real: torch.Tensor
    synthetic: torch.Tensor


def coefficients(
    objective: Objective, real: torch.Tensor, synthetic: torch.Tensor, *, alpha: float
) -> Coefficients:
    """Evaluate `objective` on the log-ratios of the whole batch, (N,) and (M,) in nats."""
    real = real.detach().double().requires_grad_()
    synthetic = synthetic.detach().double().requires_grad_()
    loss = objective(real, synthetic, alpha=alpha)
    grad_real, grad_synthetic = torch.autograd.grad(loss, (real, synthetic))
    return Coefficients(loss.item(), grad_real, grad_synthetic)


def effective_sample_size(weights: torch.Tensor) -> float:
    """ESS = (Σ|w|)² / Σw²: how many of the sequences carry the gradient. N when all weigh the same."""
    return (weights.abs().sum() ** 2 / (weights**2).sum()).item()
