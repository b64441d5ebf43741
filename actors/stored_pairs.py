"""Where written pairs lie in the object store, and from there to the pairs themselves."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import ray

from iris_ray.chunks import Chunk, unpack
from iris_ray.contracts import SelfPlayPair
from iris_ray.round_buffer import StoredPair

PARCEL_BYTES = 64 << 10  # who wants one pair gets a whole parcel


class Parcel:
    """Chunks that came in one after the other: many small objects would burden store, buffer and learner.

    Sealed, it takes no more, and travels as the reference to what it holds.
    """

    def __init__(self) -> None:
        self._contents: list[bytes] = []
        self._bytes = 0
        self._reference: ray.ObjectRef | None = None

    @property
    def is_sealed(self) -> bool:
        return self._reference is not None

    def add(self, chunk: Chunk) -> list[StoredPair]:
        """Returns where each pair lies."""
        number = len(self._contents)
        self._contents.append(chunk.content)
        self._bytes += len(chunk.content)
        if self._bytes >= PARCEL_BYTES:
            self.seal()
        sizes = enumerate(zip(chunk.num_tokens, chunk.versions, strict=True))
        return [StoredPair(self, index, tokens, version, number) for index, (tokens, version) in sizes]

    def seal(self) -> None:
        """Put it into the object store, as this process's own."""
        if self._contents:
            self._reference, self._contents = ray.put(self._contents), []

    def __reduce__(self) -> tuple[Any, tuple[ray.ObjectRef]]:
        assert self._reference is not None  # Ray cannot put while it serialises
        return _itself, (self._reference,)


def _itself(reference: ray.ObjectRef) -> ray.ObjectRef:
    return reference


def fetch(stored: Sequence[StoredPair], timeout: float | None = None) -> list[SelfPlayPair]:
    """The pairs, in this order, fetched at once. `timeout` in s, as Ray's."""
    parcels = list(dict.fromkeys(pair.parcel for pair in stored))
    contents = dict(zip(parcels, ray.get(parcels, timeout=timeout), strict=True))
    chunks: dict[tuple[ray.ObjectRef, int], list[SelfPlayPair]] = {}
    for pair in stored:
        if (where := (pair.parcel, pair.chunk)) not in chunks:
            chunks[where] = unpack(contents[pair.parcel][pair.chunk])
    return [chunks[pair.parcel, pair.chunk][pair.item] for pair in stored]


def fetch_in_turn(places: Iterable[tuple[int, StoredPair]]) -> Iterator[list[tuple[int, SelfPlayPair]]]:
    """The pairs with their keys, parcel by parcel, so that only one is held in memory."""
    by_parcel: dict[ray.ObjectRef, list[tuple[int, StoredPair]]] = {}
    for key, place in places:
        by_parcel.setdefault(place.parcel, []).append((key, place))
    for members in by_parcel.values():
        keys, stored = zip(*members, strict=True)
        yield list(zip(keys, fetch(stored), strict=True))
