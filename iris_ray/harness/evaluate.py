"""Scoring a model with lm-eval on vLLM, a task at a time."""

import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from iris_ray.errors import ConfigError, first_line
from iris_ray.harness.cpu_build import answer_for_vllm
from iris_ray.harness.suites import Task
from iris_ray.whole_file import write_whole

if TYPE_CHECKING:
    from iris_ray.harness.model import ScoredModel


@dataclass(frozen=True)
class Protocol:
    """How all tasks are asked."""

    limit: int | None
    """Only the first documents of each task, to try things out."""
    chat: bool
    """Through the model's chat template, shots as earlier turns."""


@dataclass(frozen=True)
class Score:
    """What a task gave: lm-eval's metrics by name (`acc,none`), with `_stderr` where it estimates it."""

    task: Task
    shots: int
    documents: int
    metrics: dict[str, float]

    @property
    def metric(self) -> str:
        return self.task.metric or next(iter(self.metrics))

    @property
    def value(self) -> float:
        return self.metrics[self.metric]

    @property
    def stderr(self) -> float | None:
        return self.stderr_of(self.metric)

    def stderr_of(self, metric: str) -> float | None:
        name, _, kept = metric.partition(",")
        error = self.metrics.get(f"{name}_stderr,{kept}")
        return error if isinstance(error, float) else None


def score(
    model: "ScoredModel",
    tasks: Sequence[Task],
    protocol: Protocol,
    engine: dict[str, Any],
    folder: Path | None,
    out: Path,
    started: Callable[[Task], None],
) -> list[Score]:
    """Score `model` in each of `tasks`; those whose results are in `out` already are not asked again.

    `engine` holds arguments of vLLM, `folder` YAML files of one's own tasks. After each task `out` is
    written: what lm-eval says of it, and how it was asked. Raises `ConfigError` for a task that does not
    exist, before the model is loaded.
    """
    manager = task_manager(tasks, folder)
    setting = {"model": model.path, "engine": engine, "lm_eval": version("lm-eval"), **asdict(protocol)}
    kept = _read(out, setting)
    lm: Any = None
    for task in tasks:
        if _key(task) in kept:
            continue
        started(task)
        lm = lm or _loaded(model, engine)
        kept[_key(task)] = _asked(lm, manager, task, protocol)
        out.parent.mkdir(parents=True, exist_ok=True)
        write_whole(out, json.dumps(setting | {"tasks": kept}, indent=1))
    if engines := getattr(lm, "model", None):  # none of its own with data_parallel_size
        engines.llm_engine.engine_core.shutdown()
    return [_score(task, kept[_key(task)]) for task in tasks]


def examined(lm: Any, names: Sequence[str], protocol: Protocol, folder: Path | None = None) -> list[Score]:
    """Scores of a model of lm-eval in tasks `NAME[:SHOTS]`."""
    tasks = [task_of(name) for name in names]
    manager = task_manager(tasks, folder)
    return [_score(task, _asked(lm, manager, task, protocol)) for task in tasks]


def task_of(text: str) -> Task:
    """`NAME` or `NAME:SHOTS`. Raises `ConfigError` for anything else."""
    name, colon, shots = text.partition(":")
    if not name or (colon and not shots.isdecimal()):
        raise ConfigError(f"{text}: is no task NAME or NAME:SHOTS, such as gsm8k:5.")
    return Task(name, name, int(shots) if colon else None)


def check_installed() -> None:
    """Raise `ConfigError` if lm-eval is not there."""
    if find_spec("lm_eval") is None:
        raise ConfigError("lm-eval is not installed. It is the extra `eval`: pip install 'iris-ray[eval]'.")


def task_manager(tasks: Sequence[Task], folder: Path | None) -> Any:
    """What lm-eval finds tasks with: in `folder`, and in its own if need be, which takes it seconds.

    Raises `ConfigError` for a task that it does not know.
    """
    from lm_eval.tasks import TaskManager

    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    for with_own in (False, True):
        manager = TaskManager(include_path=str(folder) if folder else None, include_defaults=with_own)
        unknown = [task.name for task in tasks if task.name not in manager.task_index]
        if not unknown:
            return manager
    raise ConfigError(
        f"lm-eval knows no task {', '.join(unknown)}. `lm-eval ls tasks` lists what there is; --tasks, or "
        "evaluation.tasks_folder of a run, names a folder with YAML files of your own."
    )


def _loaded(model: "ScoredModel", engine: dict[str, Any]) -> Any:
    answer_for_vllm()
    from lm_eval.models.vllm_causallms import VLLM

    try:
        return VLLM(**({"pretrained": model.path, "dtype": model.dtype, "batch_size": "auto"} | engine))
    except (OSError, ValueError, TypeError) as error:
        raise ConfigError(f"{model.path}: vLLM cannot load it: {first_line(error)}") from error


def _asked(lm: Any, manager: Any, task: Task, protocol: Protocol) -> dict[str, Any]:
    """The part of lm-eval's results that can be written as JSON."""
    from lm_eval import simple_evaluate
    from lm_eval.utils import handle_non_serializable

    results = simple_evaluate(
        lm,
        tasks=[task.name],
        num_fewshot=task.shots,
        limit=protocol.limit,
        apply_chat_template=protocol.chat,
        fewshot_as_multiturn=protocol.chat,
        task_manager=manager,
        log_samples=False,
    )
    assert results is not None  # of ranks other than the first, and there is one
    wanted = {
        name: results[name] for name in ("results", "n-shot", "n-samples", "versions") if name in results
    }
    return json.loads(json.dumps(wanted, default=handle_non_serializable))


def _key(task: Task) -> str:
    return task.name if task.shots is None else f"{task.name}, {task.shots} shots"


def _read(out: Path, setting: dict[str, Any]) -> dict[str, Any]:
    """Results by task that were written earlier; `ConfigError` if they were made in another way."""
    if not out.exists():
        return {}
    before = json.loads(out.read_text())
    other = [name for name, value in setting.items() if before.get(name) != value]
    if other:
        raise ConfigError(
            f"--out: {out} holds results of another {' and '.join(other)}. Name another file, or remove it."
        )
    return before["tasks"]


def _score(task: Task, kept: dict[str, Any]) -> Score:
    metrics = {name: value for name, value in kept["results"][task.name].items() if "," in name}
    parts = kept["n-samples"]
    documents = sum(each["effective"] for each in parts.values())
    shots = max(kept["n-shot"].get(name) or 0 for name in parts)
    if task.metric is not None and task.metric not in metrics:
        raise ConfigError(f"{task.name}: it has no metric {task.metric}. There: {', '.join(metrics)}.")
    return Score(task, shots, documents, metrics)
