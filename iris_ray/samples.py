"""The pairs of a round as Parquet: with their texts to be read, or as they are to go on from."""

from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from iris_ray.contracts import SelfPlayPair, VersionSpan

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

ROW_GROUP = 1024  # pairs in memory at a time
TEXTS = ("prompt", "real", "synthetic")

SCHEMA = pa.schema(
    [
        ("iteration", pa.int32()),
        ("version", pa.int32()),
        ("version_spans", pa.list_(pa.struct([(name, pa.int32()) for name in VersionSpan._fields]))),
        ("prompt_id", pa.int64()),
        ("prompt", pa.string()),
        ("real", pa.string()),
        ("synthetic", pa.string()),
        ("finish_reason", pa.string()),
        ("prompt_tokens", pa.list_(pa.int32())),
        ("real_tokens", pa.list_(pa.int32())),
        ("synthetic_tokens", pa.list_(pa.int32())),
    ]
)
# A pair as it is, and its place in the round's order.
PAIR_SCHEMA = pa.schema(
    [
        pa.field("position", pa.int64()),
        *(field for field in SCHEMA if field.name not in TEXTS),
        pa.field("initial_tokens", pa.list_(pa.int32())),
        pa.field("replica", pa.int32()),
        pa.field("reference", pa.list_(pa.float64())),
    ]
)


def write_samples(
    path: Path, chunks: Iterable[list[SelfPlayPair]], tokenizer: "PreTrainedTokenizerBase"
) -> None:
    """Write pairs chunk by chunk, so that only one is held in memory."""
    with pq.ParquetWriter(path, SCHEMA) as writer:
        for pairs in chunks:
            writer.write_batch(pa.RecordBatch.from_pylist([_row(pair, tokenizer) for pair in pairs], SCHEMA))


def write_pairs(path: Path, pairs: Iterable[tuple[int, SelfPlayPair]]) -> None:
    """Write pairs with their positions, for `read_pairs`; only a row group is held in memory."""
    rows = ({"position": position} | vars(pair) for position, pair in pairs)
    with pq.ParquetWriter(path, PAIR_SCHEMA) as writer:
        while group := list(islice(rows, ROW_GROUP)):
            writer.write_batch(pa.RecordBatch.from_pylist(group, PAIR_SCHEMA))


def read_pairs(path: Path) -> Iterator[tuple[int, SelfPlayPair]]:
    """The pairs that `write_pairs` wrote, with their positions and in the same order."""
    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(ROW_GROUP):
            for row in batch.to_pylist():
                spans = [VersionSpan(**span) for span in row.pop("version_spans")]
                yield row.pop("position"), SelfPlayPair(**row, version_spans=spans)


def texts(pair: SelfPlayPair, tokenizer: "PreTrainedTokenizerBase") -> dict[str, Any]:
    """Prompt and both responses as people read them, special tokens included, by the names in `TEXTS`."""
    return {name: tokenizer.decode(getattr(pair, f"{name}_tokens")) for name in TEXTS}


def _row(pair: SelfPlayPair, tokenizer: "PreTrainedTokenizerBase") -> dict:
    return vars(pair) | texts(pair, tokenizer)
