"""Objectives by name."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, ValidationError, create_model

from iris_ray.errors import ConfigError
from iris_ray.registry import Registry

RESPONSES = ("real", "synthetic", "initial")
"""Kinds of response an objective may look at: annotated y, the opponent's y', the first model's y0."""


@dataclass(frozen=True)
class Objective:
    """Loss of a whole optimiser step's batch, from one number per response.

    Which number is the type's to say: `LogRatioObjective` or `LogProbObjective`.
    """

    name: str
    function: Callable[..., torch.Tensor]
    options: dict[str, Any] = field(default_factory=dict)

    def __call__(
        self,
        real: torch.Tensor,
        synthetic: torch.Tensor | None = None,
        initial: torch.Tensor | None = None,
        *,
        alpha: float | None = None,
    ) -> torch.Tensor:
        """Loss of annotated (N,), synthetic (M,) and initial (K,) responses, in nats each.

        Returns a 0-D float64 tensor, differentiable in all that it looks at; what the objective does
        not look at may be left out. `alpha` is the order, for objectives that have one. Raises
        `ValueError` for an empty side, and for unequal counts where pairs are compared.
        """
        scores = {}
        for name, values in zip(RESPONSES, (real, synthetic, initial), strict=True):
            if name not in self.responses or values is None:
                continue
            if values.dim() != 1 or len(values) == 0:
                raise ValueError(f"{self.name}: {name} must be a non-empty vector, not {tuple(values.shape)}")
            scores[name] = values.double()
        order = {"alpha": alpha} if self.has_order and alpha is not None else {}
        return self.function(**scores, **order, **self.options)

    @property
    def responses(self) -> tuple[str, ...]:
        """Kinds of response it looks at, a beginning of `RESPONSES`."""
        return _responses(self.function)

    @property
    def has_order(self) -> bool:
        """Whether α means anything to it."""
        return "alpha" in inspect.signature(self.function).parameters


class LogRatioObjective(Objective):
    """Looks at sequence log-ratios log p_θ − log p_t against the opponent: the "rewards" r and r'."""


class LogProbObjective(Objective):
    """Looks at raw sequence log-probs log p_θ: the opponent's own probabilities do not enter."""


@dataclass(frozen=True)
class _Entry:
    function: Callable[..., torch.Tensor]
    kind: type[Objective]
    options: type[BaseModel]


OBJECTIVES: Registry[_Entry] = Registry("objective.name", "Objectives")


def register_objective(
    name: str, kind: type[Objective] = LogRatioObjective
) -> Callable[[Callable[..., torch.Tensor]], Callable[..., torch.Tensor]]:
    """Decorator: makes `function` available under `name`.

    Its parameters say what it needs: `real`, or `real, synthetic`, or `real, synthetic, initial` (float64
    vectors, `None` by default where it can do without), then by keyword `alpha` if it has an order, and
    its options with their types and defaults. Types may carry limits (pydantic's `PositiveFloat`).
    """

    def register(function: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
        if (responses := _responses(function)) != RESPONSES[: len(responses)] or not responses:
            raise TypeError(f"objective {name}: its first parameters must be {', '.join(RESPONSES)}")
        OBJECTIVES.register(name)(_Entry(function, kind, _options_model(name, function)))
        return function

    return register


def build_objective(name: str, /, **options: Any) -> Objective:
    """The objective called `name` with its options set.

    Raises `ConfigError` naming what exists if the name or an option is unknown, and for a value that does
    not fit.
    """
    entry = OBJECTIVES[name]
    try:
        checked = entry.options(**options)
    except ValidationError as error:
        raise ConfigError("\n".join(_explain(name, entry, dict(item)) for item in error.errors())) from error
    return entry.kind(name, entry.function, dict(checked))


def _responses(function: Callable[..., torch.Tensor]) -> tuple[str, ...]:
    parameters = inspect.signature(function).parameters.values()
    return tuple(p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD)


def _options_model(name: str, function: Callable[..., torch.Tensor]) -> type[BaseModel]:
    parameters = inspect.signature(function, eval_str=True).parameters.values()
    fields: dict[str, Any] = {
        p.name: (
            Any if p.annotation is p.empty else p.annotation,
            ... if p.default is p.empty else p.default,
        )
        for p in parameters
        if p.kind is p.KEYWORD_ONLY and p.name != "alpha"
    }
    return create_model(
        name, __config__=ConfigDict(extra="forbid", allow_inf_nan=False, validate_default=True), **fields
    )


def _explain(name: str, entry: _Entry, item: dict[str, Any]) -> str:
    option = f"objective.options.{item['loc'][0]}"
    if item["type"] == "extra_forbidden":
        listed = ", ".join(entry.options.model_fields) or "none"
        return f"{option}: {name} has no such option. It has: {listed}."
    if item["type"] == "missing":
        return f"{option}: is missing; {name} needs it."
    return f"{option}: {item['input']!r} does not fit: {item['msg'][0].lower()}{item['msg'][1:]}."
