"""From annotated rows to the tokenised splits on disk that training and evaluation read."""

import json
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset, Features, List, Value

from iris_ray.config import Data, RunConfig
from iris_ray.data.report import DataReport, Dropped, Lengths
from iris_ray.data.rows import BadRow, Rows
from iris_ray.data.splits import load_split
from iris_ray.data.tokens import Encoded, Encoder
from iris_ray.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

REPORT = "report.json"
FIRST_ROWS = 5
"""Row numbers named per reason."""

TOKENS = ["prompt_tokens", "response_tokens"]
_TEXTS = ["prompt_text", "response_text"]
_FEATURES = Features(
    {
        "row": Value("int64"),
        "problem": Value("string"),
        **{name: List(Value("int32")) for name in TOKENS},
        **{name: Value("string") for name in _TEXTS},
    }
)


@dataclass(frozen=True)
class PreparedData:
    """The two splits, memory-mapped, with `prompt_id` from 0 in each; `holdout` also keeps the texts."""

    train: Dataset
    holdout: Dataset
    report: DataReport


def prepare_data(
    rows: Rows, tokenizer: "PreTrainedTokenizerBase", config: RunConfig, folder: Path
) -> PreparedData:
    """Tokenise the rows, drop and count the bad ones, and save the splits `train` and `holdout` in `folder`.

    Columns: `prompt_id`, `prompt_tokens`, `response_tokens`; in `holdout` also `prompt_text`, the prompt as
    tokenised, and `response_text`, the annotated response. Rows keep their order; `run.seed` draws those
    held out and those of `data.subset`. Raises `DataError` if too many rows are bad or too few remain,
    `ModelError` or `ConfigError` as `Encoder` does.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=folder) as scratch:
        table, good, dropped = tokenise(rows, tokenizer, config, Path(scratch))
        train, holdout = _split(np.flatnonzero(good), config)
        used = np.concatenate([train, holdout])
        _save(table, train, folder / "train", TOKENS)
        _save(table, holdout, folder / "holdout", TOKENS + _TEXTS)
        report = DataReport(
            rows=len(table),
            train=len(train),
            holdout=len(holdout),
            dropped=dropped,
            prompt_tokens=_lengths(table.data["prompt_tokens"], used),
            response_tokens=_lengths(table.data["response_tokens"], used),
        )
    (folder / REPORT).write_text(json.dumps(report.to_dict(), indent=2) + "\n")
    return load_prepared(folder)


def tokenise(
    rows: Rows, tokenizer: "PreTrainedTokenizerBase", config: RunConfig, scratch: Path
) -> tuple[Dataset, np.ndarray, dict[str, Dropped]]:
    """All rows as tokens, kept in folder `scratch`; which of them are good, and what is wrong with the rest.

    Raises `DataError` if too many are bad, `ModelError` or `ConfigError` as `Encoder` does.
    """
    encoder = Encoder(tokenizer, config.data, config.generation.stop)
    scratch.mkdir(exist_ok=True)
    table = rows.dataset.map(
        lambda batch, indices: _tokenise(rows, encoder, batch, indices),
        batched=True,
        with_indices=True,
        remove_columns=rows.dataset.column_names,
        features=_FEATURES,
        cache_file_name=f"{scratch}/tokens.arrow",
        new_fingerprint="tokens",
    )
    good = pc.equal(table.data["problem"], "").to_numpy()
    dropped = _count(table.select(np.flatnonzero(~good)))
    _check_bad_fraction(len(table), dropped, config.data)
    return table, good, dropped


def load_prepared(folder: Path) -> PreparedData:
    """Open what `prepare_data` saved in `folder`."""
    return PreparedData(load_split(folder, "train"), load_split(folder, "holdout"), load_report(folder))


def load_report(folder: Path) -> DataReport:
    """What became of the rows that `prepare_data` read."""
    return DataReport.from_dict(json.loads((folder / REPORT).read_text()))


def _tokenise(
    rows: Rows, encoder: Encoder, batch: dict[str, list[Any]], indices: list[int]
) -> dict[str, list]:
    table: dict[str, list] = {name: [] for name in _FEATURES}
    for row in rows.parse(batch, indices):
        problem, encoded = row.problem, Encoded("", [], [])
        if not problem:
            try:
                encoded = encoder(row.messages)
            except BadRow as bad:
                problem = str(bad)
        response_text = "" if problem else row.messages[-1]["content"]
        values = {"row": row.number, "problem": problem, "response_text": response_text, **vars(encoded)}
        for name, value in values.items():
            table[name].append(value)
    return table


def _count(bad: Dataset) -> dict[str, Dropped]:
    counts: Counter[str] = Counter()
    first: dict[str, list[int]] = {}
    for row in bad.select_columns(["row", "problem"]):
        counts[row["problem"]] += 1
        if counts[row["problem"]] <= FIRST_ROWS:
            first.setdefault(row["problem"], []).append(row["row"])
    return {problem: Dropped(count, first[problem]) for problem, count in counts.most_common()}


def _check_bad_fraction(rows: int, dropped: dict[str, Dropped], data: Data) -> None:
    bad = sum(reason.rows for reason in dropped.values())
    if bad > data.max_bad_fraction * rows:
        lines = "".join(f"\n  {problem}: {reason}" for problem, reason in dropped.items())
        limits = sorted(set(re.findall(r"is longer than (data\.\w+)=", lines)))
        mend = f"Raise {' and '.join(limits)}, mend" if limits else "Mend"
        raise DataError(
            f"data.max_bad_fraction={data.max_bad_fraction}: {bad} of the {rows} "
            f"{f'rows of {data.path}' if data.path else 'made rows'} cannot be used:{lines}\n"
            f"{mend} these rows, or raise data.max_bad_fraction to train without them."
        )


def _split(rows: np.ndarray, config: RunConfig) -> tuple[np.ndarray, np.ndarray]:
    """Indices to train on and indices held out, both in the order of the source."""
    holdout, subset = config.data.holdout, config.data.subset
    left = len(rows) - holdout
    if left <= 0:
        raise DataError(
            f"data.holdout={holdout}: leaves nothing to train on, as only {len(rows)} rows can be used. "
            "Set a smaller data.holdout or add data."
        )
    if subset is not None and subset > left:
        raise DataError(
            f"data.subset={subset}: only {left} of the {len(rows)} rows that can be used are left beside "
            f"data.holdout={holdout}. Set a smaller data.subset, or leave it empty for all of them."
        )
    drawn = np.random.default_rng(config.run.seed).permutation(rows)
    # All of one permutation: that is why subsets lie within each other, whatever their size.
    end = None if subset is None else holdout + subset
    return np.sort(drawn[holdout:end]), np.sort(drawn[:holdout])


def _save(table: Dataset, indices: np.ndarray, folder: Path, columns: list[str]) -> None:
    split = table.select(indices).select_columns(columns)
    split.add_column("prompt_id", np.arange(len(split))).save_to_disk(folder, num_shards=1)


def _lengths(tokens: pa.ChunkedArray, used: np.ndarray) -> Lengths:
    lengths = pc.list_value_length(tokens).to_numpy()[used]
    return Lengths(mean=float(lengths.mean()), max=int(lengths.max()))
