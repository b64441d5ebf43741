"""Self-play pairs laid out as tensors.

Shapes: S sequences (annotated first, then synthetic, then the first model's), T tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from iris_ray.contracts import SelfPlayPair

IGNORED = -100  # torch's own mark for a label that does not count


@dataclass(frozen=True)
class MicroBatch:
    """`tokens_ST` padded on the right; `labels_ST` are the tokens of responses, `IGNORED` elsewhere."""

    tokens_ST: torch.Tensor
    labels_ST: torch.Tensor


def lay_out(sequences: Sequence[tuple[list[int], list[int]]], pad: int) -> MicroBatch:
    """Lay (prompt, response) token lists side by side."""
    length = max((len(prompt) + len(response) for prompt, response in sequences), default=2)
    tokens_ST = torch.full((len(sequences), length), pad)
    labels_ST = torch.full((len(sequences), length), IGNORED)
    for row, (prompt, response) in enumerate(sequences):
        end = len(prompt) + len(response)
        tokens_ST[row, :end] = torch.tensor(prompt + response)
        labels_ST[row, len(prompt) : end] = torch.tensor(response)
    return MicroBatch(tokens_ST, labels_ST)


def micro_batches(pairs: Sequence[SelfPlayPair], size: int, pad: int) -> list[tuple[MicroBatch, list[int]]]:
    """Split pairs into micro-batches of up to `size` pairs of similar length.

    Each comes with the indices of its pairs. It holds their annotated sequences, then the synthetic ones,
    then those of the first model where the pairs have them.
    """
    order = sorted(range(len(pairs)), key=lambda i: pairs[i].num_tokens)
    batches = []
    for start in range(0, len(order), size):
        indices = order[start : start + size]
        chosen = [pairs[i] for i in indices]
        sequences = [(pair.prompt_tokens, pair.real_tokens) for pair in chosen]
        sequences += [(pair.prompt_tokens, pair.synthetic_tokens) for pair in chosen]
        sequences += [(pair.prompt_tokens, pair.initial_tokens) for pair in chosen if pair.initial_tokens]
        batches.append((lay_out(sequences, pad), indices))
    return batches
