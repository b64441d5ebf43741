"""Attention over a row in which responses share their prompt's tokens.

Linear layers run over the row as it is, each token once. Attention tells its sequences apart: on CPUs by
kernels of our own (`row_attention`), elsewhere by the library's, each sequence alone (`sequences_apart`).

Shapes: T tokens of the row, N segments, H heads, D head size.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from iris_ray.learner.kernels import HAS_KERNELS
from iris_ray.learner.kernels.row_attention import row_attention
from iris_ray.learner.sequences_apart import Places, attention_of_sequences

NAME = "iris_shared_prompts"


@dataclass(frozen=True)
class SharedPrompts:
    """Who sees whom in a row: each response its prompt and itself.

    `segments_N4`: begin and end of each prompt or response in the row, and of a response's prompt. A prompt
    stands before its responses, and has none.
    """

    segments_N4: torch.Tensor  # on the CPU
    device: torch.device | str = "cpu"  # of the row

    @classmethod
    def of(cls, groups: Sequence[tuple[range, Sequence[range]]]) -> "SharedPrompts":
        """From the tokens of each prompt and of the responses to it."""
        rows = []
        for prompt, responses in groups:
            rows.append([prompt.start, prompt.stop, prompt.start, prompt.start])
            rows += [[span.start, span.stop, prompt.start, prompt.stop] for span in responses]
        return cls(torch.tensor(rows))

    def to(self, device: torch.device) -> "SharedPrompts":
        """Of a row on `device`."""
        return SharedPrompts(self.segments_N4, device)

    @cached_property
    def places(self) -> Places:
        """Where the row's tokens stand in sequences of their own."""
        segments = [(range(*row[:2]), range(*row[2:])) for row in self.segments_N4.tolist()]
        answered = {prompt for _, prompt in segments}
        sequences = [[*prompt, *own] for own, prompt in segments if prompt or own not in answered]
        return Places.of(sequences, tokens=segments[-1][0].stop).to(self.device)


def shared_prompt_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    shared_prompts: SharedPrompts,
    scaling: float | None = None,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """Attention function of `transformers`: (1, H, T, D) each to (1, T, H, D)."""
    if query.device.type in HAS_KERNELS:
        scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
        query_THD, key_TKD, value_TKE = (tensor[0].transpose(0, 1) for tensor in (query, key, value))
        out_THE, _ = row_attention(query_THD, key_TKD, value_TKE, shared_prompts.segments_N4, scaling)
        return out_THE[None], None
    return _apart(module, query, key, value, shared_prompts, scaling=scaling, **options), None


# Compilers make slower code of this than the library's own attention is.
@torch.compiler.disable
def _apart(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    shared_prompts: SharedPrompts,
    **options: Any,
) -> torch.Tensor:
    return attention_of_sequences(module, query, key, value, shared_prompts.places, **options)


def caps_scores(model: PreTrainedModel) -> bool:
    """Whether attention squeezes its scores (Gemma 2): the library's `eager` does, its `sdpa` does not."""
    return getattr(model.config.get_text_config(), "attn_logit_softcapping", None) is not None


def knows_shared_prompts(model: PreTrainedModel, max_length: int) -> bool:
    """Whether `model` says that this attention can take the place of its own in all its layers."""
    config = model.config.get_text_config()
    window = getattr(config, "sliding_window", None)
    layers = set(getattr(config, "layer_types", None) or ["full_attention"])
    if window and "sliding_attention" not in layers:
        # Some models have a window and no list of layers, others both and a switch that turns it off.
        window = window if not hasattr(config, "layer_types") else None
    full = layers <= {"full_attention", "sliding_attention"} and (not window or max_length <= window)
    # Attention sinks and the like are not the `sdpa` that computes here.
    plain = model._supports_attention_backend and model._supports_sdpa and not caps_scores(model)
    return full and plain


def use_shared_prompts(model: PreTrainedModel) -> None:
    """Have `model` call this attention; its decoder then wants `shared_prompts` in every call."""
    ALL_ATTENTION_FUNCTIONS.register(NAME, shared_prompt_attention)
    model.set_attn_implementation(NAME)
