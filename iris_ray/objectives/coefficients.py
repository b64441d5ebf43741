"""What each sequence contributes to the gradient of a whole batch."""

from dataclasses import dataclass

import torch

from iris_ray.objectives.registry import RESPONSES, Objective


@dataclass(frozen=True)
class Coefficients:
    """Loss of a batch and its derivative with respect to the score of each sequence (float64).

    Every objective sees θ through the scores alone, so `real` (N,), `synthetic` (M,) and `initial` (K,)
    are the factors of ∇log p_θ of each sequence: all that a micro-batch must know of the others. Zero
    where the objective does not look, `None` where nothing was given.
    """

    loss: float
    real: torch.Tensor
    synthetic: torch.Tensor | None = None
    initial: torch.Tensor | None = None


def coefficients(
    objective: Objective,
    real: torch.Tensor,
    synthetic: torch.Tensor | None = None,
    initial: torch.Tensor | None = None,
    *,
    alpha: float | None = None,
) -> Coefficients:
    """Evaluate `objective` on the scores of the whole batch, (N,), (M,) and (K,) in nats."""
    given = {
        name: values.detach().double().requires_grad_()
        for name, values in zip(RESPONSES, (real, synthetic, initial), strict=True)
        if values is not None
    }
    loss = objective(**given, alpha=alpha)
    grads = torch.autograd.grad(loss, list(given.values()), materialize_grads=True)
    return Coefficients(loss.item(), **dict(zip(given, grads, strict=True)))


def effective_sample_size(weights: torch.Tensor) -> float:
    """ESS = (Σ|w|)² / Σw²: how many of the sequences carry the gradient.

    N when all weigh the same, 0 when none weighs anything.
    """
    squares = (weights**2).sum()
    return (weights.abs().sum() ** 2 / squares).item() if squares > 0 else 0.0
