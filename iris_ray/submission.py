"""Runs as jobs of a Ray cluster."""

import asyncio
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

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
        try:
            self.client = JobSubmissionClient(self.address)
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise ConfigError(
                f"--address {address}: no Ray dashboard answers there ({first_line(error)}). Name the one "
                "that 'ray start --head' printed, such as http://127.0.0.1:8265."
            ) from error

    def submit(self, recipe: Path, overrides: list[str], working_dir: Path, runtime_env: Path | None) -> Job:
        """Have the cluster's head play `recipe`, with the code in `working_dir`.

        Raises `ConfigError` if the recipe does not fit, or its run folder would be lost with the job.
        """
        config = RunConfig.from_yaml(recipe, overrides)
        if not config.run.folder.is_absolute():
            raise ConfigError(
                f"run.folder={config.run.folder}: a job's working folder is a copy that Ray removes. Name a "
                "folder that all nodes see: --set run.folder=/shared/runs"
            )
        if recipe.is_absolute() or not (working_dir / recipe).is_file():
            raise ConfigError(f"{recipe}: name the recipe as it lies in the working folder {working_dir}.")
        environment = yaml.safe_load(runtime_env.read_text()) if runtime_env else {}
        settings = [word for override in overrides for word in ("--set", override)]
        submitted = self.client.submit_job(
            entrypoint=shlex.join(["iris-ray", "run", str(recipe), *settings]),
            runtime_env=environment | {"working_dir": str(working_dir)},
            metadata={"run": config.run.name},
        )
        page = f"{self.address}/#/jobs/{submitted}"
        return Job(submitted, config.run.name, str(config.folder), page)

    def follow(self, job: Job, write: Callable[[str], None]) -> bool:
        """Hand on what the job prints until it ends; whether it succeeded."""

        async def tail() -> None:
            async for text in self.client.tail_job_logs(job.id):
                write(text)

        asyncio.run(tail())
        return self.client.get_job_status(job.id) == JobStatus.SUCCEEDED
