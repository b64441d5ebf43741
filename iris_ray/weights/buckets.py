"""Tensors packed into contiguous byte buckets, and back without a copy."""

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import torch

from iris_ray.weights.manifest import TensorSpec

ALIGNMENT = 64  # bytes; lets any dtype be viewed in place

Arrays = list[np.ndarray]


class BucketBorders:
    """Puts tensors into buckets of up to `bucket_bytes`, one after the other.

    A tensor larger than that gets a bucket of its own. Names and sizes decide alone, so whoever sees the same
    tensors draws the same borders.
    """

    def __init__(self, bucket_bytes: int):
        self.bucket_bytes = bucket_bytes
        self.index = -1
        self._end = 0

    def place(self, name: str, tensor: torch.Tensor) -> TensorSpec:
        """Where `tensor` lies in the bucket `index`, which may be a new one by now."""
        nbytes = tensor.numel() * tensor.element_size()
        if self.index < 0 or self._end + nbytes > self.bucket_bytes:
            self.index, self._end = self.index + 1, 0
        dtype = str(tensor.dtype).removeprefix("torch.")
        spec = TensorSpec(name, dtype, tuple(tensor.shape), self._end, nbytes)
        self._end += -(-nbytes // ALIGNMENT) * ALIGNMENT
        return spec


def lay_out(weights: Iterable[tuple[str, torch.Tensor]], bucket_bytes: int) -> list[list[TensorSpec]]:
    """What `pack_buckets` would put into each bucket."""
    borders = BucketBorders(bucket_bytes)
    buckets: list[list[TensorSpec]] = []
    for name, tensor in weights:
        spec = borders.place(name, tensor)
        if len(buckets) <= borders.index:
            buckets.append([])
        buckets[-1].append(spec)
    return buckets


def pack_buckets(
    weights: Iterable[tuple[str, torch.Tensor]], bucket_bytes: int, device: torch.device | str = "cpu"
) -> Iterator[tuple[torch.Tensor, list[TensorSpec]]]:
    """Copy named tensors into byte buckets of up to `bucket_bytes` on `device`, in the order given.

    Yields (uint8 tensor, the specs of what lies in it). A tensor is copied before the next is asked for, so
    it may be short-lived (ZeRO-3); one bucket is held at a time.
    """
    borders = BucketBorders(bucket_bytes)
    specs: list[TensorSpec] = []
    bucket = torch.empty(0, dtype=torch.uint8, device=device)
    index = 0
    for name, tensor in weights:
        spec = borders.place(name, tensor)
        if index < borders.index:
            yield bucket[: bucket_size(specs)], specs
            index, specs = borders.index, []
        if not specs:
            bucket = torch.empty(max(bucket_bytes, spec.nbytes), dtype=torch.uint8, device=device)
        place = bucket[spec.offset : spec.offset + spec.nbytes]
        place.view(tensor.dtype).copy_(tensor.detach().reshape(-1))
        specs.append(spec)
    if specs:
        yield bucket[: bucket_size(specs)], specs


def share_buckets(
    weights: Iterable[tuple[str, torch.Tensor]],
    bucket_bytes: int,
    rank: int = 0,
    ranks: int = 1,
    lasting: bool = False,
) -> Iterator[tuple[Arrays, list[TensorSpec]]]:
    """Group named tensors into buckets of up to `bucket_bytes`; yield every `ranks`-th, from `rank` on.

    All ranks see the same names and sizes, so they draw the same borders without a word. Yields one 1-D
    uint8 array per tensor, and the specs, whose offsets say where each lies when they are written behind
    each other. `lasting` tensors on the CPU are not copied: the arrays are views of them. Others are, before
    the next is asked for (ZeRO-3). A tensor larger than `bucket_bytes` gets a bucket of its own.
    """
    arrays: Arrays = []
    specs: list[TensorSpec] = []
    borders = BucketBorders(bucket_bytes)
    index = 0
    for name, tensor in weights:
        spec = borders.place(name, tensor)
        if index < borders.index:
            if index % ranks == rank:
                yield arrays, specs
            arrays, specs, index = [], [], borders.index
        specs.append(spec)
        if index % ranks == rank:
            flat = tensor.detach().reshape(-1).view(torch.uint8)
            arrays.append(flat.to("cpu", copy=not lasting).numpy())
    if specs and index % ranks == rank:
        yield arrays, specs


def bucket_size(specs: Sequence[TensorSpec]) -> int:
    """Bytes of a bucket that holds `specs`."""
    return specs[-1].offset + specs[-1].nbytes


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
