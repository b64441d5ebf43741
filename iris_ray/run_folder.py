"""A run is a folder."""

import json
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from iris_ray.config import RunConfig
from iris_ray.errors import RunFolderError
from iris_ray.weights.manifest import Probe


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

    @classmethod
    def create(cls, config: RunConfig) -> "RunFolder":
        """Make the folder of a new run. Raises `RunFolderError` if there is something in it."""
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
        try:
            folder.samples.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RunFolderError(f"run.folder={config.run.folder}: cannot be written to: {error}") from error
        folder.config.write_text(config.to_yaml())
        return folder

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

    def write_probe(self, probe: Probe) -> None:
        """Keep the final model's log-probs of a few sequences: whoever loads it elsewhere can compare."""
        (self.final / "probe.json").write_text(json.dumps(asdict(probe)) + "\n")

    def write_summary(self, summary: dict[str, Any]) -> None:
        self.summary.write_text(json.dumps(summary, indent=2) + "\n")
