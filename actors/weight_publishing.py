"""The learner's end of a weight update."""

from collections.abc import Iterable

import ray
import torch

from iris_ray.weights.manifest import Bucket
from iris_ray.weights.shares import share_buckets


def put_buckets(
    weights: Iterable[tuple[str, torch.Tensor]],
    bucket_bytes: int,
    rank: int = 0,
    ranks: int = 1,
    lasting: bool = False,
) -> list[Bucket]:
    """Copy this rank's share of the weights into Ray's object store; the arguments are `share_buckets`'s.

    A list of arrays is put as it is: Ray copies each straight into its shared memory, and that is the only
    copy of `lasting` tensors. The objects live as long as this process.
    """
    return [
        Bucket(ray.put(arrays), tensors)
        for arrays, tensors in share_buckets(weights, bucket_bytes, rank, ranks, lasting)
    ]
