"""The command `iris-ray eval`."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml
from rich.console import Console

from iris_ray.errors import ConfigError
from iris_ray.harness.evaluate import check_installed, task_of
from iris_ray.harness.suites import SUITES, Task
from iris_ray.operating import path_of

console = Console()


def evaluate(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL_OR_RUN", help="Folder or name of a run, a model's folder, or a hub name."
        ),
    ],
    suite: Annotated[
        str | None, typer.Option(help="Several tasks at once: paper, the ten benchmarks of the paper.")
    ] = None,
    names: Annotated[
        list[str] | None,
        typer.Option("--task", metavar="NAME[:SHOTS]", help="A task or group of lm-eval, also several."),
    ] = None,
    tasks: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="YAML files of your own tasks.", file_okay=False)
    ] = None,
    checkpoint: Annotated[
        int | None,
        typer.Option(metavar="ITERATION", help="A run's newest checkpoint of it. By default of all."),
    ] = None,
    chat: Annotated[
        bool, typer.Option("--chat", help="Ask through the chat template, shots as earlier turns.")
    ] = False,
    limit: Annotated[
        int | None, typer.Option(min=1, help="Only so many documents of each task, to try things out.")
    ] = None,
    engine: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=VALUE", help="An argument of vLLM, such as tensor_parallel_size=8."),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="By default in evaluations/ of the run folder, or here."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Score a model or a run's checkpoint in tasks of lm-eval, on vLLM.

    Tasks whose results are in the file already are not asked again.
    """
    chosen = _chosen(suite, names or [])
    arguments = _arguments(engine or [])
    check_installed()
    from actors.environment import generator_environment
    from iris_ray.config import Generation
    from iris_ray.harness.evaluate import Protocol, score
    from iris_ray.harness.model import scored_model
    from iris_ray.harness.tables import average, published_table, scores_table

    os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
    os.environ.update(generator_environment(Generation(num_cpus=os.cpu_count() or 1)))
    run = path_of(model)
    known = (run / "config.yaml").exists() and not Path(model).exists()  # a model's folder comes first
    scored = scored_model(str(run) if known else model, checkpoint)
    file = out or scored.results
    errors = Console(stderr=True)

    def started(task: Task) -> None:
        errors.print(f"Scoring {scored.name} in {task.title} ...", highlight=False)

    with _stdout_kept():
        scores = score(scored, chosen, Protocol(limit, chat), arguments, tasks, file, started)
    whole = suite is not None and limit is None
    if as_json:
        told = [asdict(each) | {"metric": each.metric, "value": each.value} for each in scores]
        averages = {"average": average(scores)} if whole else {}
        print(json.dumps({"model": scored.path, "file": str(file), "scores": told} | averages, indent=1))
        return
    console.print(scores_table(scores, scored.name))
    if whole:
        console.print(published_table(scored.name, scores))
    console.print(f"All metrics: {file}", highlight=False, soft_wrap=True)


@contextmanager
def _stdout_kept() -> Iterator[None]:
    """vLLM and its processes log to stdout, which is for the results."""
    kept = os.dup(1)
    os.dup2(2, 1)
    try:
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)


def _chosen(suite: str | None, names: list[str]) -> list[Task]:
    if (suite is None) == (not names):
        raise ConfigError("iris-ray eval: name a --suite or one --task or more, one of the two.")
    if suite is not None:
        if suite not in SUITES:
            raise ConfigError(f"--suite {suite}: there is no such suite. There: {', '.join(SUITES)}.")
        return list(SUITES[suite])
    return [task_of(each) for each in names]


def _arguments(engine: list[str]) -> dict[str, Any]:
    given = {}
    for each in engine:
        key, equals, value = each.partition("=")
        if not key or not equals:
            raise ConfigError(f"--engine {each}: is no KEY=VALUE, such as max_model_len=2048.")
        given[key] = yaml.safe_load(value)
    return given
