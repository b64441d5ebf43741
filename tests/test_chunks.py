"""What passes through the sample buffer: it must arrive as it was sent."""

from pathlib import Path

import ray
from conftest import make_pairs
from datasets import Dataset

from actors.stored_pairs import PARCEL_BYTES, Parcel, fetch, fetch_in_turn
from iris_ray.chunks import pack, unpack
from iris_ray.contracts import Demonstration
from iris_ray.data.splits import as_tables, demonstrations, load_split, pack_rows


def test_pairs_arrive_as_they_were_written() -> None:
    pairs = make_pairs(20, seed=0)
    chunk = pack(pairs)
    assert unpack(chunk.content) == pairs
    assert chunk.num_tokens == [pair.num_tokens for pair in pairs]
    assert chunk.versions == [pair.oldest_version for pair in pairs]


def test_pairs_are_found_again_in_the_object_store(ray_here: None) -> None:
    pairs = make_pairs(60, seed=1)
    first, second = Parcel(), Parcel()
    stored = [*first.add(pack(pairs[:7])), *first.add(pack(pairs[7:20])), *second.add(pack(pairs[20:]))]
    for parcel in (first, second):
        parcel.seal()
    order = [33, 2, 19, 7, 2, 59]
    there = ray.get(ray.put([stored[i] for i in order]))  # as another process gets it
    assert fetch(there) == [pairs[i] for i in order]
    assert len({pair.parcel for pair in there}) == 2
    in_turn = list(fetch_in_turn(zip(order, there, strict=True)))
    assert in_turn == [[(i, pairs[i]) for i in group] for group in ([33, 59], [2, 19, 7, 2])]


def test_a_parcel_is_sealed_when_it_is_large(ray_here: None) -> None:
    parcel, chunk = Parcel(), pack(make_pairs(20, seed=2))
    for _ in range(PARCEL_BYTES // len(chunk.content)):
        parcel.add(chunk)
        assert not parcel.is_sealed
    (last, *_) = parcel.add(chunk)
    assert parcel.is_sealed
    assert fetch(ray.get(ray.put([last]))) == make_pairs(20, seed=2)[:1]


def test_prompts_arrive_in_the_order_that_was_asked_for(tmp_path: Path) -> None:
    rows = [Demonstration(i, list(range(i, i + 3)), list(range(i % 5 + 1))) for i in range(50)]
    made = Dataset.from_list([vars(row) | {"response_text": "not sent"} for row in rows])
    made.save_to_disk(tmp_path / "train", num_shards=3)
    asked = [41, 3, 3, 17, 0, 49]
    sent = pack_rows(as_tables(load_split(tmp_path, "train")), asked)
    assert demonstrations(sent) == [rows[i] for i in asked]
    assert b"not sent" not in sent
