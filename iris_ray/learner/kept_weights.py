"""Weights on disk while nobody computes with them."""

from collections.abc import Iterable, Iterator
from tempfile import TemporaryFile

import torch

from iris_ray.weights.buckets import pack_buckets, unpack_tensors
from iris_ray.weights.manifest import TensorSpec

BUCKET_BYTES = 256 << 20


class KeptWeights:
    """Named tensors, bit for bit, in a file of this node.

    The file has no name: it is gone with this object, and with the process however that ends. It lies
    where Python's `tempfile` puts files (TMPDIR). About one bucket is in memory at a time, when they are
    written (`weights` may yield short-lived tensors) as when they are read, which can be done many times.
    """

    def __init__(self, weights: Iterable[tuple[str, torch.Tensor]]):
        self._file = TemporaryFile()  # noqa: SIM115, it is closed with the object
        self._buckets: list[tuple[int, list[TensorSpec]]] = []
        for data, specs in pack_buckets(weights, BUCKET_BYTES):
            self._file.write(data.numpy().data)
            self._buckets.append((len(data), specs))
        self._file.flush()  # a full disk shows here

    def __iter__(self) -> Iterator[tuple[str, torch.Tensor]]:
        start = 0
        for size, specs in self._buckets:
            data = torch.empty(size, dtype=torch.uint8)
            self._file.seek(start)
            self._file.readinto(data.numpy().data)
            yield from unpack_tensors(data, specs)
            start += size
