"""A run is a folder."""

import json
import os
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from iris_ray.config import RunConfig
from iris_ray.errors import RunFolderError
from iris_ray.weights.manifest import Probe
from iris_ray.whole_file import write_whole


class RunFolder:
    """Names of what a run keeps, and the two files that tools read: metrics.jsonl and summary.json."""

    def __init__(self, path: Path):
        self.path = path.absolute()
        self.config = self.path / "config.yaml"
        self.metrics = self.path / "metrics.jsonl"
        self.summary = self.path / "summary.json"
        self.report = self.path / "report.html"
        self.data = self.path / "data"
        self.start = self.path / "start"
        self.samples = self.path / "samples"
        self.checkpoints = self.path / "checkpoints"
        self.final = self.path / "final"
        self.cluster = self.path / "cluster.json"
        self.token = self.path / "gateway.token"
        self.tokenizer = self.data / "tokenizer"
        self.tracking = self.path / "tracking.json"
        self.tensorboard = self.path / "tensorboard"

    def held_out(self, iteration: int) -> Path:
        """Answers to held-out prompts of the model that `iteration` made; 0 is the start model."""
        return self.path / "held-out" / f"iteration-{iteration:03d}.parquet"

    @classmethod
    def create(cls, config: RunConfig) -> "RunFolder":
        """Make the folder of a new run. Raises `RunFolderError` if there is something in it."""
        folder = cls.free(config)
        try:
            folder.samples.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RunFolderError(f"run.folder={config.run.folder}: cannot be written to: {error}") from error
        folder.write_config(config.with_absolute_paths())
        return folder

    @classmethod
    def free(cls, config: RunConfig) -> "RunFolder":
        """The folder of a new run, not made yet. Raises `RunFolderError` if there is something in it."""
        folder = cls(config.folder)
        if folder.config.exists():
            raise RunFolderError(
                f"run.name={config.run.name}: {config.folder} already holds a run. Choose another run.name, "
                f"or move the folder away. To go on from its result, set model.path={config.folder}/final."
            )
        if folder.path.exists() and not (folder.path.is_dir() and not any(folder.path.iterdir())):
            raise RunFolderError(
                f"run.name={config.run.name}: {config.folder} exists and is not an empty folder. "
                "Choose another run.name or run.folder."
            )
        return folder

    @classmethod
    def existing(cls, path: Path) -> "RunFolder":
        """The folder of a run. Raises `RunFolderError` if there is none in it."""
        folder = cls(path)
        if not folder.config.is_file():
            raise RunFolderError(
                f"{path} holds no run: there is no config.yaml in it. Name a run's folder, such as runs/demo."
            )
        return folder

    @classmethod
    def open(cls, path: Path) -> "RunFolder":
        """The folder of a run to be gone on with. Raises `RunFolderError` if none is there or it is over."""
        folder = cls.existing(path)
        if folder.read_summary().get("status") == "finished":
            raise RunFolderError(
                f"{path}: this run is finished, there is nothing to resume. To go on from its result, start "
                f"a new run with model.path={path}/final, model.scratch=null and another run.name."
            )
        return folder

    def read_config(self, overrides: Sequence[str] = ()) -> RunConfig:
        """The run's configuration; `run.folder` and `run.name` say where the folder lies now.

        `overrides` are `section.key=value`, as for a recipe.
        """
        place: dict[str, str] = {}
        if RunConfig.from_yaml(self.config).folder.absolute() != self.path:
            place = {"run.folder": str(self.path.parent), "run.name": self.path.name}
        where = [f"{field}={json.dumps(value, ensure_ascii=False)}" for field, value in place.items()]
        return RunConfig.from_yaml(self.config, [*overrides, *where])

    def write_config(self, config: RunConfig) -> None:
        write_whole(self.config, config.to_yaml())

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Raises `RunFolderError` if another process, of any machine, plays the run while the block runs."""
        lock = FileLock(self.path / ".lock", blocking=False)
        try:
            lock.acquire()
        except Timeout as error:
            raise RunFolderError(
                f"{self.path}: this run is being played, by another process. See it with iris-ray status "
                f"{self.path}, or stop it with iris-ray stop {self.path} before it is resumed."
            ) from error
        try:
            yield
        finally:
            lock.release()

    @contextmanager
    def discarded_on_error(self) -> Iterator[None]:
        """Remove the folder if the block fails."""
        try:
            yield
        except BaseException:
            shutil.rmtree(self.path)
            raise

    def append_metrics(self, event: str, values: dict[str, Any]) -> None:
        """Add one JSON object with the wall-clock time in seconds to metrics.jsonl."""
        with self.metrics.open("a") as file:
            file.write(json.dumps({"event": event, "time": time.time(), **values}) + "\n")

    def read_metrics(self, event: str) -> Iterator[dict[str, Any]]:
        """The objects of one kind of event in metrics.jsonl; the others are passed over unread."""
        if not self.metrics.exists():
            return
        with self.metrics.open() as file:
            yield from (json.loads(line) for line in file if line.startswith(_beginning(event)))

    def metrics_bytes(self) -> int:
        """Size of metrics.jsonl, all of it on disk: a state that tells it must not outlive the lines."""
        if not self.metrics.exists():
            return 0
        with self.metrics.open("rb") as file:
            os.fsync(file.fileno())
            return os.fstat(file.fileno()).st_size

    def cut_metrics(self, size: int, keep: Sequence[str] = ()) -> None:
        """Cut metrics.jsonl back to its first `size` bytes, but for later lines of the kinds in `keep`.

        Raises `RunFolderError` where that is unsafe.
        """
        if not size and not self.metrics.exists():
            return
        beginnings = tuple(_beginning(event).encode() for event in keep)
        try:
            with self.metrics.open("r+b") as file:
                # The last byte kept must end a line: true of every size that `metrics_bytes` told.
                file.seek(max(size - 1, 0))
                if size and file.read(1) != b"\n":
                    raise RunFolderError(
                        f"{self.metrics} is not what it was when the checkpoint was taken: its first {size} "
                        "bytes are no longer there as whole lines. Put the file back to resume the run."
                    )
                file.seek(size)
                later = [line for line in file if line.startswith(beginnings) and line.endswith(b"\n")]
                file.truncate(size)
                file.seek(size)
                file.writelines(later)
        except OSError as error:
            raise RunFolderError(f"{self.metrics}: cannot be cut back to the checkpoint: {error}") from error

    def archives(self) -> list[Path]:
        """The written pairs, one file an iteration, in order; the newest may still be being written."""
        return sorted(self.samples.glob("iteration-*.parquet"), key=iteration_of)

    @contextmanager
    def playing_on(self, where: dict[str, str | None]) -> Iterator[None]:
        """Keep in cluster.json where the run plays while the block runs: that is how others find it.

        It may be removed before, when summary.json tells how the run ended.
        """
        self.cluster.write_text(json.dumps(where) + "\n")
        try:
            yield
        finally:
            self.cluster.unlink(missing_ok=True)

    def read_where(self) -> dict[str, str | None]:
        """Where the run plays (cluster.json) or played last (summary.json); empty if neither tells."""
        if self.cluster.exists():
            where: dict[str, str | None] = json.loads(self.cluster.read_text())
            return where
        return self.read_summary().get("cluster", {})

    def write_token(self, token: str) -> None:
        """Keep what the gateway asks of those who change the run, for the eyes of its user alone."""
        self.token.touch(mode=0o600)
        self.token.write_text(token + "\n")

    def write_probe(self, probe: Probe) -> None:
        """Keep the final model's log-probs of a few sequences: whoever loads it elsewhere can compare."""
        (self.final / "probe.json").write_text(json.dumps(asdict(probe)) + "\n")

    def read_summary(self) -> dict[str, Any]:
        """What summary.json holds; empty while there is none."""
        summary: dict[str, Any] = json.loads(self.summary.read_text()) if self.summary.exists() else {}
        return summary

    def write_summary(self, summary: dict[str, Any]) -> None:
        write_whole(self.summary, json.dumps(summary, indent=2) + "\n")


def _beginning(event: str) -> str:
    """Of its lines in metrics.jsonl."""
    return json.dumps({"event": event})[:-1] + ","


def iteration_of(archive: Path) -> int:
    """The number in an archive's name, which may have more than three digits."""
    return int(archive.stem.rpartition("-")[2])
