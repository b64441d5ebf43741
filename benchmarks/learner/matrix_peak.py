"""The fastest matrix products that this process can do."""

import time

import torch

SIZES = (1024, 1536, 2048)
PRODUCTS = 3


def matrix_rates(dtype: torch.dtype) -> dict[str, float]:
    """Operations per second of square matrix products, by size: the best of a few of each."""
    rates = {}
    for size in SIZES:
        left, right = torch.randn(2, size, size).to(dtype)
        out = torch.empty_like(left)
        torch.mm(left, right, out=out)
        seconds = []
        for _ in range(PRODUCTS):
            start = time.perf_counter()
            torch.mm(left, right, out=out)
            seconds.append(time.perf_counter() - start)
        rates[str(size)] = 2 * size**3 / min(seconds)
    return rates
