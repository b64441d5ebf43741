"""T-SPIN: no reference; three responses to a prompt in their order."""

import torch
from pydantic import NonNegativeFloat
from torch.nn.functional import logsigmoid

from iris_ray.objectives.pairs import differences
from iris_ray.objectives.registry import LogProbObjective, register_objective


@register_objective("tspin", kind=LogProbObjective)
def tspin(
    real: torch.Tensor,
    synthetic: torch.Tensor,
    initial: torch.Tensor | None = None,
    *,
    a: NonNegativeFloat = 1.0,
    b: NonNegativeFloat = 0.1,
) -> torch.Tensor:
    """mean[ℓ(a·(log p(y) − log p(y'))) + b·ℓ(a·(log p(y') − log p(y0)))], ℓ = −log σ ([note]).

    Inputs are raw log-probs under p_θ, not log-ratios. y0 was written once by the first model. Without
    `initial` the second term is left out: that is b = 0, as in iteration 0, where y' is y0 itself.
    """
    loss = -logsigmoid(a * differences(real, synthetic)).mean()
    if initial is None:
        return loss
    return loss - b * logsigmoid(a * differences(synthetic, initial)).mean()
