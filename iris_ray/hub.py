"""What a run has to fetch from the Hugging Face hub before it can start."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import datasets
from huggingface_hub import HfApi, try_to_load_from_cache
from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError

from iris_ray.config import RunConfig
from iris_ray.data.sources import HUB_TIMEOUT_S, is_hub_name
from iris_ray.errors import ConfigError

Kind = Literal["model", "dataset"]


@dataclass(frozen=True)
class Download:
    """A model or data set that is not on this machine. `bytes`: of all its files, `None` if the hub did not
    answer."""

    kind: Kind
    name: str
    bytes: int | None


def model_download(config: RunConfig) -> Download | None:
    """The model of `model.path`, if it is neither a folder nor in the hub's cache.

    Raises `ConfigError` if the hub answers that it has none of this name.
    """
    name = config.model.path
    if name is None or Path(name).is_dir():
        return None
    return _missing("model.path", "model", name, _cached_model)


def data_download(config: RunConfig) -> Download | None:
    """The data set of `data.path`, if that names one of the hub which is not in the cache of `datasets`.

    Raises `ConfigError` if the hub answers that it has none of this name.
    """
    name = config.data.path
    if name is None or not is_hub_name(name):
        return None
    return _missing("data.path", "dataset", name, _cached_dataset)


def _missing(field: str, kind: Kind, name: str, cached: Callable[[str], bool]) -> Download | None:
    try:
        if cached(name):
            return None
        ask = HfApi().model_info if kind == "model" else HfApi().dataset_info
        info = ask(name, timeout=HUB_TIMEOUT_S, files_metadata=True)
    except (RepositoryNotFoundError, HFValidationError) as error:
        raise ConfigError(
            f"{field}={name}: there is no such folder here, and no {kind} of that name on the hub. Check the "
            "path, or the name and whether you may see it."
        ) from error
    except Exception:  # of the client, whichever it uses: no network, a hub that is ill, HF_HUB_OFFLINE
        return Download(kind, name, None)
    return Download(kind, name, sum(file.size or 0 for file in info.siblings or []))


def _cached_model(name: str) -> bool:
    return isinstance(try_to_load_from_cache(name, "config.json"), str)


def _cached_dataset(name: str) -> bool:
    return Path(datasets.config.HF_DATASETS_CACHE, name.replace("/", "___")).is_dir()
