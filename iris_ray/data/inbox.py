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
from iris_ray.data.splits import added_folders, load_split
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
            earlier = [_report(each) for each in added_folders(self.data, iteration)]
            known = {name for each in earlier for name in each.files}
            new = sorted(path for path in self.path.iterdir() if _is_whole(path) and path.name not in known)
            if not new:
                return None
            first = len(load_split(self.data, "train")) + sum(each.rows for each in earlier)
            self._write(folder, new, first)
        return _report(folder)

    def _write(self, folder: Path, files: Sequence[Path], first: int) -> None:
        """`first`: the prompt id of the first row."""
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
                config = self.config.model_copy(update={"data": data})
                table, good, dropped = tokenise(read_rows(data), self.tokenizer, config, part / path.name)
            except DataError as error:
                added.refused[path.name] = str(error)
                continue
            tables.append(table.select(np.flatnonzero(good)).select_columns(TOKENS))
            _count(added.dropped, dropped)
        if any(map(len, tables)):
            rows = concatenate_datasets(tables)
            added.rows = len(rows)
            numbered = rows.add_column("prompt_id", np.arange(first, first + len(rows)))
            numbered.save_to_disk(part / ROWS, num_shards=1)
        for path in files:
            shutil.rmtree(part / path.name, ignore_errors=True)
        (part / REPORT).write_text(json.dumps(asdict(added), indent=1) + "\n")
        part.rename(folder)


def _is_whole(path: Path) -> bool:
    return path.suffix in SUFFIXES and not path.name.startswith(".")


def _report(folder: Path) -> Added:
    return Added(**json.loads((folder / REPORT).read_text()))


def _count(counts: dict[str, int], dropped: dict[str, Dropped]) -> None:
    for problem, some in dropped.items():
        counts[problem] = counts.get(problem, 0) + some.rows
