"""Tensors packed into contiguous byte buckets, and back without a copy."""

import math
from collections.abc import Iterable, Iterator

import numpy as np
import torch

from iris_ray.weights.manifest import TensorSpec

ALIGNMENT = 64  # bytes; lets any dtype be viewed in place


def pack_buckets(
    weights: Iterable[tuple[str, torch.Tensor]], bucket_bytes: int
) -> Iterator[tuple[torch.Tensor, list[TensorSpec]]]:
    """Copy named tensors into byte buckets of up to `bucket_bytes`, in the order given.

    Yields (uint8 tensor on the CPU, the specs of what lies in it). A tensor larger than `bucket_bytes`
    gets a bucket of its own. A tensor is copied before the next is asked for, so it may be short-lived
    (ZeRO-3); one bucket is held at a time.
    """
    specs: list[TensorSpec] = []
    bucket = torch.empty(0, dtype=torch.uint8)
    size = 0
    for name, tensor in weights:
        nbytes = tensor.numel() * tensor.element_size()
        if size + nbytes > len(bucket):
            if specs:
                yield bucket[:size], specs
            bucket, specs, size = torch.empty(max(bucket_bytes, nbytes), dtype=torch.uint8), [], 0
        dtype = str(tensor.dtype).removeprefix("torch.")
        specs.append(TensorSpec(name, dtype, tuple(tensor.shape), size, nbytes))
        bucket[size : size + nbytes].view(tensor.dtype).copy_(tensor.detach().reshape(-1))
        size += math.ceil(nbytes / ALIGNMENT) * ALIGNMENT
    if specs:
        yield bucket[:size], specs


def unpack_tensors(bucket: torch.Tensor, specs: Iterable[TensorSpec]) -> Iterator[tuple[str, torch.Tensor]]:
    """Views of `bucket` (uint8, 1-D) under their names; no bytes are copied."""
    for spec in specs:
        flat = bucket[spec.offset : spec.offset + spec.nbytes].view(getattr(torch, spec.dtype))
        yield spec.name, flat.view(spec.shape)


def unpack_arrays(
    arrays: Iterable[np.ndarray], specs: Iterable[TensorSpec]
) -> Iterator[tuple[str, torch.Tensor]]:
    """Copies of one 1-D uint8 array per tensor, under the tensors' names."""
    for array, spec in zip(arrays, specs, strict=True):
        tensor = torch.empty(spec.shape, dtype=getattr(torch, spec.dtype))
        tensor.view(-1).view(torch.uint8).numpy()[:] = array
        yield spec.name, tensor
