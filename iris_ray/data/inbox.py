"""Demonstrations that come while a run goes on."""

import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from datasets import concatenate_datasets

from iris_ray.config import RunConfig
from iris_ray.data.prepare import TOKENS, tokenise
from iris_ray.data.report import Added, Dropped
from iris_ray.data.rows import read_rows
from iris_ray.data.sources import SUFFIXES
from iris_ray.data.splits import added_folders, load_train
from iris_ray.errors import DataError
from iris_ray.run_folder import RunFolder

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

REPORT = "report.json"
ROWS = "rows"


class Inbox:
    """Files of annotated rows that are put into the folder `data.inbox`, read as `data.path` is.

    What an iteration takes in, it writes into the run folder: played again, it takes in the same. A file is
    taken once, by its name, and left where it is. One whose name begins with a dot is not looked at: write
    under such a name, then rename.
    """

    def __init__(self, config: RunConfig, folder: RunFolder, tokenizer: "PreTrainedTokenizerBase"):
        assert config.data.inbox is not None
        self.config = config
        self.path = config.data.inbox
        self.path.mkdir(parents=True, exist_ok=True)
        self.data = folder.data
        self.tokenizer = tokenizer

    def take_in(self, iteration: int) -> Added | None:
        """Add to the data of `iteration`, before its round opens, what has come; `None` if nothing has."""
        folder = self.data / "added" / f"iteration-{iteration:03d}"
        if not folder.exists():
            known = {name for earlier in added_folders(self.data, iteration) for name in _files(earlier)}
            new = sorted(path for path in self.path.iterdir() if _is_whole(path) and path.name not in known)
            if not new:
                return None
            self._write(folder, new, iteration)
        return Added(**json.loads((folder / REPORT).read_text()))

    def _write(self, folder: Path, files: Sequence[Path], iteration: int) -> None:
        part = folder.with_name(f".{folder.name}")
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        added, tables = Added(), []
        for path in files:
            added.files.append(path.name)
            try:
                # The limits of the first data are not those of what comes.
                own = {"path": str(path), "sort_digits": None, "limit": None, "split": "train"}
                data = self.config.data.model_copy(update=own)
                table, good, dropped = tokenise(read_rows(data), self.tokenizer, data, part / path.name)
            except DataError as error:
                added.refused[path.name] = str(error)
                continue
            tables.append(table.select(np.flatnonzero(good)).select_columns(TOKENS))
            _count(added.dropped, dropped)
        if any(map(len, tables)):
            rows, first = concatenate_datasets(tables), len(load_train(self.data, iteration - 1))
            added.rows = len(rows)
            numbered = rows.add_column("prompt_id", np.arange(first, first + len(rows)))
            numbered.save_to_disk(part / ROWS, num_shards=1)
        for path in files:
            shutil.rmtree(part / path.name, ignore_errors=True)
        (part / REPORT).write_text(json.dumps(asdict(added), indent=1) + "\n")
        part.rename(folder)


def _is_whole(path: Path) -> bool:
    return path.suffix in SUFFIXES and not path.name.startswith(".")


def _files(folder: Path) -> list[str]:
    return json.loads((folder / REPORT).read_text())["files"]


def _count(counts: dict[str, int], dropped: dict[str, Dropped]) -> None:
    for problem, some in dropped.items():
        counts[problem] = counts.get(problem, 0) + some.rows
