"""What both sides train, and on what. Plain data: no torch, so that the parent process stays small."""

import random
from dataclasses import dataclass
from itertools import count
from typing import Literal

from iris_ray.contracts import SelfPlayPair, VersionSpan

DType = Literal["bf16", "fp32"]
TORCH_NAMES: dict[DType, str] = {"bf16": "bfloat16", "fp32": "float32"}
LEARNING_RATE = 1e-5
# The first two tokens of the vocabulary stand for nothing else.
PAD, END = 0, 1


@dataclass(frozen=True)
class Workload:
    """A Qwen2 with tied embeddings, and pairs of random tokens.

    Lengths are in tokens, those of the responses with their end token. They are uniform within
    `(1 ± spread)` of their means, so that with a spread a batch needs padding.
    """

    vocab: int = 512
    hidden: int = 256
    intermediate: int = 768
    layers: int = 4
    heads: int = 4
    kv_heads: int = 2
    prompt_tokens: int = 53
    response_tokens: int = 64
    spread: float = 0.5
    pairs: int = 16
    """Pairs in a batch, which is one optimiser step."""
    seed: int = 0

    @property
    def parameters(self) -> int:
        """Parameters of the model, tied ones once."""
        kv = self.hidden // self.heads * self.kv_heads
        attention = 2 * self.hidden**2 + 2 * self.hidden * kv + self.hidden + 2 * kv
        layer = attention + 3 * self.hidden * self.intermediate + 2 * self.hidden
        return self.vocab * self.hidden + self.layers * layer + self.hidden

    @property
    def longest(self) -> int:
        """No sequence has more tokens."""
        return int((1 + self.spread) * (self.prompt_tokens + self.response_tokens)) + 2

    def batches(self, steps: int) -> list[list[SelfPlayPair]]:
        """Pairs of `steps` batches, the same in every process. `prompt_id` tells all of them apart."""
        rng = random.Random(self.seed)
        ids = count()

        def tokens(mean: int) -> list[int]:
            length = rng.uniform(1 - self.spread, 1 + self.spread) * mean
            return rng.choices(range(END + 1, self.vocab), k=max(1, round(length)))

        def response() -> list[int]:
            return [*tokens(self.response_tokens)[1:], END]

        def pair() -> SelfPlayPair:
            prompt, real, synthetic = tokens(self.prompt_tokens), response(), response()
            spans = [VersionSpan(0, len(synthetic))]
            return SelfPlayPair(1, next(ids), prompt, real, synthetic, "stop", 0, spans)

        return [[pair() for _ in range(self.pairs)] for _ in range(steps)]
