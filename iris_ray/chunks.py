"""Written pairs on their way, as bytes: who only passes them on need not look into them."""

import pickle
from collections.abc import Sequence
from dataclasses import dataclass

from iris_ray.contracts import SelfPlayPair


@dataclass(frozen=True)
class Chunk:
    """`content` is for `unpack`. Of each pair: its tokens, and the oldest version that wrote some of it."""

    content: bytes
    num_tokens: list[int]
    versions: list[int]


def pack(pairs: Sequence[SelfPlayPair]) -> Chunk:
    content = pickle.dumps(list(pairs), pickle.HIGHEST_PROTOCOL)
    return Chunk(content, [pair.num_tokens for pair in pairs], [pair.oldest_version for pair in pairs])


def unpack(content: bytes) -> list[SelfPlayPair]:
    """The pairs of a chunk."""
    return pickle.loads(content)
