"""The pairs of a round as Parquet, for people and tools to read."""

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.parquet as pq

from iris_ray.contracts import SelfPlayPair

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SCHEMA = pa.schema(
    [
        ("iteration", pa.int32()),
        ("version", pa.int32()),
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


def write_samples(
    path: Path, chunks: Iterable[list[SelfPlayPair]], tokenizer: "PreTrainedTokenizerBase"
) -> None:
    """Write pairs chunk by chunk, so that only one is held in memory."""
    with pq.ParquetWriter(path, SCHEMA) as writer:
        for pairs in chunks:
            writer.write_batch(pa.RecordBatch.from_pylist([_row(pair, tokenizer) for pair in pairs], SCHEMA))


def _row(pair: SelfPlayPair, tokenizer: "PreTrainedTokenizerBase") -> dict:
    texts = {
        name: tokenizer.decode(getattr(pair, f"{name}_tokens")) for name in ("prompt", "real", "synthetic")
    }
    return vars(pair) | texts
