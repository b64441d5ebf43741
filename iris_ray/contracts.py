"""What travels between the parts. Plain data: no torch, no Ray."""

from dataclasses import dataclass, field
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
