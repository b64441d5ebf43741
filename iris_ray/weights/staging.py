"""Buckets as files in shared memory."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from iris_ray.weights.manifest import TensorSpec


def bucket_bytes(tensors: Sequence[TensorSpec]) -> int:
    """Size of a bucket's file."""
    return tensors[-1].offset + tensors[-1].nbytes


def write_bucket(path: Path, arrays: Sequence[np.ndarray], tensors: Sequence[TensorSpec]) -> None:
    """Write each tensor's bytes to its offset."""
    with path.open("wb", buffering=0) as file:
        for array, spec in zip(arrays, tensors, strict=True):
            file.seek(spec.offset)
            written = 0
            while written < spec.nbytes:  # a single call writes 2 GiB at most
                written += file.write(array.data[written:])
        file.truncate(bucket_bytes(tensors))
