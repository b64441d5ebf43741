"""The tilted mean."""

import math

import torch


def tilted_mean(u: torch.Tensor, t: float) -> torch.Tensor:
    """M_t(u) = (1/t)·log mean_i exp(t·u_i), and M_0(u) = mean(u) (TERM, Li et al. 2021).

    `u` (N,) in nats; returns a 0-D float64 tensor, finite for |t·u| far beyond exp's range.
    """
    u = u.double()
    mean = u.mean()
    if t == 0:
        return mean
    v = t * (u - mean)
    if v.detach().abs().max() <= 1:
        # Near t = 0 the logarithm's argument is 1 + O(t²): expm1 and log1p keep its digits.
        return mean + torch.log1p(torch.expm1(v).mean()) / t
    return (torch.logsumexp(t * u, 0) - math.log(u.numel())) / t
