"""Runs as jobs of a Ray cluster."""

import asyncio
import logging
import shlex
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from ray.job_submission import JobStatus, JobSubmissionClient

from iris_ray.config import RunConfig
from iris_ray.errors import ConfigError, first_line


@dataclass(frozen=True)
class Job:
    """A run that was submitted; `dashboard` is the page that shows it."""

    id: str
    run: str
    folder: str
    dashboard: str


class Jobs:
    """The jobs of the cluster whose dashboard is at `address`, such as `http://127.0.0.1:8265`.

    Raises `ConfigError` if it does not answer.
    """

    def __init__(self, address: str):
        self.address = address.rstrip("/")
        for handler in logging.getLogger("ray").handlers:
            handler.setLevel(logging.ERROR)  # it tells of each file that stays behind
        try:
            self.client = JobSubmissionClient(self.address)
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise ConfigError(
                f"--address {address}: no Ray dashboard answers there ({first_line(error)}). Name the one "
                "that 'ray start --head' printed, such as http://127.0.0.1:8265."
            ) from error

    def submit(
        self, recipes: list[Path], overrides: list[str], working_dir: Path, runtime_env: Path | None
    ) -> Job:
        """Have the cluster's head play `recipes`, with the code in `working_dir`.

        Raises `ConfigError` if the recipe does not fit, or its run folder would be lost with the job.
        """
        for recipe in recipes:
            if recipe.is_absolute() or not (working_dir / recipe).is_file():
                raise ConfigError(
                    f"{recipe}: name the recipe as it lies in the working folder {working_dir}."
                )
        folder = RunConfig.from_yaml([working_dir / recipe for recipe in recipes], overrides).folder
        if not folder.is_absolute():
            raise ConfigError(
                f"run.folder={folder.parent}: a job's working folder is a copy that Ray removes. Name a "
                "folder that all nodes see: --set run.folder=/shared/runs"
            )
        return self._submit(folder, list(map(str, recipes)), overrides, working_dir, runtime_env)

    def resume(self, folder: Path, overrides: list[str], working_dir: Path, runtime_env: Path | None) -> Job:
        """Have the cluster's head go on with the run in `folder`, which need not be seen from here.

        Raises `ConfigError` if the folder is told by a path of this machine's working folder.
        """
        if not folder.is_absolute():
            raise ConfigError(
                f"--resume {folder}: the job has another working folder. Name the run's folder as the nodes "
                "see it, such as /shared/runs/demo."
            )
        return self._submit(folder, ["--resume", str(folder)], overrides, working_dir, runtime_env)

    def _submit(
        self,
        folder: Path,
        what: list[str],
        overrides: list[str],
        working_dir: Path,
        runtime_env: Path | None,
    ) -> Job:
        environment = read_environment(runtime_env) if runtime_env else {}
        # Where all see the same disks, the head finds iris-ray where it was called, whatever its own PATH.
        path = {"PATH": f"{Path(sys.executable).parent}:${{PATH}}"}
        settings = [word for override in overrides for word in ("--set", override)]
        submitted = self.client.submit_job(
            entrypoint=shlex.join(["iris-ray", "run", *what, *settings]),
            runtime_env=environment
            | {"working_dir": str(working_dir), "env_vars": path | (environment.get("env_vars") or {})},
            metadata={"run": folder.name},
        )
        return Job(submitted, folder.name, str(folder), f"{self.address}/#/jobs/{submitted}")

    def follow(self, job: Job, write: Callable[[str], None]) -> str | None:
        """Hand on what the job prints until it ends; returns how it failed, or `None`."""

        async def tail() -> None:
            async for text in self.client.tail_job_logs(job.id):
                write(text)

        asyncio.run(tail())
        info = self.client.get_job_info(job.id)
        if info.status == JobStatus.SUCCEEDED:
            return None
        return f"{info.status.value}, {(info.message or '').partition(', last available logs')[0]}"


def read_environment(file: Path) -> dict[str, Any]:
    """A Ray runtime environment. Raises `ConfigError` if it is none, or tells the working folder as well."""
    try:
        environment = yaml.safe_load(file.read_text(encoding="utf-8")) or {}
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"--runtime-env {file}: cannot be read as YAML: {error}") from error
    if not isinstance(environment, dict):
        raise ConfigError(
            f"--runtime-env {file}: must hold fields of a Ray runtime environment, such as 'env_vars:'."
        )
    if "working_dir" in environment:
        raise ConfigError(
            f"--runtime-env {file}: working_dir is told by --working-dir, as the recipes are looked for "
            "there. Take it out of the file."
        )
    return environment
