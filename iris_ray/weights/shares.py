"""What one rank of the learner publishes, and the whole version that all ranks' shares make."""

from dataclasses import dataclass

from iris_ray.weights.manifest import Bucket, Probe, WeightManifest


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
