"""Where annotated rows come from: files and saved folders, here or elsewhere, and hub names.

All are opened by `datasets`.
"""

import csv
import glob
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
from datasets import (
    Dataset,
    DatasetDict,
    Features,
    Value,
    get_dataset_config_names,
    load_dataset,
    load_from_disk,
)
from huggingface_hub import HfApi, constants

from iris_ray.config import Data
from iris_ray.data.copies import copied
from iris_ray.errors import DataError, first_line

JSON_LINE = "json_line"
"""The only column of an opened JSON Lines file: its lines as they are, so that a broken one costs one row."""

HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")
HUB_TIMEOUT_S = 10.0

# Its progress bars and log lines would come between the run's own.
datasets.disable_progress_bars()
datasets.logging.set_verbosity(datasets.logging.CRITICAL)


def open_dataset(data: Data) -> Dataset:
    """Open the rows of `data.path` as a memory-mapped Arrow table, at most `data.limit` of them.

    Raises `DataError` for a missing, unreadable, unsupported or empty source and for an unknown split.
    """
    if data.path is None:
        raise DataError("data.path: is empty. Set it to a file, a folder or the name of a hub data set.")
    path = copied(data.path) if "://" in data.path else Path(data.path).expanduser()
    if path.is_file():
        found = _open_file(path)
    elif path.is_dir():
        found = _read(path, lambda: load_from_disk(str(path)), "Is it a folder saved by `datasets`?")
    elif not is_hub_name(data.path):
        raise DataError(f"data.path: {path} does not exist. Check the path; it starts at {Path.cwd()}.")
    else:
        found = _open_hub(data.path, data.config)

    if isinstance(found, DatasetDict):
        if data.split not in found:
            raise DataError(
                f"data.split={data.split}: {data.path} has no such split. Set one of: {', '.join(found)}."
            )
        found = found[data.split]
    if data.limit is not None:
        found = found.select(range(min(data.limit, len(found))))
    if len(found) == 0:
        raise _empty(data.path)
    return found


def is_hub_name(path: str) -> bool:
    """Whether `data.path` can only be a name on the hub: nothing here is called so, and no file would be."""
    here = Path(path).expanduser()
    return not here.exists() and here.suffix not in _FILES and HUB_NAME.fullmatch(path) is not None


def _open_file(path: Path) -> Dataset:
    if path.suffix not in _FILES:
        raise DataError(
            f"data.path: {path} has the suffix {path.suffix!r}. Use a file with one of: {', '.join(_FILES)}."
        )
    if path.stat().st_size == 0:
        raise _empty(path)

    def load() -> Dataset:
        builder, options = _FILES[path.suffix](path)
        return load_dataset(builder, data_files=glob.escape(str(path.resolve())), split="train", **options)

    return _read(path, load, f"Is it a {path.suffix[1:]} file, its text in UTF-8?")


def _csv(path: Path) -> tuple[str, dict[str, Any]]:
    with path.open(newline="", encoding="utf-8-sig") as file:
        lines = csv.reader(file)
        columns = next(lines)
        fields = len(next(lines, columns))
    if fields > len(columns):
        # pandas would take the first field for a row name and shift the others.
        raise ValueError(f"its header has {len(columns)} fields, its first row {fields}")
    # Every column is read as text: pandas would make a number of "007" and nothing of "NA".
    return "csv", {
        "features": Features({name: Value("string") for name in columns}),
        "keep_default_na": False,
    }


def _json(path: Path) -> tuple[str, dict[str, Any]]:
    with path.open(encoding="utf-8-sig") as file:
        start = next((line.lstrip() for line in file if line.strip()), "")
    return ("json", {"parse_agent_traces": False}) if start.startswith("[") else _json_lines(path)


def _json_lines(path: Path) -> tuple[str, dict[str, Any]]:
    return "text", {"features": Features({JSON_LINE: Value("string")}), "encoding": "utf-8-sig"}


def _parquet(path: Path) -> tuple[str, dict[str, Any]]:
    return "parquet", {}


_FILES = {".jsonl": _json_lines, ".json": _json, ".csv": _csv, ".parquet": _parquet}
"""Per suffix: the builder of `datasets` to use and its options."""
SUFFIXES = tuple(_FILES)


def _open_hub(name: str, config: str | None) -> DatasetDict:
    if not constants.HF_HUB_OFFLINE:
        # `load_dataset` alone would go on trying an unreachable hub for a long time.
        try:
            HfApi().dataset_info(name, timeout=HUB_TIMEOUT_S)
        except Exception as error:
            raise DataError(
                f"data.path: {name} is no file or folder here, and the hub gave no data set of that name: "
                f"{_reason(error)}. Check the path, or the name and the network. HF_HUB_OFFLINE=1 in the "
                "environment reads what was downloaded before."
            ) from error

    def load() -> DatasetDict:
        try:
            return load_dataset(name, config)
        except ValueError as error:
            if not first_line(error).startswith("Config name is missing"):
                raise
            several = ", ".join(get_dataset_config_names(name))
            raise DataError(f"data.config: {name} has several. Set one of: {several}.") from error

    return _read(name, load, "Does the hub's own page show its rows?")


def _read(origin: str | Path, load: Callable[[], Any], hint: str) -> Any:
    # The readers behind `datasets` raise whatever the library of their format raises.
    try:
        return load()
    except DataError:
        raise
    except Exception as error:
        if "corresponds to no data" in str(error):
            raise _empty(origin) from error
        reason = _reason(error.__cause__ or error)
        raise DataError(f"data.path: {origin} cannot be read: {reason}. {hint}") from error


def _reason(error: BaseException) -> str:
    return first_line(error).rstrip(".")


def _empty(origin: str | Path) -> DataError:
    return DataError(f"data.path: {origin} has no rows. Point it at prompts with annotated responses.")
