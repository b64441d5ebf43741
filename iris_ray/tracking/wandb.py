"""Weights & Biases."""

import wandb

from iris_ray.config import RunConfig
from iris_ray.errors import ConfigError, first_line
from iris_ray.run_folder import RunFolder
from iris_ray.tracking.tracker import End, Tracker

STEP = "global_step"


class Wandb(Tracker):
    def __init__(self, config: RunConfig, folder: RunFolder, known: str | None):
        settings = config.tracking.wandb
        assert settings is not None
        try:
            self.run = wandb.init(
                project=settings.project,
                entity=settings.entity,
                mode=settings.mode,
                name=config.run.name,
                id=known,
                resume="allow" if known else None,
                dir=folder.path,
                config=config.model_dump(mode="json"),
                settings=wandb.Settings(silent=True, console="off"),
            )
        except wandb.Error as error:
            raise ConfigError(
                f"tracking.wandb.project={settings.project}: Weights & Biases does not take the run. Log in "
                "with 'wandb login', or set tracking.wandb.mode=offline. The reason given: "
                f"{first_line(error)}"
            ) from error
        self.id = self.run.id
        # Its own steps only grow, and a run that goes back takes some again.
        self.run.define_metric("*", step_metric=STEP)

    def tell(self, values: dict[str, float], step: int, time: float) -> None:
        self.run.log({STEP: step, **values})

    def close(self, end: End) -> None:
        self.run.finish(exit_code=int(end == "failed"))
