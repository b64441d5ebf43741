"""SPIF: the χ² game with a linear link."""

from typing import Annotated

import torch
from pydantic import Field, NonNegativeFloat, PositiveFloat

from iris_ray.objectives.registry import register_objective


@register_objective("spif")
def spif(
    real: torch.Tensor,
    synthetic: torch.Tensor,
    *,
    lam: PositiveFloat = 0.1,
    c: NonNegativeFloat = 0.5,
    mix: Annotated[float, Field(ge=0, le=1)] = 0.5,
) -> torch.Tensor:
    """−mean s + mean s' + c·(a·mean s² + (1−a)·mean s'²) with s = λr, s' = λr', a = `mix`.

    [derived] from the χ² game: an integral probability metric whose critic pays for its size. The linear
    link and the defaults of `lam`, `c` and `mix` are [choice]. Counts of both sides may differ.
    """
    s, t = lam * real, lam * synthetic
    return -s.mean() + t.mean() + c * (mix * (s**2).mean() + (1 - mix) * (t**2).mean())
