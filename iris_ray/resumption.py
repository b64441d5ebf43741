"""Going on with a run that ended before its time."""

from iris_ray.config import RunConfig
from iris_ray.errors import ConfigError
from iris_ray.run_folder import RunFolder

# Settings, or whole sections, that the work done so far rests on: with others the rest would be another run.
FIXED = (
    "run.seed",
    "run.plugins",
    "model",
    "data",
    "objective",
    "alpha",
    "schedule.epochs",
    "schedule.prompts_per_iteration",
    "schedule.refresh",
    "schedule.max_staleness",
    "generation.n",
    "generation.temperature",
    "generation.top_p",
    "generation.top_k",
    "generation.min_p",
    "generation.stop",
    "learner.batch_size",
    "learner.optimizer",
    "learner.reference",
    "checkpoint.storage",
)


def resumed_config(folder: RunFolder, overrides: list[str]) -> RunConfig:
    """The run's configuration with `overrides`.

    Raises `ConfigError` for settings that the work done so far rests on.
    """
    before = folder.read_config()
    after = folder.read_config(overrides)
    old, new = before.settings(), after.settings()
    for field in sorted(old.keys() | new.keys()):
        if old.get(field) != new.get(field) and any(f"{field}.".startswith(f"{fixed}.") for fixed in FIXED):
            raise ConfigError(
                f"{field}: {new.get(field)!r} does not fit: the run was played with {old.get(field)!r}. "
                "Leave it as it was, or start a new run from model.path=<a checkpoint that was exported>."
            )
    wanted, planned = after.schedule.iterations, before.schedule.iterations
    if wanted != planned and before.alpha.schedule == "geometric":
        raise ConfigError(
            f"schedule.iterations: {wanted} does not fit: alpha.schedule=geometric has spread α over "
            f"{planned}. Leave it as it was, or start a new run from model.path=<a checkpoint that was "
            "exported>."
        )
    return after
