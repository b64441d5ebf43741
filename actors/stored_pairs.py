"""From where pairs lie to the pairs themselves."""

from collections.abc import Sequence

import ray

from iris_ray.chunks import unpack
from iris_ray.contracts import SelfPlayPair
from iris_ray.round_buffer import StoredPair


def fetch(stored: Sequence[StoredPair], timeout: float | None = None) -> list[SelfPlayPair]:
    """The pairs, in this order; what lies in one chunk is fetched at once. `timeout` in s, as Ray's."""
    chunks = list(dict.fromkeys(pair.chunk for pair in stored))
    fetched = dict(zip(chunks, map(unpack, ray.get(chunks, timeout=timeout)), strict=True))
    return [fetched[pair.chunk][pair.index] for pair in stored]
