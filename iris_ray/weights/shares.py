"""What one rank of the learner publishes: its share of a version's buckets, ready for one copy."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch

from iris_ray.weights.buckets import BucketBorders
from iris_ray.weights.manifest import Bucket, Probe, TensorSpec, WeightManifest

Arrays = list[np.ndarray]


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


@dataclass(frozen=True)
class WeightShare:
    """Rank `rank`'s buckets of `version`: those whose place among all leaves `rank` when divided by `ranks`.

    Rank 0's has the probe.
    """

    version: int
    rank: int
    ranks: int
    buckets: list[Bucket]
    probe: Probe | None = None


def join_shares(shares: dict[int, WeightShare]) -> WeightManifest | None:
    """The whole version, its buckets in layer order; `None` while a rank's share is missing."""
    first = next(iter(shares.values()))
    if len(shares) < first.ranks:
        return None
    probe = shares[0].probe
    assert probe is not None
    count = sum(len(share.buckets) for share in shares.values())
    buckets = [shares[i % first.ranks].buckets[i // first.ranks] for i in range(count)]
    return WeightManifest(first.version, buckets, probe)
