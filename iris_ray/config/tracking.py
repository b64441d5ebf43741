"""Settings of the trackers."""

from typing import Literal

from iris_ray.config.section import Section


class Wandb(Section):
    """Weights & Biases. Needs the extra `wandb`."""

    project: str = "iris-ray"
    entity: str | None = None
    """User or team. Empty: your default one."""
    mode: Literal["online", "offline"] = "online"
    """`offline` keeps all of it in the run folder; `wandb sync` sends it later."""


class Mlflow(Section):
    """MLflow. Needs the extra `mlflow`."""

    uri: str | None = None
    """Tracking server, or a database such as `sqlite:///mlflow.db`. Empty: MLFLOW_TRACKING_URI."""
    experiment: str = "iris-ray"


class Tracking(Section):
    """Where a run's curves go beside its folder. TensorBoard's files are always written there."""

    wandb: Wandb | None = None
    """Empty: nothing goes to Weights & Biases."""
    mlflow: Mlflow | None = None
    """Empty: nothing goes to MLflow."""
