"""Where an engine gets a bucket from: a file in shared memory, or a broadcast."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from iris_ray.weights.buckets import bucket_size
from iris_ray.weights.manifest import Meeting, TensorSpec


@dataclass(frozen=True)
class Sent:
    """A bucket that is sent to the members of a broadcast. An engine's first process is member `rank`."""

    meeting: Meeting
    rank: int
    is_last: bool


StagedBucket = tuple[Path | Sent, list[TensorSpec]]


def write_bucket(path: Path, arrays: Sequence[np.ndarray], tensors: Sequence[TensorSpec]) -> None:
    """Write each tensor's bytes to its offset."""
    with path.open("wb", buffering=0) as file:
        for array, spec in zip(arrays, tensors, strict=True):
            file.seek(spec.offset)
            written = 0
            while written < spec.nbytes:  # a single call writes 2 GiB at most
                written += file.write(array.data[written:])
        file.truncate(bucket_size(tensors))
