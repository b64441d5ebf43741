"""A batch that is spread over ranks."""

from collections.abc import Sequence
from itertools import zip_longest

import torch
import torch.distributed as dist


def gather_rows(rows: torch.Tensor) -> tuple[torch.Tensor, slice]:
    """Concatenate every rank's rows in rank order; ranks may hold different numbers of them.

    Returns all rows and the slice that is this rank's own.
    """
    gathered: list[torch.Tensor] = [rows] * dist.get_world_size()
    if len(gathered) > 1:
        dist.all_gather_object(gathered, rows)
    start = sum(len(part) for part in gathered[: dist.get_rank()])
    return torch.cat(gathered), slice(start, start + len(rows))


def largest_over_ranks(values: Sequence[int]) -> list[int]:
    """At each place the largest of the `values` that ranks bring, whose lists may differ in length."""
    gathered: list[Sequence[int]] = [values] * dist.get_world_size()
    if len(gathered) > 1:
        dist.all_gather_object(gathered, values)
    return [max(at) for at in zip_longest(*gathered, fillvalue=0)]
