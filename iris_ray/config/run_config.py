"""All settings of a run."""

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError, model_validator

from iris_ray.config.data import Data
from iris_ray.config.evaluation import Evaluation
from iris_ray.config.game import Alpha, Objective, Schedule
from iris_ray.config.gateway import Gateway
from iris_ray.config.generation import Generation
from iris_ray.config.learner import Checkpoint, Learner
from iris_ray.config.model import Model
from iris_ray.config.recipe import apply, lay_over, read
from iris_ray.config.run import Run
from iris_ray.config.section import Section
from iris_ray.config.sync import Sync
from iris_ray.config.tracking import Tracking
from iris_ray.errors import ConfigError

CPU_HEAD_SIZES = (32, 64, 80, 96, 112, 128, 160, 192, 224, 256, 512)  # of vLLM's attention on CPUs


class RunConfig(Section):
    """All settings of a run.

    Raises `ConfigError` from `from_yaml` and `from_dict`; each line names a field, its value and the fix.
    """

    run: Run = Run()
    model: Model
    data: Data
    objective: Objective = Objective()
    alpha: Alpha = Alpha()
    schedule: Schedule = Schedule()
    generation: Generation = Generation()
    learner: Learner = Learner()
    checkpoint: Checkpoint = Checkpoint()
    sync: Sync = Sync()
    evaluation: Evaluation = Evaluation()
    gateway: Gateway = Gateway()
    tracking: Tracking = Tracking()

    @model_validator(mode="after")
    def _fits(self) -> "RunConfig":
        ahead, batch = self.generation.max_ahead, self.learner.batch_size
        if ahead < batch:
            raise ValueError(
                f"generation.max_ahead ({ahead}) must be at least learner.batch_size ({batch}), "
                "or the first batch is never complete"
            )
        if self.schedule.refresh != "iteration":
            online = f"schedule.refresh={self.schedule.refresh}"
            if self.learner.reference != "generator":
                raise ValueError(
                    f"{online} needs learner.reference=generator: the learner keeps no copies of the "
                    "opponents that wrote the pairs"
                )
            if not self.schedule.overlap:
                raise ValueError(
                    f"{online} needs schedule.overlap=true: a newer opponent writes what follows on older "
                    "ones' pairs"
                )
            if self.schedule.epochs != 1:
                raise ValueError(
                    f"{online} needs schedule.epochs=1, not {self.schedule.epochs}: in a second pass all "
                    "pairs would be older than schedule.max_staleness allows. Raise schedule.iterations"
                )
        made = self.model.scratch
        if made and not self.generation.num_gpus and made.head_size not in CPU_HEAD_SIZES:
            raise ValueError(
                f"model.scratch.heads ({made.heads}) makes heads of {made.head_size} of "
                f"model.scratch.hidden_size ({made.hidden_size}), and vLLM on CPUs knows only "
                f"{', '.join(map(str, CPU_HEAD_SIZES))}. Choose heads so that hidden_size / heads is one"
            )
        autoscale = self.generation.autoscale
        if autoscale and autoscale.high * batch >= ahead:
            raise ValueError(
                f"generation.autoscale.high ({autoscale.high:g} batches of {batch}) must be below "
                f"generation.max_ahead ({ahead} pairs), or there is never one generator too many"
            )
        if autoscale and self.schedule.refresh != "iteration":
            batches = self.schedule.refresh * (self.schedule.max_staleness + 1)
            if autoscale.high >= batches:
                raise ValueError(
                    f"generation.autoscale.high ({autoscale.high:g} batches) must be below {batches}, which "
                    "is schedule.refresh times schedule.max_staleness + 1: no more are ever written ahead"
                )
        if self.model.lora and self.generation.num_gpus and self.model.dtype == "float32":
            raise ValueError(
                "model.lora with generation.num_gpus needs model.dtype=bfloat16: vLLM's adapters know no "
                "float32 on GPUs"
            )
        if self.sync.transport != "object_store":
            gpus = self.sync.transport == "nccl"
            for field, count in (
                ("generation", self.generation.num_gpus),
                ("learner", self.learner.num_gpus),
            ):
                if gpus and count < 1:
                    raise ValueError(
                        f"sync.transport (nccl) needs a whole GPU on each side: raise {field}.num_gpus "
                        f"({count:g}), or set sync.transport=object_store"
                    )
                if not gpus and count:
                    raise ValueError(
                        f"sync.transport (gloo) is for CPUs, and {field}.num_gpus is {count:g}. "
                        "Set sync.transport=nccl"
                    )
            if self.model.lora:
                raise ValueError(
                    f"sync.transport ({self.sync.transport}) sends whole models. An adapter (model.lora) is "
                    "small: set sync.transport=object_store"
                )
        if self.model.lora and self.generation.in_flight != "finish":
            raise ValueError(
                f"generation.in_flight ({self.generation.in_flight}) does not go with model.lora: no "
                "adapter can be replaced while responses use it. Set generation.in_flight=finish"
            )
        if self.learner.reference == "generator" and self.generation.temperature != 1:
            raise ValueError(
                f"learner.reference (generator) needs generation.temperature "
                f"({self.generation.temperature:g}) to be 1: engines score given responses without a "
                "temperature. Set generation.temperature=1, or learner.reference=learner"
            )
        if self.data.holdout == 0 and self.model.scratch and self.model.scratch.stop_at_exact_match:
            raise ValueError("model.scratch.stop_at_exact_match needs held-out prompts: raise data.holdout")
        return self

    @property
    def folder(self) -> Path:
        return self.run.folder / self.run.name

    def with_absolute_paths(self) -> "RunConfig":
        """The same for processes with another working folder, and for later."""
        changed: dict[str, Any] = {"run": {"folder": self.run.folder.absolute()}}
        if self.model.path and Path(self.model.path).is_dir():  # else the name of a hub model
            changed["model"] = {"path": str(Path(self.model.path).absolute())}
        if self.evaluation.tasks_folder:
            changed["evaluation"] = {"tasks_folder": self.evaluation.tasks_folder.absolute()}
        if self.data.inbox:
            changed["data"] = {"inbox": self.data.inbox.absolute()}
        if self.checkpoint.storage and "://" not in self.checkpoint.storage:
            changed["checkpoint"] = {"storage": str(Path(self.checkpoint.storage).absolute())}
        sections = {name: getattr(self, name).model_copy(update=values) for name, values in changed.items()}
        return self.model_copy(update=sections)

    @property
    def max_length(self) -> int:
        """Longest sequence in tokens: prompt, response and end token."""
        return self.data.max_prompt_tokens + self.data.max_response_tokens

    @property
    def window(self) -> int:
        """Tokens that a generator's engine has room for."""
        # vLLM scores a sequence only if one more token would fit behind it.
        return self.max_length + (self.learner.reference == "generator")

    @classmethod
    def from_yaml(
        cls, paths: str | Path | Sequence[str | Path], overrides: list[str] | None = None
    ) -> "RunConfig":
        """Read a recipe, or several of which each changes what stands in those before it.

        `overrides` are `section.key=value` with YAML values.
        """
        recipes = [Path(path) for path in ([paths] if isinstance(paths, str | Path) else paths)]
        values: dict[str, Any] = {}
        for recipe in recipes:
            lay_over(values, read(recipe))
        if len(recipes) > 1 and isinstance(run := values.setdefault("run", {}), dict):
            run.setdefault("name", "-".join(recipe.stem for recipe in recipes))
        for override in overrides or []:
            apply(values, override)
        return cls.from_dict(values, origin=", ".join(map(str, recipes)))

    @classmethod
    def from_dict(cls, values: dict[str, Any], origin: str = "configuration") -> "RunConfig":
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            lines = [_explain(dict(item)) for item in error.errors()]
            raise ConfigError(f"{origin}:\n" + "\n".join(f"  {line}" for line in lines)) from error

    def settings(self) -> dict[str, Any]:
        """Every setting under its name, such as `run.name`, in plain JSON types."""
        return _flat(self.model_dump(mode="json"))

    def to_yaml(self) -> str:
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        inner = isinstance(value, dict)
        flat |= _flat(value, f"{prefix}{key}.") if inner else {f"{prefix}{key}": value}
    return flat


def _explain(item: dict[str, Any]) -> str:
    """One line for one pydantic error: field, value, fix."""
    location = [str(part) for part in item["loc"]]
    field = ".".join(location)
    if item["type"] == "extra_forbidden":
        known = _fields_at(location[:-1])
        close = difflib.get_close_matches(location[-1], known, n=1, cutoff=0.5)
        hint = f"Did you mean {close[0]}?" if close else f"Known here: {', '.join(known)}."
        return f"{field}: there is no such setting. {hint}"
    if item["type"] == "missing":
        return f"{field}: is missing; please set it."
    message = item["msg"].removeprefix("Value error, ")
    if item["type"] == "value_error":
        return f"{field}: {message}" if field else message
    return f"{field}: {item['input']!r} does not fit: {message[0].lower()}{message[1:]}."


def _fields_at(location: list[str]) -> list[str]:
    model: Any = RunConfig
    for part in location:
        annotation = model.model_fields[part].annotation
        options = [annotation, *getattr(annotation, "__args__", ())]
        model = next(o for o in options if isinstance(o, type) and issubclass(o, BaseModel))
    return list(model.model_fields)
