"""The page of one run."""

import os
import shlex
from statistics import median
from typing import Any

from iris_ray.data.prepare import REPORT, load_report
from iris_ray.data.report import DataReport
from iris_ray.model_card import key_settings
from iris_ray.plugins import objective_has_order
from iris_ray.report.charts import run_charts
from iris_ray.report.decimation import POINTS
from iris_ray.report.history import History
from iris_ray.report.pairs_shown import ShownPairs, ShownPrompt, shown_pairs
from iris_ray.report.phases_picture import phases_svg
from iris_ray.report.shading import LEVELS, NotShadedError, shade
from iris_ray.report.templating import render
from iris_ray.report.timeline import timeline
from iris_ray.report.timeline_picture import timeline_svg
from iris_ray.report.waiting import waiting
from iris_ray.versions import versions
from iris_ray.weights.parity import TOLERANCE


def run_page(history: History, *, score: bool = False) -> str:
    """HTML that needs nothing beside itself. `score`: shade the sample pairs however large the model is."""
    has_order = objective_has_order(history.config)
    data = _data(history)
    pairs = shown_pairs(history.folder)
    line = timeline(history)
    return render(
        "run.html",
        title=f"{history.name}: self-play run",
        run=history,
        has_order=has_order,
        settings=list(key_settings(history.config, data, has_order)),
        configuration=history.config.to_yaml(),
        data=data,
        charts=run_charts(history, has_order),
        decimated=len(history.steps["time"]) if len(history.steps["time"]) > POINTS else 0,
        points=POINTS,
        pairs=pairs,
        **_shading(history, pairs, score),
        levels=LEVELS,
        timeline=timeline_svg(line) if line else None,
        waiting=waiting(history),
        phases=phases_svg(history),
        sync=_sync(history),
        warnings=_warnings(history),
        comings=_comings(history),
        versions=history.summary.get("versions") or versions(),
        commands=_commands(history),
    )


def _data(history: History) -> DataReport | None:
    return load_report(history.folder.data) if (history.folder.data / REPORT).exists() else None


def _shading(history: History, pairs: ShownPairs | None, score: bool) -> dict[str, Any]:
    """`shaded`, a list of responses for each prompt that is shown, or `None`, and `unshaded`, why."""
    if pairs is None:
        return {"shaded": None, "unshaded": ""}
    try:
        return {
            "shaded": shade(history, [_group(prompt) for prompt in pairs.prompts], asked=score),
            "unshaded": "",
        }
    except NotShadedError as reason:
        return {"shaded": None, "unshaded": str(reason)}


def _group(prompt: ShownPrompt) -> Any:
    from iris_ray.learner.token_batch import PromptGroup

    first = prompt.writings[0]
    written = [writing.synthetic_tokens for writing in prompt.writings]
    return PromptGroup(first.prompt_tokens, [first.real_tokens, *written])


def _sync(history: History) -> dict[str, Any] | None:
    """All weight updates in one, and each generator's."""
    updates = history.events.get("update", [])
    if not updates:
        return None
    by_generator: dict[str, list[dict[str, Any]]] = {}
    for update in updates:
        by_generator.setdefault(update["generator"], []).append(update)
    config = history.config
    return {
        "all": _one_sync(updates),
        "generators": {name: _one_sync(mine) for name, mine in by_generator.items()},
        "tolerance": config.sync.parity_tolerance or TOLERANCE[config.model.dtype],
    }


def _one_sync(updates: list[dict[str, Any]]) -> dict[str, Any]:
    paused = [update["paused_seconds"] for update in updates]
    return {
        "updates": len(updates),
        "parity": max(update["parity_max_abs_diff"] for update in updates),
        "seconds": median(update["seconds"] for update in updates),
        "paused": median(paused),
        "paused_in_all": sum(paused),
    }


def _warnings(history: History) -> list[dict[str, Any]]:
    """A kind of trouble once: where it was seen first, in which iterations, and what was said of it."""
    kinds: dict[str, dict[str, Any]] = {}
    for warning in history.events.get("warning", []):
        first = kinds.setdefault(warning["kind"], warning | {"iterations": []})
        if warning["iteration"] not in first["iterations"]:
            first["iterations"].append(warning["iteration"])
    return list(kinds.values())


def _comings(history: History) -> list[dict[str, Any]]:
    """Generators that came, died or left, and where the run went back to a checkpoint, in order."""
    generators = [
        {"time": event["time"], "what": f"{event['generator']} {event['state']}", "reason": event["reason"]}
        for event in history.events.get("generator", [])
    ]
    resumes = [
        {"time": event["time"], "what": "resumed", "reason": _place(event)}
        for event in history.events.get("resumed", [])
    ]
    return sorted(generators + resumes, key=lambda event: event["time"])


def _place(event: dict[str, Any]) -> str:
    if not event["iteration"]:
        return "from the beginning: there was no checkpoint yet"
    return f"from the checkpoint at iteration {event['iteration']}, step {event['step']}"


def _commands(history: History) -> list[tuple[str, str]]:
    """What can be done with the run, and the line that does it."""
    folder = history.folder
    path, config = (shlex.quote(os.path.relpath(place)) for place in (folder.path, folder.config))
    name = shlex.quote(history.name)
    commands = [("the same once more", f"iris-ray run {config} --set run.name={name}-again")]
    if history.status != "finished":
        commands.append(("go on with it", f"iris-ray run --resume {path}"))
    if folder.final.exists():
        more = f"--set run.name={name}-more --set model.scratch=null --set model.path={path}/final"
        commands.append(("go on from its result", f"iris-ray run {config} {more}"))
    commands.append(("another seed", f"iris-ray run {config} --set run.name={name}-seed-1 --set run.seed=1"))
    commands.append(("this page, made anew", f"iris-ray report {path}"))
    return commands
