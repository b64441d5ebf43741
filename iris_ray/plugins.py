"""What a configuration names that plug-ins may have registered."""

import importlib
from typing import TYPE_CHECKING

from iris_ray.config import RunConfig
from iris_ray.errors import ConfigError

if TYPE_CHECKING:
    from iris_ray.objectives import Objective


def load_plugins(config: RunConfig) -> None:
    """Import the modules of `run.plugins`. Raises `ConfigError` if one cannot be found."""
    for name in config.run.plugins:
        try:
            importlib.import_module(name)
        except ModuleNotFoundError as error:
            if not (name == error.name or name.startswith(f"{error.name}.")):
                raise
            raise ConfigError(
                f"run.plugins: there is no module {name!r}. Install it on every node, or start the run in "
                "the folder that holds it."
            ) from error


def configured_objective(config: RunConfig, iteration: int = 1) -> "Objective":
    """The run's objective in `iteration`, be it a plug-in's.

    Raises `ConfigError` if there is none or an option is wrong.
    """
    from iris_ray.objectives import build_objective  # imports torch, which who only loads plug-ins need not

    load_plugins(config)
    return build_objective(config.objective.name, **config.objective.options_in(iteration))


def objective_has_order(config: RunConfig) -> bool:
    """Whether α means anything to the run's objective; true of a plug-in's that is not on this machine."""
    try:
        return configured_objective(config).has_order
    except ConfigError:
        return True
