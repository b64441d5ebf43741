"""Tensors packed into contiguous byte buckets, and back without a copy."""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch

ALIGNMENT = 64  # bytes; lets any dtype be viewed in place


@dataclass(frozen=True)
class TensorSpec:
    """Where a tensor lies in its bucket: `offset` in bytes, `dtype` as torch spells it (`bfloat16`)."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int

    @property
    def torch_dtype(self) -> torch.dtype:
        return getattr(torch, self.dtype)

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.torch_dtype.itemsize


def pack_buckets(
    weights: Iterable[tuple[str, torch.Tensor]], bucket_bytes: int
) -> Iterator[tuple[torch.Tensor, list[TensorSpec]]]:
    """Group named tensors into byte buckets of about `bucket_bytes`, in the order given.

    Yields (uint8 tensor on the CPU, the specs of what lies in it). A tensor larger than
    `bucket_bytes` gets a bucket of its own. Holds one bucket at a time.
    """
    specs: list[TensorSpec] = []
    tensors: list[torch.Tensor] = []
    size = 0
    for name, tensor in weights:
        nbytes = tensor.numel() * tensor.element_size()
        if tensors and size + nbytes > bucket_bytes:
            yield _pack(tensors, specs, size), specs
            specs, tensors, size = [], [], 0
        dtype = str(tensor.dtype).removeprefix("torch.")
        specs.append(TensorSpec(name, dtype, tuple(tensor.shape), size))
        tensors.append(tensor.detach())
        size += math.ceil(nbytes / ALIGNMENT) * ALIGNMENT
    if tensors:
        yield _pack(tensors, specs, size), specs


def _pack(tensors: list[torch.Tensor], specs: list[TensorSpec], size: int) -> torch.Tensor:
    bucket = torch.empty(size, dtype=torch.uint8)
    for tensor, spec in zip(tensors, specs, strict=True):
        view = bucket[spec.offset : spec.offset + spec.nbytes].view(spec.torch_dtype)
        view.copy_(tensor.reshape(-1))
    return bucket


def unpack_tensors(bucket: torch.Tensor, specs: Iterable[TensorSpec]) -> Iterator[tuple[str, torch.Tensor]]:
    """Views of `bucket` (uint8, 1-D) under their names; no bytes are copied."""
    for spec in specs:
        flat = bucket[spec.offset : spec.offset + spec.nbytes].view(spec.torch_dtype)
        yield spec.name, flat.view(spec.shape)
