"""Checkpoints in storage: which there are, and which of them are whole.

A checkpoint is a folder whose `state.json` names all its other files with their sizes, so that one whose
writing was cut short is told from a whole one, wherever it lies.
"""

import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pyarrow import fs

from iris_ray.config import RunConfig
from iris_ray.errors import CheckpointError, ConfigError, first_line
from iris_ray.run_folder import RunFolder
from iris_ray.storage import CREDENTIALS, resolve

FORMAT = 2
STATE = "state.json"
FOLDER = "checkpoints"
# The training state's files begin with this. A trained parameter's master weight is `NAME/master` there, and
# names of the model's parameters begin with `model.`, as the sequence scorer around it is what is trained.
TRAINING_STATE, MASTER, SCORER = "training-state-", "master", "model."

Place = tuple[int, bool, int]  # iteration, between rounds, step: ordered by age
BEGINNING: Place = (0, False, 0)


@dataclass(frozen=True)
class StoredCheckpoint:
    """A whole checkpoint: `step` steps of `iteration` are done, or all of them if it is `between` rounds,
    where `step` says nothing."""

    name: str
    path: str
    iteration: int
    step: int
    between: bool

    @property
    def place(self) -> Place:
        return self.iteration, self.between, self.step


class CheckpointStorage:
    """Where the checkpoints of a run lie: in its folder, or where `checkpoint.storage` says."""

    def __init__(self, config: RunConfig):
        storage = config.checkpoint.storage
        run = f"{storage.rstrip('/')}/{config.run.name}" if storage else str(RunFolder(config.folder).path)
        self.filesystem, self.run_path = resolve(run, "checkpoint.storage")
        self.path = f"{self.run_path}/{FOLDER}"

    def whole(self) -> list[StoredCheckpoint]:
        """All checkpoints whose files are there in full, oldest first."""
        found = filter(None, map(self._read, self._folders()))
        return sorted(found, key=lambda each: each.place)

    def newest(self) -> StoredCheckpoint | None:
        """The newest whole checkpoint, if there is any."""
        return next(reversed(self.whole()), None)

    def find(self, number: int | None) -> StoredCheckpoint:
        """The newest checkpoint, or the newest of iteration `number`. Raises `CheckpointError` if none is."""
        whole = self.whole()
        fitting = [each for each in whole if number in (None, each.iteration)]
        if not fitting:
            there = ", ".join(each.name for each in whole) or "none"
            wanted = "checkpoint" if number is None else f"checkpoint of iteration {number}"
            raise CheckpointError(f"{self.path}: there is no whole {wanted}. There: {there}.")
        return fitting[-1]

    def keep_newest(self) -> StoredCheckpoint | None:
        """Delete all but the newest whole one, which a run goes on from; returns it if there is any."""
        newest = self.newest()
        self.keep_only(newest)
        return newest

    def keep_only(self, kept: StoredCheckpoint | None) -> None:
        """Delete all other checkpoints, cut ones included, and what Ray Train noted about them."""
        for folder in self._folders():
            if kept is None or folder != kept.path:
                self.filesystem.delete_dir(folder)
        notes = f"{self.path}/checkpoint_manager_snapshot.json"
        if self.filesystem.get_file_info(notes).type == fs.FileType.File:
            self.filesystem.delete_file(notes)

    def forget_later(self, place: Place) -> None:
        """Delete those beyond `place`, and cut ones: the run went back there and takes the steps anew.

        The records in them are of the steps that were taken before.
        """
        kept = {each.path for each in self.whole() if each.place <= place}
        for folder in self._folders():
            if folder not in kept:
                self.filesystem.delete_dir(folder)

    def _folders(self) -> list[str]:
        infos = self.filesystem.get_file_info(fs.FileSelector(self.path, allow_not_found=True))
        return [info.path for info in infos if info.type == fs.FileType.Directory]

    def _read(self, folder: str) -> StoredCheckpoint | None:
        infos = self.filesystem.get_file_info(fs.FileSelector(folder))
        sizes = {info.base_name: info.size for info in infos}
        if STATE not in sizes:
            return None
        with self.filesystem.open_input_stream(f"{folder}/{STATE}") as file:
            try:
                state = json.loads(file.read())
            except ValueError:  # cut in the middle
                return None
        if not state["files"].items() <= sizes.items():
            return None
        name = folder.rsplit("/", 1)[-1]
        return StoredCheckpoint(name, folder, state["iteration"], state["step"], state["between"])


@contextmanager
def storage_errors(config: RunConfig) -> Iterator[None]:
    """Tell in words that storage failed in the block. Not for ranks: Ray Train retries an `OSError`."""
    try:
        yield
    except OSError as error:
        storage = config.checkpoint.storage
        field = f"checkpoint.storage={storage}" if storage else f"run.folder={config.run.folder}"
        raise ConfigError(
            f"{field}: cannot be read or written to ({first_line(error)}). Check the name, the network and "
            f"what you may do there; {CREDENTIALS}."
        ) from error


def write_state(folder: Path, state: dict[str, Any], files: Iterable[tuple[str, int]]) -> None:
    """Complete a checkpoint in `folder`: `files` are the names and sizes of what all ranks wrote."""
    (folder / STATE).write_text(json.dumps({"format": FORMAT, "files": dict(files)} | state))


def read_state(folder: Path) -> dict[str, Any]:
    """What `write_state` wrote. Raises `CheckpointError` for another version's format."""
    state = json.loads((folder / STATE).read_text())
    if state["format"] != FORMAT:
        raise CheckpointError(
            f"{folder}: written in format {state['format']} by another version of iris-ray; this one reads "
            f"format {FORMAT}."
        )
    return state
