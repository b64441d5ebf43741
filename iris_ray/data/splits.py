"""The tokenised splits that `prepare_data` left on disk."""

from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from iris_ray.contracts import Demonstration

if TYPE_CHECKING:
    from datasets import Dataset

COLUMNS = ["prompt_id", "prompt_tokens", "response_tokens"]


def load_split(folder: Path, split: Literal["train", "holdout"]) -> "Dataset":
    """Open a split that `prepare_data` saved in `folder`, memory-mapped."""
    from datasets import load_from_disk  # takes long, and not every process that imports this opens one

    return load_from_disk(str(folder / split))


def load_train(folder: Path, iteration: int) -> "Dataset":
    """The demonstrations of `iteration`: those of the start, and behind them what came until it opened."""
    from datasets import concatenate_datasets

    added = [each / "rows" for each in added_folders(folder, iteration) if (each / "rows").exists()]
    first = load_split(folder, "train")
    return concatenate_datasets([first, *map(_added, added)]) if added else first


@cache  # opening them is most of the work where many iterations added some, and they never change
def _added(folder: Path) -> "Dataset":
    from datasets import load_from_disk

    return load_from_disk(str(folder))


def added_folders(folder: Path, iteration: int) -> list[Path]:
    """Where the demonstrations lie that came until `iteration` opened, oldest first."""
    numbered = [(int(each.name.split("-")[1]), each) for each in folder.glob("added/iteration-*")]
    return [each for number, each in sorted(numbered) if number <= iteration]


def as_tables(split: "Dataset") -> "Dataset":
    """A split whose rows come as Arrow tables, which cost a fraction of Python objects."""
    return split.with_format("arrow", columns=COLUMNS)


def pack_rows(tables: "Dataset", indices: Sequence[int]) -> bytes:
    """Some rows, all at once, as an Arrow stream: on their way nobody need look into them."""
    import pyarrow as pa

    rows = tables[list(indices)].combine_chunks()  # else a chunk for each row
    stream = pa.BufferOutputStream()
    with pa.ipc.new_stream(stream, rows.schema) as writer:
        writer.write_table(rows)
    return stream.getvalue().to_pybytes()


def demonstrations(rows: bytes) -> list[Demonstration]:
    """The contract's form of what `pack_rows` read."""
    import pyarrow as pa

    table = pa.ipc.open_stream(rows).read_all()
    columns = (table[name].to_pylist() for name in COLUMNS)
    return [Demonstration(*values) for values in zip(*columns, strict=True)]


def demonstration(row: Mapping[str, Any]) -> Demonstration:
    """The contract's form of a row of a split."""
    return Demonstration(row["prompt_id"], row["prompt_tokens"], row["response_tokens"])
