"""Prompts and their responses laid out as tensors.

Shapes: B rows of T tokens, R response tokens, S sequences (a prompt with one of its responses).
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import NamedTuple

import numpy as np
import torch

from iris_ray.learner.shared_prompts import SharedPrompts

PAD = 0  # any token id: what stands on it is never looked at


class PromptGroup(NamedTuple):
    """A prompt and the responses to it, as token ids."""

    prompt: list[int]
    responses: list[list[int]]


@dataclass(frozen=True)
class TokenBatch:
    """What a forward pass needs of some prompt groups.

    The r-th response token is `labels_R[r]`, belongs to sequence `sequences_R[r]` and is predicted at
    position `predictors_R[r]` of the flattened rows. Sequences count group by group, response by response.
    `shared` tells who may look at whom where responses share their prompt's tokens. What is asked for are
    log-probs of softmax(logits / `temperature`). The head computes `head_rows` response tokens at least.
    """

    tokens_BT: torch.Tensor
    positions_BT: torch.Tensor
    predictors_R: torch.Tensor
    labels_R: torch.Tensor
    sequences_R: torch.Tensor
    sequences: int
    shared: SharedPrompts | None = None
    temperature: float = 1.0
    head_rows: int = 0

    def to(self, device: torch.device) -> "TokenBatch":
        """The same on `device`."""
        moved = {
            field.name: value.to(device)
            for field in fields(self)
            if isinstance(value := getattr(self, field.name), torch.Tensor | SharedPrompts)
        }
        return TokenBatch(**{field.name: getattr(self, field.name) for field in fields(self)} | moved)

    def sum_by_sequence(self, values_R: torch.Tensor) -> torch.Tensor:
        """Sums over the tokens of each response: (S,) float64."""
        sums_S = torch.zeros(self.sequences, dtype=torch.float64, device=values_R.device)
        return sums_S.index_add(0, self.sequences_R, values_R.double())


def pack(groups: Sequence[PromptGroup]) -> TokenBatch:
    """One row: each prompt once, its responses behind it, blind to each other.

    Positions start anew behind the prompt for every response. The row is filled up to `repeated_length`.
    """
    tokens: list[int] = []
    positions: list[np.ndarray] = []
    predictors: list[np.ndarray] = []
    spans: list[tuple[range, list[range]]] = []
    for prompt, responses in groups:
        begin, length = len(tokens), len(prompt)
        spans.append((range(begin, begin + length), []))
        tokens += prompt
        positions.append(np.arange(length))
        for response in responses:
            span = range(len(tokens), len(tokens) + len(response))
            spans[-1][1].append(span)
            tokens += response
            positions.append(np.arange(length, length + len(response)))
            predictor = np.arange(span.start - 1, span.stop - 1)
            predictor[0] = begin + length - 1
            predictors.append(predictor)
    if filling := repeated_length(len(tokens)) - len(tokens):
        spans.append((range(len(tokens), len(tokens) + filling), []))
        tokens += [PAD] * filling
        positions.append(np.zeros(filling, int))
    return TokenBatch(
        tokens_BT=torch.from_numpy(np.array([tokens])),
        positions_BT=torch.from_numpy(np.concatenate(positions)[None]),
        predictors_R=torch.from_numpy(np.concatenate(predictors)),
        labels_R=_labels(groups),
        sequences_R=_sequences(groups),
        sequences=len(predictors),
        shared=SharedPrompts.of(spans),
    )


def repeated_length(count: int) -> int:
    """`count` or up to a thirty-second more: a length that soon comes again.

    Matrix products are prepared for each new length, and memory that was freed at one does not fit another.
    On CPUs that made the steps of a small model half as long again.
    """
    step = max(16, (1 << count.bit_length() - 1) // 32)
    return -(-count // step) * step


def pad(groups: Sequence[PromptGroup]) -> TokenBatch:
    """One row a sequence, padded on the right, where a causal model cannot see it.

    Takes more tokens than `pack`, but asks nothing of the model.
    """
    rows = [(prompt, response) for prompt, responses in groups for response in responses]
    length = max(len(prompt) + len(response) for prompt, response in rows)
    tokens_BT = torch.full((len(rows), length), PAD)
    predictors: list[int] = []
    for row, (prompt, response) in enumerate(rows):
        end = len(prompt) + len(response)
        tokens_BT[row, :end] = torch.tensor(prompt + response)
        predictors += range(row * length + len(prompt) - 1, row * length + end - 1)
    return TokenBatch(
        tokens_BT=tokens_BT,
        positions_BT=torch.arange(length).expand(len(rows), -1),
        predictors_R=torch.tensor(predictors),
        labels_R=_labels(groups),
        sequences_R=_sequences(groups),
        sequences=len(rows),
    )


def _labels(groups: Sequence[PromptGroup]) -> torch.Tensor:
    labels = [np.array(response) for _, responses in groups for response in responses]
    return torch.from_numpy(np.concatenate(labels))


def _sequences(groups: Sequence[PromptGroup]) -> torch.Tensor:
    lengths = torch.tensor([len(response) for _, responses in groups for response in responses])
    return torch.arange(len(lengths)).repeat_interleave(lengths)
