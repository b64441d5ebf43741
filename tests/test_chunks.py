"""What passes through the sample buffer: it must arrive as it was sent."""

from pathlib import Path

from conftest import make_pairs
from datasets import Dataset

from iris_ray.chunks import pack, unpack
from iris_ray.contracts import Demonstration
from iris_ray.data.splits import as_tables, demonstrations, load_split, pack_rows


def test_pairs_arrive_as_they_were_written() -> None:
    pairs = make_pairs(20, seed=0)
    chunk = pack(pairs)
    assert unpack(chunk.content) == pairs
    assert chunk.num_tokens == [pair.num_tokens for pair in pairs]
    assert chunk.versions == [pair.oldest_version for pair in pairs]


def test_prompts_arrive_in_the_order_that_was_asked_for(tmp_path: Path) -> None:
    rows = [Demonstration(i, list(range(i, i + 3)), list(range(i % 5 + 1))) for i in range(50)]
    made = Dataset.from_list([vars(row) | {"response_text": "not sent"} for row in rows])
    made.save_to_disk(tmp_path / "train", num_shards=3)
    asked = [41, 3, 3, 17, 0, 49]
    sent = pack_rows(as_tables(load_split(tmp_path, "train")), asked)
    assert demonstrations(sent) == [rows[i] for i in asked]
    assert b"not sent" not in sent
