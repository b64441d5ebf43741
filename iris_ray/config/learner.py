"""Settings of the learner and its checkpoints."""

import math
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from iris_ray.config.section import Section


class Learner(Section):
    workers: int = Field(1, ge=1)
    """Ranks of the learner (Ray Train workers)."""
    num_cpus: float = Field(1, gt=0)
    """Cores per rank."""
    num_gpus: float = Field(0, ge=0, le=1)
    """GPUs per rank: one, or a part of one if there is a single rank."""
    resources: dict[str, Annotated[float, Field(gt=0)]] = {}
    """Custom Ray resources per rank."""
    labels: dict[str, str] = {}
    """Ray label selector of the ranks' nodes."""
    zero_stage: Literal[0, 1, 2, 3] = 2
    """DeepSpeed ZeRO stage."""
    offload: Literal["none", "optimizer", "parameters"] = "none"
    """Keep in CPU memory: the `optimizer`'s state (ZeRO 1 to 3), or it and the `parameters` (ZeRO 3)."""
    gradient_checkpointing: bool = False
    """Compute activations again in the backward pass instead of keeping them: less memory, more time."""
    batch_size: int = Field(64, ge=1)
    """Pairs per optimiser step, over all ranks. The objective is normalised over all of them."""
    micro_batch_tokens: int = Field(16384, ge=1)
    """Tokens per forward pass of one rank, a pair's prompt counted once. Bounds memory; changes nothing
    else. A single longer pair still passes."""
    compile: bool = False
    """Compile the model's layers (torch.compile): a minute's start, then faster steps."""
    optimizer: Literal["adamw", "rmsprop"] = "adamw"
    """`rmsprop` (α = 0.99) is what the SPIN family trains with."""
    adam_betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = (0.9, 0.999)
    learning_rate: float | list[float] = 5e-7
    """One rate, or a list of one per iteration, the last one going on."""
    lr_schedule: Literal["constant", "linear", "cosine"] = "cosine"
    """Course of the learning rate within an iteration, after warm-up."""
    lr_warmup_ratio: float = Field(0.1, ge=0, le=1)
    weight_decay: float = Field(0.0, ge=0)
    """Not applied to biases and norm weights."""
    max_grad_norm: float = Field(1.0, gt=0)
    max_skipped_steps: int = Field(10, ge=0)
    """Steps in a row that may be skipped because loss or gradient is not finite; one more ends the run."""
    max_failures: int = Field(3, ge=0)
    """How often a learner that died is started again from its last checkpoint."""
    reference: Literal["learner", "generator"] = "learner"
    """Where log p of the opponent comes from: `learner` keeps a frozen copy on each rank; with `generator`
    the engine that wrote a pair scores it, and the learner holds no second model."""

    @field_validator("learning_rate", mode="plain")
    @classmethod
    def _positive(cls, value: Any) -> float | list[float]:
        several = isinstance(value, list | tuple)
        try:
            rates = [float(rate) for rate in (value if several else [value])]
        except (TypeError, ValueError):
            rates = []
        if not rates or not all(0 < rate < math.inf for rate in rates):
            raise ValueError(
                f"{value!r} does not fit: input should be greater than 0, or a list of such, "
                "one per iteration."
            )
        return rates if several else rates[0]

    @model_validator(mode="after")
    def _ranks_fit(self) -> "Learner":
        if self.workers > 1 and self.num_gpus % 1:
            raise ValueError(
                f"learner.num_gpus ({self.num_gpus:g}): with learner.workers ({self.workers}) each rank "
                "needs a whole GPU, as NCCL takes no two on one. Set learner.num_gpus=1, or learner.workers=1"
            )
        return self

    @model_validator(mode="after")
    def _offloads(self) -> "Learner":
        lowest = {"none": 0, "optimizer": 1, "parameters": 3}[self.offload]
        if self.zero_stage < lowest:
            raise ValueError(
                f"learner.offload ({self.offload}) needs learner.zero_stage ({self.zero_stage}) "
                f"to be at least {lowest}"
            )
        return self


class Checkpoint(Section):
    every_steps: int | None = Field(200, ge=1)
    """Optimiser steps between checkpoints within an iteration, beside the one at its end. Empty: none."""
    keep: int = Field(2, ge=1)
    """The newest checkpoints that are kept."""
    storage: str | None = None
    """Where checkpoints go: a folder that all nodes see, or a URI such as `s3://bucket/runs`. Empty: the run
    folder."""
