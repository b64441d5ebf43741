"""How a rank's share of a batch is split into forward passes."""

import math
from collections.abc import Sequence

from iris_ray.batching import balance


def micro_batches(sizes: Sequence[int], max_tokens: int) -> list[list[int]]:
    """Indices of `sizes` (in tokens) in as few groups of at most `max_tokens` as balancing finds.

    The groups hold about the same number of tokens each. An item larger than `max_tokens` gets a group of
    its own.
    """
    count = math.ceil(sum(sizes) / max_tokens)
    while True:
        groups = [sorted(group) for group in balance(sizes, count) if group]
        if all(len(group) == 1 or sum(sizes[i] for i in group) <= max_tokens for group in groups):
            return groups
        count += 1


def padded_micro_batches(shapes: Sequence[tuple[int, int]], max_tokens: int) -> list[list[int]]:
    """The same where a group is one table, each row as long as its longest.

    `shapes`: rows and longest length of each item. Those of like length come together.
    """
    groups: list[list[int]] = []
    length = rows = 0
    for item in sorted(range(len(shapes)), key=lambda i: (-shapes[i][1], i)):
        rows += shapes[item][0]
        if not groups or rows * length > max_tokens:
            groups.append([])
            rows, length = shapes[item]
        groups[-1].append(item)
    return [sorted(group) for group in groups]
