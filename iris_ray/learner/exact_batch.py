"""A batch that is spread over ranks."""

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


def largest_over_ranks(value: int) -> int:
    """The largest `value` that any rank brings."""
    values = [value] * dist.get_world_size()
    if len(values) > 1:
        dist.all_gather_object(values, value)
    return max(values)
