"""The same attention where the row's own kernels do not go (GPUs): sequences apart.

A prompt's queries, keys and values are copied behind each other response, and plain causal attention over
(sequence, position) does the rest, by whatever implementation the model library has.

Shapes: T tokens of the row, S sequences of up to L tokens in a group, Z = Σ S·L, D size of all heads.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

# Sequences are padded to the longest of their group; a group holds lengths down to this share of it.
SHORTEST = 0.75


@dataclass(frozen=True)
class Places:
    """Where the row's tokens stand in the sequences.

    `rows_Z` names the row's token at each place of the sequences (any token at padding), `firsts_T` the
    first place of each token, and `copies` the (tokens, places) of all second places, of all third ones,
    and so on: a prompt's token has as many places as the prompt has responses. `sources_Z` is the token
    whose first place it is (any token elsewhere), `others` all places that are no token's first. `groups`
    are the (S, L) that Z falls into.
    """

    rows_Z: torch.Tensor
    firsts_T: torch.Tensor
    copies: tuple[tuple[torch.Tensor, torch.Tensor], ...]
    sources_Z: torch.Tensor
    others: torch.Tensor
    groups: tuple[tuple[int, int], ...]

    @classmethod
    def of(cls, sequences: Sequence[Sequence[int]], tokens: int) -> "Places":
        """From the places that the tokens of each sequence have in a row of `tokens` tokens."""
        members = sorted(map(list, sequences), key=len, reverse=True)
        starts = [0]
        for index, member in enumerate(members):
            if len(member) < SHORTEST * len(members[starts[-1]]):
                starts.append(index)
        bounds = [*starts, len(members)]
        groups = tuple((end - start, len(members[start])) for start, end in pairwise(bounds))
        lengths = [length for count, length in groups for _ in range(count)]
        padded = [
            member + [-1] * (length - len(member)) for member, length in zip(members, lengths, strict=True)
        ]
        rows_Z = torch.tensor([token for member in padded for token in member])
        # All places, token by token.
        places = rows_Z.argsort(stable=True)[int((rows_Z < 0).sum()) :]
        counts_T = rows_Z[places].bincount(minlength=tokens)
        begins_T = counts_T.cumsum(0) - counts_T
        firsts_T = places[begins_T]
        copies = []
        for number in range(1, int(counts_T.max())):
            again = (counts_T > number).nonzero()[:, 0]
            copies.append((again, places[begins_T[again] + number]))
        sources_Z = torch.full_like(rows_Z, -1)
        sources_Z[firsts_T] = torch.arange(tokens)
        others = (sources_Z < 0).nonzero()[:, 0]
        return cls(rows_Z.clamp(min=0), firsts_T, tuple(copies), sources_Z.clamp(min=0), others, groups)

    def to(self, device: torch.device | str) -> "Places":
        """The same on `device`."""
        return Places(
            self.rows_Z.to(device),
            self.firsts_T.to(device),
            tuple((tokens.to(device), places.to(device)) for tokens, places in self.copies),
            self.sources_Z.to(device),
            self.others.to(device),
            self.groups,
        )


class _Spread(torch.autograd.Function):
    """(T, D) to (Z, D). Its gradient gathers, as nothing is summed but a prompt's few copies."""

    @staticmethod
    def forward(ctx: Any, values_TD: torch.Tensor, where: Places) -> Any:
        ctx.where = where
        return values_TD.index_select(0, where.rows_Z)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> Any:
        grad_TD = grads[0].index_select(0, ctx.where.firsts_T)
        for tokens, places in ctx.where.copies:
            grad_TD.index_add_(0, tokens, grads[0].index_select(0, places))
        return grad_TD, None


class _Collect(torch.autograd.Function):
    """(Z, D) to (T, D): each token's result from its first place; all its places have the same."""

    @staticmethod
    def forward(ctx: Any, values_ZD: torch.Tensor, where: Places) -> Any:
        ctx.where = where
        return values_ZD.index_select(0, where.firsts_T)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> Any:
        grad_ZD = grads[0].index_select(0, ctx.where.sources_Z)
        return grad_ZD.index_fill_(0, ctx.where.others, 0), None


def attention_of_sequences(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    where: Places,
    **options: Any,
) -> torch.Tensor:
    """Attention of each sequence alone: (1, H, T, D) each to (1, T, H, D); `options` are the library's."""
    sizes = [count * length for count, length in where.groups]

    def spread(tensor: torch.Tensor) -> list[torch.Tensor]:
        _, heads, tokens, _ = tensor.shape
        rows_TD = tensor.transpose(1, 2).reshape(tokens, -1)
        together = _Spread.apply(rows_TD, where)
        parts = together.split(sizes) if len(sizes) > 1 else [together]
        return [
            part.view(*group, heads, -1).transpose(1, 2)
            for part, group in zip(parts, where.groups, strict=True)
        ]

    attended = []
    for q, k, v in zip(spread(query), spread(key), spread(value), strict=True):
        out, _ = ALL_ATTENTION_FUNCTIONS["sdpa"](module, q, k, v, None, **options)
        attended.append(out.reshape(out.shape[0] * out.shape[1], -1))
    together = torch.cat(attended) if len(attended) > 1 else attended[0]
    collected = _Collect.apply(together, where)
    return collected.view(1, query.shape[2], query.shape[1], -1)
