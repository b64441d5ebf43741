"""What travels between the parts. Plain data: no torch, no Ray."""

from dataclasses import dataclass
from typing import Literal

FinishReason = Literal["stop", "length"]


@dataclass(frozen=True)
class Demonstration:
    """An annotated prompt–response pair. Token ids; the response ends with the end token."""

    prompt_id: int
    prompt_tokens: list[int]
    response_tokens: list[int]


@dataclass(frozen=True)
class SelfPlayPair:
    """An annotated response y beside the response y' that an opponent wrote to the same prompt.

    `synthetic_tokens` ends with the end token when `finish_reason` is `stop`; a response cut at the
    length limit (`length`) has none and is trained on as it is. `version` is the opponent's weights
    version.
    """

    iteration: int
    prompt_id: int
    prompt_tokens: list[int]
    real_tokens: list[int]
    synthetic_tokens: list[int]
    finish_reason: FinishReason
    version: int

    @property
    def num_tokens(self) -> int:
        return 2 * len(self.prompt_tokens) + len(self.real_tokens) + len(self.synthetic_tokens)


@dataclass(frozen=True)
class StepReport:
    """One optimiser step over the batch of all ranks.

    Rewards are sequence log-ratios in nats, `ess_*` effective sample sizes in sequences. `grad_norm` is
    before clipping, `None` where DeepSpeed does not tell it (ZeRO 0 in float32).
    """

    loss: float
    reward_real: float
    reward_synthetic: float
    ess_real: float
    ess_synthetic: float
    grad_norm: float | None
    learning_rate: float
    pairs: int
    truncated: int


@dataclass(frozen=True)
class Update:
    """A finished weight update of a generator.

    `seconds` in all, `paused_seconds` in which generation stood still, and the proof: the largest
    difference between its log-probs and the learner's, in nats per token.
    """

    generator: str
    version: int
    seconds: float
    paused_seconds: float
    parity_max_abs_diff: float
