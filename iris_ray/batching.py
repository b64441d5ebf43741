"""How a batch is shared out."""

from collections.abc import Sequence


def balance(sizes: Sequence[int], ranks: int) -> list[list[int]]:
    """Share out items so that each rank gets about the same total size, largest items first.

    Returns the item indices of each rank. Depends on `sizes` alone, so every rank computes the same.
    """
    shares: list[list[int]] = [[] for _ in range(ranks)]
    totals = [0] * ranks
    for item in sorted(range(len(sizes)), key=lambda i: (-sizes[i], i)):
        lightest = min(range(ranks), key=lambda rank: (totals[rank], rank))
        shares[lightest].append(item)
        totals[lightest] += sizes[item]
    return shares
