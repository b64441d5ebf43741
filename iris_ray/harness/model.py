"""Which model is to be scored: a run's, or any."""

from dataclasses import dataclass
from pathlib import Path

from iris_ray.checkpoints import CheckpointStorage, storage_errors
from iris_ray.errors import ConfigError
from iris_ray.export import export_checkpoint
from iris_ray.run_folder import RunFolder


@dataclass(frozen=True)
class ScoredModel:
    path: str
    """A folder in Hugging Face format, or a hub name."""
    name: str
    dtype: str
    """As vLLM calls it; `auto` is that of the files."""
    results: Path
    """Where its results are kept unless told otherwise."""


def scored_model(model: str, checkpoint: int | None) -> ScoredModel:
    """`model` is a run folder, a folder with a model, or a hub name.

    Of a run it is the newest checkpoint, or the newest of the iteration `checkpoint`; it is exported unless
    that was done. Raises `ConfigError` for a checkpoint of something that is no run.
    """
    folder = RunFolder(Path(model))
    if not folder.config.exists():
        if checkpoint is not None:
            raise ConfigError(
                f"--checkpoint: {model} is no run folder. Leave it out, or name a run's folder."
            )
        name = model.rstrip("/").replace("/", "--").lstrip(".-")
        return ScoredModel(model, name, "auto", Path("evaluations") / f"{name}.json")
    config = folder.read_config()
    with storage_errors(config):
        found = CheckpointStorage(config).find(checkpoint)
    exported = folder.path / "exports" / found.name
    if not exported.exists():
        export_checkpoint(folder.path, checkpoint)
    results = folder.path / "evaluations" / f"{found.name}.json"
    return ScoredModel(str(exported), f"{config.run.name}, {found.name}", config.model.dtype, results)
