"""Settings of the game: objective, order α, rounds."""

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from iris_ray.config.section import Section


class Objective(Section):
    name: str = "iris"
    """`iris`, `spin`, `space`, `spif`, `tspin`, `sft`, or one that a plug-in registers."""
    options: dict[str, Any] = {}
    """Options of the objective, for instance `lam`."""
    by_iteration: dict[str, Annotated[list[Any], Field(min_length=1)]] = {}
    """Options that change: a list of one value per iteration, the last one going on."""

    @model_validator(mode="after")
    def _one_value(self) -> "Objective":
        if twice := self.options.keys() & self.by_iteration.keys():
            raise ValueError(
                f"{', '.join(sorted(twice))}: set in options and in by_iteration. Set it in one of them"
            )
        return self

    def options_in(self, iteration: int) -> dict[str, Any]:
        """All options in `iteration`, which counts from 1."""
        changing = {name: values[:iteration][-1] for name, values in self.by_iteration.items()}
        return self.options | changing


class Alpha(Section):
    schedule: str = "gap_feedback"
    """`fixed` keeps `value`; `geometric` goes from `first` to `last` by equal factors; `gap_feedback` sets
    α = clip(1 + c·D̂, minimum, maximum) per opponent."""
    value: float = Field(1.0, ge=0)
    """The order α of schedule `fixed`."""
    first: float = Field(2.0, gt=0)
    """The order of schedule `geometric` against the first opponent."""
    last: float = Field(1.0, gt=0)
    """And against the last one."""
    c: float = Field(0.5, ge=0)
    """Gain of the gap feedback."""
    minimum: float = Field(0.5, ge=0)
    maximum: float = 3.0
    gap: str = "variational"
    """Estimator of the gap D̂: `margin`, `variational` or `nll`. The default is the method study's."""
    gap_per: Literal["token", "sequence"] = "token"
    """Whether D̂ counts nats per response token or per response."""
    initial_gap: float = Field(0.0, ge=0)
    """D̂ before the first opponent was trained against."""
    options: dict[str, Any] = {}
    """Settings of a schedule of your own."""

    @model_validator(mode="after")
    def _ordered(self) -> "Alpha":
        if self.maximum < self.minimum:
            raise ValueError(
                f"alpha.maximum ({self.maximum}) must be at least alpha.minimum ({self.minimum})"
            )
        return self


class Schedule(Section):
    iterations: int = Field(5, ge=1)
    """Opponents to play against, one after the other."""
    epochs: int = Field(2, ge=1)
    """Passes over the pairs of one opponent."""
    prompts_per_iteration: int | None = Field(None, ge=1)
    """Prompts drawn anew for each opponent. Empty: all."""
    refresh: Literal["iteration"] | Annotated[int, Field(ge=1)] = "iteration"
    """When the opponent is replaced: `iteration` freezes it until all its pairs are trained on; a number
    plays the online game, with a new opponent after so many optimiser steps."""
    overlap: bool = True
    """Train while the opponent still writes. `false` waits until it has written all: to see what that is
    worth."""
    max_staleness: int = Field(1, ge=0)
    """Online, by how many versions the oldest that wrote some of a response may lie behind the newest when
    the pair is trained on."""
