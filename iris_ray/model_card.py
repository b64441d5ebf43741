"""The README.md of a model that a run made: where it comes from and how the game went."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from iris_ray.config import RunConfig
from iris_ray.data.report import DataReport
from iris_ray.evaluation import share
from iris_ray.plugins import objective_has_order
from iris_ray.versions import versions

FILES = {".jsonl", ".json", ".csv", ".parquet"}  # never names on the hub, even where they are not at hand

TEMPLATE = """---
{{ card_data }}
---

# {{ title }}

{{ text }}

## Training

{{ settings }}

## History

Gaps are in nats per {{ gap_per }}. Exact match: share of held-out prompts whose greedy answer is the
annotated one.

{{ history }}
"""


def write_model_card(
    folder: Path,
    config: RunConfig,
    history: Mapping[str, Any],
    data: DataReport | None,
    *,
    checkpoint: str | None = None,
    adapter: bool = False,
) -> None:
    """Write README.md into the model's folder.

    `history` has the `baseline` and `iterations` of `Records`, from a summary or a state. `checkpoint` says
    which one the model is, if it is not the run's end; `adapter` that the folder holds LoRA weights alone.
    """
    objective, lora = config.objective.name, config.model.lora
    card_data = ModelCardData(
        base_model=_hub_name(config.model.path),
        datasets=_hub_name(config.data.path),
        library_name="peft" if adapter else "transformers",
        pipeline_tag="text-generation",
        tags=["iris-ray", "self-play", objective, *(["lora"] if lora else [])],
    )
    start = f"`{config.model.path}`" if config.model.path else "a small model made for the run"
    which = f"checkpoint `{checkpoint}`" if checkpoint else "the end"
    what = "A LoRA adapter that came from" if adapter else "The model that came from"
    text = (
        f"{what} {start} by self-play fine-tuning with iris-ray: in each iteration it was trained against "
        f"a frozen copy of itself, its opponent. This is {which} of run `{config.run.name}`."
    )
    has_order = objective_has_order(config)
    card = ModelCard.from_template(
        card_data,
        template_str=TEMPLATE,
        title=config.run.name,
        text=text,
        settings=_table([("setting", "value"), *key_settings(config, data, has_order), _versions()]),
        gap_per={"token": "response token", "sequence": "response"}[config.alpha.gap_per],
        history=_table(_history(history, has_order)),
    )
    card.save(folder / "README.md")


def key_settings(config: RunConfig, data: DataReport | None, has_order: bool) -> Iterable[tuple[str, str]]:
    """What a result depends on most, in words; code stands in backticks."""
    model, learner, schedule, alpha = config.model, config.learner, config.schedule, config.alpha
    if model.scratch:
        made = f"{model.scratch.layers} layers, width {model.scratch.hidden_size}, warmed up by SFT"
        yield "start model", f"made for the run: {made}"
    else:
        yield "start model", f"`{model.path}`"
    if model.lora:
        targets = model.lora.target_modules
        layers = targets if isinstance(targets, str) else ", ".join(targets)
        yield "LoRA", f"rank {model.lora.rank}, alpha {model.lora.alpha:g}, {layers}"
    options = [f"{name}={value}" for name, value in config.objective.options.items()]
    options += [f"{name}={values} by iteration" for name, values in config.objective.by_iteration.items()]
    yield "objective", ", ".join([f"`{config.objective.name}`", *options])
    if has_order:
        yield "order α", f"`{alpha.schedule}`, gap by `{alpha.gap}`"
    if config.data.sort_digits:
        digits = config.data.sort_digits
        yield "data", f"made task: sort {digits.min_digits} to {digits.max_digits} digits"
    else:
        yield "data", f"`{config.data.path}`"
    if data:
        yield "rows", f"{data.train} to train on, {data.holdout} held out"
    drawn = schedule.prompts_per_iteration
    prompts = f", {drawn} prompts each" if drawn else ""
    yield "iterations", f"{schedule.iterations} planned{prompts}, epochs: {schedule.epochs}"
    generation = config.generation
    sampling = [f"temperature {generation.temperature:g}", f"top-p {generation.top_p:g}"]
    sampling += [f"top-k {generation.top_k}"] if generation.top_k > 0 else []
    sampling += [f"min-p {generation.min_p:g}"] if generation.min_p else []
    yield "sampling", ", ".join(sampling)
    betas = "betas {:g} and {:g}, ".format(*learner.adam_betas) if learner.optimizer == "adamw" else ""
    clip = f"gradients clipped at {learner.max_grad_norm:g}"
    yield "optimiser", f"{learner.optimizer}, {betas}weight decay {learner.weight_decay:g}, {clip}"
    several = learner.learning_rate if isinstance(learner.learning_rate, list) else [learner.learning_rate]
    rates = ", ".join(f"{rate:g}" for rate in several)
    yield "learning rate", f"{rates}, {learner.lr_schedule}, warm-up {learner.lr_warmup_ratio:.0%}"
    yield "batch", f"{learner.batch_size} pairs"
    yield "precision", f"{model.dtype}, optimiser in float32"
    yield "seed", str(config.run.seed)


def _versions() -> tuple[str, str]:
    return "versions", ", ".join(f"{package} {version}" for package, version in versions().items())


def _history(history: Mapping[str, Any], has_order: bool) -> Iterable[tuple[str, ...]]:
    yield "iteration", *(["α"] if has_order else []), "gap", "exact match", "pairs"
    baseline = history.get("baseline", {}).get("exact_match")
    yield "start", *([""] if has_order else []), "", share(baseline), ""
    for entry in history.get("iterations", []):
        order = [f"{entry['alpha']:.3f}"] if has_order else []
        exact_match, pairs = share(entry["exact_match"]), str(entry["pairs"])
        yield str(entry["iteration"]), *order, f"{entry['gap']:.4f}", exact_match, pairs


def _table(rows: Iterable[tuple[str, ...]]) -> str:
    first, *others = ([cell.replace("|", "\\|") for cell in row] for row in rows)
    return "\n".join(f"| {' | '.join(row)} |" for row in (first, ["---"] * len(first), *others))


def _hub_name(path: str | None) -> str | None:
    """`path`, if it is a name on the hub: the hub's metadata knows no folders of ours."""
    if path is None or Path(path).suffix in FILES or Path(path).expanduser().exists():
        return None
    try:
        validate_repo_id(path)
    except HFValidationError:
        return None
    return path
