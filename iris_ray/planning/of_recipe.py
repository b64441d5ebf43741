"""From a recipe, a description of machines and runs on them to a planner."""

from pathlib import Path

from iris_ray.config import RunConfig
from iris_ray.errors import ConfigError
from iris_ray.planning.calibration import MeasuredRun, calibrated
from iris_ray.planning.hardware import Hardware
from iris_ray.planning.model_shape import model_shape
from iris_ray.planning.planner import Planner
from iris_ray.planning.rates import Speeds
from iris_ray.planning.workload import made_up, of_recipe


def make_planner(config: RunConfig, hardware: Hardware, measured: list[Path]) -> Planner:
    """The planner of a recipe, with the speeds of the runs in `measured`, if there are any.

    Raises `ConfigError` for hardware that does not fit the recipe, and what reading model and data raises.
    """
    check_kind(config, hardware)
    runs = [MeasuredRun.read(path) for path in measured]
    shape = model_shape(config)
    workload = made_up(hardware.data, config) if hardware.data else of_recipe(config)
    speeds, told = Speeds.of(hardware, config), ""
    if runs:
        speeds = calibrated(speeds, runs, hardware)
        told = f"Speeds are those of {', '.join(run.name for run in runs)}."
    return Planner(config, hardware, shape, workload, speeds, told)


def check_kind(config: RunConfig, hardware: Hardware) -> None:
    """Raises `ConfigError` if recipe and hardware do not speak of the same kind of processor."""
    for field, asked in (("generation", config.generation.num_gpus), ("learner", config.learner.num_gpus)):
        if bool(asked) != bool(hardware.gpus_per_node):
            raise ConfigError(
                f"{field}.num_gpus is {asked:g}, and the hardware has {hardware.gpus_per_node} GPUs per node."
                f" Set {field}.num_gpus={int(hardware.gpus_per_node > 0)}, or correct gpus_per_node."
            )
