"""The tokenised splits that `prepare_data` left on disk."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from iris_ray.contracts import Demonstration

if TYPE_CHECKING:
    from datasets import Dataset


def load_split(folder: Path, split: Literal["train", "holdout"]) -> "Dataset":
    """Open a split that `prepare_data` saved in `folder`, memory-mapped."""
    from datasets import load_from_disk  # takes long, and not every process that imports this opens one

    return load_from_disk(str(folder / split))


def demonstration(row: Mapping[str, Any]) -> Demonstration:
    """The contract's form of a row of a split."""
    return Demonstration(row["prompt_id"], row["prompt_tokens"], row["response_tokens"])
