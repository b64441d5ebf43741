"""MLflow."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Metric, Param
from mlflow.environment_variables import MLFLOW_HTTP_REQUEST_MAX_RETRIES
from mlflow.exceptions import MlflowException

from iris_ray.config import RunConfig
from iris_ray.errors import ConfigError, first_line
from iris_ray.run_folder import RunFolder
from iris_ray.tracking.tracker import End, Tracker

VALUES, SETTINGS, LONGEST = 1000, 100, 6000  # what MLflow takes at once; characters of a setting
STATUS = {"finished": "FINISHED", "failed": "FAILED", "stopped": "KILLED"}


class Mlflow(Tracker):
    def __init__(self, config: RunConfig, folder: RunFolder, known: str | None):
        settings = config.tracking.mlflow
        assert settings is not None
        self.told: list[Metric] = []
        try:
            with _few_retries():
                self.client = MlflowClient(settings.uri)
                if known:
                    self.client.update_run(known, "RUNNING")
                self.run = known or self._new_run(config, settings.experiment)
        except MlflowException as error:
            raise ConfigError(
                f"tracking.mlflow.uri={settings.uri}: MLflow does not take the run. Give the address of its "
                f"server, or a database such as sqlite:///mlflow.db. The reason given: {first_line(error)}"
            ) from error
        self.id = self.run

    def _new_run(self, config: RunConfig, experiment: str) -> str:
        found = self.client.get_experiment_by_name(experiment)
        experiment_id = found.experiment_id if found else self.client.create_experiment(experiment)
        run: str = self.client.create_run(experiment_id, run_name=config.run.name).info.run_id
        params = [Param(name, str(value)[:LONGEST]) for name, value in config.settings().items()]
        for some in _batches(params, SETTINGS):
            self.client.log_batch(run, params=some)
        return run

    def tell(self, values: dict[str, float], step: int, time: float) -> None:
        self.told += [Metric(name, value, int(time * 1000), step) for name, value in values.items()]

    def flush(self) -> None:
        for some in _batches(self.told, VALUES):
            self.client.log_batch(self.run, metrics=some)
        self.told = []

    def close(self, end: End) -> None:
        self.client.set_terminated(self.run, STATUS[end])


def _batches(items: list[Any], size: int) -> Iterator[list[Any]]:
    return (items[begin : begin + size] for begin in range(0, len(items), size))


@contextmanager
def _few_retries() -> Iterator[None]:
    """A wrong address is told in seconds: with MLflow's own retries it takes four minutes."""
    before = MLFLOW_HTTP_REQUEST_MAX_RETRIES.get()
    MLFLOW_HTTP_REQUEST_MAX_RETRIES.set(1)
    try:
        yield
    finally:
        MLFLOW_HTTP_REQUEST_MAX_RETRIES.set(before)
