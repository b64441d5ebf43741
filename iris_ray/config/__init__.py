"""The configuration of a run: one model a section, unknown keys are errors."""

from iris_ray.config.data import Data, SortDigits
from iris_ray.config.evaluation import Evaluation
from iris_ray.config.game import Alpha, Objective, Schedule
from iris_ray.config.gateway import Gateway
from iris_ray.config.generation import Autoscale, Generation
from iris_ray.config.learner import Checkpoint, Learner
from iris_ray.config.model import Lora, Model, ScratchModel
from iris_ray.config.run import Run
from iris_ray.config.run_config import RunConfig
from iris_ray.config.section import Section
from iris_ray.config.sync import Sync
from iris_ray.config.tracking import Mlflow, Tracking, Wandb

__all__ = [
    "Alpha",
    "Autoscale",
    "Checkpoint",
    "Data",
    "Evaluation",
    "Gateway",
    "Generation",
    "Learner",
    "Lora",
    "Mlflow",
    "Model",
    "Objective",
    "Run",
    "RunConfig",
    "Schedule",
    "ScratchModel",
    "Section",
    "SortDigits",
    "Sync",
    "Tracking",
    "Wandb",
]
