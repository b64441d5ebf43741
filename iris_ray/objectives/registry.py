"""Objectives by name."""

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any, Protocol

import torch

from iris_ray.errors import ConfigError


class Objective(Protocol):
    """Loss of a whole optimiser step's batch.

    `real` (N,) and `synthetic` (M,): sequence log-ratios log p_θ − log p_t in nats, of annotated and
    synthetic responses. Returns a 0-D float64 tensor, differentiable in both.
    """

    def __call__(self, real: torch.Tensor, synthetic: torch.Tensor, *, alpha: float) -> torch.Tensor: ...


_REGISTRY: dict[str, Callable[..., torch.Tensor]] = {}


def register_objective(name: str) -> Callable[[Callable[..., torch.Tensor]], Callable[..., torch.Tensor]]:
    """Decorator: makes `function(real, synthetic, *, alpha, <options>)` available under `name`."""

    def register(function: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
        _REGISTRY[name] = function
        return function

    return register


def build_objective(name: str, **options: Any) -> Objective:
    """The objective called `name` with its options set.

    Raises `ConfigError` naming what exists if the name or an option is unknown.
    """
    if name not in _REGISTRY:
        listed = ", ".join(sorted(_REGISTRY))
        raise ConfigError(f"objective.name: {name!r} does not exist. Objectives: {listed}.")
    function = _REGISTRY[name]
    parameters = inspect.signature(function).parameters.values()
    known = [p.name for p in parameters if p.kind is p.KEYWORD_ONLY and p.name != "alpha"]
    for option in options:
        if option not in known:
            listed = ", ".join(known) or "none"
            raise ConfigError(f"objective.options.{option}: {name} has no such option. It has: {listed}.")
    return partial(function, **options)
