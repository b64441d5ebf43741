"""Attention over a row in which responses share their prompt's tokens.

Linear layers run over the row as it is, each token once. Only attention sees sequences apart: there the
prompt's queries, keys and values are copied behind each other response, and plain causal attention over
(sequence, position) does the rest, by whatever implementation the model library has.

Shapes: T tokens of the row, S sequences of up to L tokens in a group, Z = Σ S·L, H heads, D head size.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

NAME = "iris_shared_prompts"
NOWHERE = -1
# Sequences are padded to the longest of their group; a group holds lengths down to this share of it.
SHORTEST = 0.75
# On CPUs the fused kernel's backward pass is slow in bfloat16. Up to this length plain products win.
MATMUL_UP_TO = 512


@dataclass(frozen=True)
class SharedPrompts:
    """Where the row's tokens stand in the sequences.

    `rows_Z` names the row's token at each place of the sequences (any token at padding). `places_TK` names
    the places of each token, as many as its prompt has responses, `NOWHERE` behind its last. `sources_Z` is
    the token whose first place it is, `NOWHERE` for others. `groups` are the (S, L) that Z falls into.
    """

    rows_Z: torch.Tensor
    places_TK: torch.Tensor
    sources_Z: torch.Tensor
    groups: tuple[tuple[int, int], ...]

    @classmethod
    def of(cls, spans: Sequence[tuple[range, range]], tokens: int) -> "SharedPrompts":
        """From the (prompt, response) spans of the sequences in a row of `tokens` tokens."""
        order = sorted(range(len(spans)), key=lambda i: -len(spans[i][0]) - len(spans[i][1]))
        lengths = [len(spans[i][0]) + len(spans[i][1]) for i in order]
        starts = [0]
        for index, length in enumerate(lengths):
            if length < SHORTEST * lengths[starts[-1]]:
                starts.append(index)
        groups = tuple((end - start, lengths[start]) for start, end in pairwise([*starts, len(order)]))
        sizes = [length for count, length in groups for _ in range(count)]
        rows_Z = torch.zeros(sum(sizes), dtype=torch.long)
        places: list[list[int]] = [[] for _ in range(tokens)]
        place = 0
        for index, size in zip(order, sizes, strict=True):
            members = [*spans[index][0], *spans[index][1]]
            rows_Z[place : place + len(members)] = torch.tensor(members)
            for offset, member in enumerate(members):
                places[member].append(place + offset)
            place += size
        copies = max(map(len, places))
        places_TK = torch.tensor([each + [NOWHERE] * (copies - len(each)) for each in places])
        sources_Z = torch.full_like(rows_Z, NOWHERE)
        sources_Z[places_TK[:, 0]] = torch.arange(tokens)
        return cls(rows_Z, places_TK, sources_Z, groups)

    def to(self, device: torch.device) -> "SharedPrompts":
        """The same on `device`."""
        rows_Z, places_TK, sources_Z = (
            tensor.to(device) for tensor in (self.rows_Z, self.places_TK, self.sources_Z)
        )
        return SharedPrompts(rows_Z, places_TK, sources_Z, self.groups)


def _rows_or_zero(values: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """values[index], zero where the index is `NOWHERE`."""
    return torch.where((index != NOWHERE)[:, None], values.index_select(0, index.clamp(min=0)), 0)


class _Spread(torch.autograd.Function):
    """(T, D) to (Z, D). Its gradient gathers, as nothing is summed but a prompt's few copies."""

    @staticmethod
    def forward(ctx: Any, values_TD: torch.Tensor, rows_Z: torch.Tensor, places_TK: torch.Tensor) -> Any:
        ctx.save_for_backward(places_TK)
        return values_TD.index_select(0, rows_Z)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> Any:
        (places_TK,) = ctx.saved_tensors
        first, *others = places_TK.unbind(1)
        grad_TD = grads[0].index_select(0, first)
        for places in others:
            grad_TD = grad_TD + _rows_or_zero(grads[0], places)
        return grad_TD, None, None


class _Collect(torch.autograd.Function):
    """(Z, D) to (T, D): each token's result from its first place; all its places have the same."""

    @staticmethod
    def forward(ctx: Any, values_ZD: torch.Tensor, first_T: torch.Tensor, sources_Z: torch.Tensor) -> Any:
        ctx.save_for_backward(sources_Z)
        return values_ZD.index_select(0, first_T)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> Any:
        (sources_Z,) = ctx.saved_tensors
        return _rows_or_zero(grads[0], sources_Z), None, None


# Compilers make slower code of this than the library's own products and softmax are.
@torch.compiler.disable
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
    where = shared_prompts
    sizes = [count * length for count, length in where.groups]

    def spread(tensor: torch.Tensor) -> list[torch.Tensor]:
        _, heads, tokens, _ = tensor.shape
        rows_TD = tensor.transpose(1, 2).reshape(tokens, -1)
        parts = _Spread.apply(rows_TD, where.rows_Z, where.places_TK).split(sizes)
        return [
            part.view(*group, heads, -1).transpose(1, 2)
            for part, group in zip(parts, where.groups, strict=True)
        ]

    attended = []
    for q, k, v in zip(spread(query), spread(key), spread(value), strict=True):
        if q.device.type == "cpu" and q.dtype == torch.bfloat16 and q.shape[2] <= MATMUL_UP_TO:
            out = _matmul_attention(q, k, v, scaling)
        else:
            out, _ = ALL_ATTENTION_FUNCTIONS["sdpa"](module, q, k, v, None, scaling=scaling, **options)
        attended.append(out.reshape(out.shape[0] * out.shape[1], -1))
    together = torch.cat(attended) if len(attended) > 1 else attended[0]
    collected = _Collect.apply(together, where.places_TK[:, 0], where.sources_Z)
    return collected.view(1, query.shape[2], query.shape[1], -1), None


def _matmul_attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scaling: float | None
) -> torch.Tensor:
    """Causal attention by two batched products: (S, H, L, D) each to (S, L, H, D)."""
    count, heads, length, size = query.shape
    kv_heads = key.shape[1]
    scale = size**-0.5 if scaling is None else scaling
    mask = torch.full((length, length), float("-inf"), dtype=query.dtype, device=query.device).triu(1)
    # Heads that share keys are so many more queries of one product.
    queries = (query * scale).reshape(count * kv_heads, -1, size)
    scores = torch.bmm(queries, key.reshape(count * kv_heads, length, size).transpose(1, 2))
    scores = scores.view(count, heads, length, length) + mask
    weights = scores.softmax(-1).view(count * kv_heads, -1, length)
    out = torch.bmm(weights, value.reshape(count * kv_heads, length, -1))
    return out.view(count, heads, length, -1).transpose(1, 2)


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
    return full and model._supports_attention_backend and model._supports_sdpa


def use_shared_prompts(model: PreTrainedModel) -> None:
    """Have `model` call this attention; its decoder then wants `shared_prompts` in every call."""
    ALL_ATTENTION_FUNCTIONS.register(NAME, shared_prompt_attention)
    model.set_attn_implementation(NAME)
