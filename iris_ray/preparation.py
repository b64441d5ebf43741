"""What is done before the first actor starts: data, tokenizer, model, and every check they allow."""

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from datasets import Dataset
from huggingface_hub import HfApi, constants
from transformers import AutoTokenizer, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from iris_ray.checkpoints import CheckpointStorage, storage_errors
from iris_ray.config import RunConfig
from iris_ray.data.prepare import REPORT, PreparedData, load_prepared, prepare_data
from iris_ray.data.rows import Rows, read_rows
from iris_ray.data.sources import HUB_TIMEOUT_S
from iris_ray.data.splits import demonstration
from iris_ray.errors import ConfigError, ModelError, RunFolderError, first_line
from iris_ray.evaluation import SCORERS, check_pattern
from iris_ray.game import Game
from iris_ray.harness.evaluate import check_installed, task_manager, task_of
from iris_ray.lora import meta_model, target_modules
from iris_ray.plugins import configured_objective
from iris_ray.run_folder import RunFolder
from iris_ray.scratch.model import MadeModel, build_model
from iris_ray.scratch.sort_digits import make_rows
from iris_ray.scratch.tokenizer import train_tokenizer
from iris_ray.scratch.warmup import Progress, WarmupResult, warm_up
from iris_ray.tracking import check_trackers


@dataclass(frozen=True)
class Prepared:
    """Tokenised data on disk, and the model: `parameters` counts tied ones once."""

    tokenizer: PreTrainedTokenizerBase
    parameters: int
    data: PreparedData

    @property
    def end_token_id(self) -> int:
        return self.tokenizer.eos_token_id


def check_names(config: RunConfig) -> None:
    """Raise `ConfigError` for what a schema cannot see: plug-ins, names in registries, packages, patterns."""
    objective = configured_objective(config)
    for iteration in range(2, config.schedule.iterations + 1):
        configured_objective(config, iteration)
    if config.learner.reference == "generator" and "initial" in objective.responses:
        raise ConfigError(
            f"learner.reference: 'generator' does not fit objective.name={objective.name}, which looks at "
            "the first model's responses: generators score only those of their own pairs. Set it to learner."
        )
    if config.evaluation.tasks:
        check_installed()
        task_manager([task_of(text) for text in config.evaluation.tasks], config.evaluation.tasks_folder)
    if config.data.inbox and config.data.inbox.exists() and not config.data.inbox.is_dir():
        raise ConfigError(f"data.inbox={config.data.inbox}: is a file. Name a folder; it is made if need be.")
    if config.data.inbox and "initial" in objective.responses:
        raise ConfigError(
            f"data.inbox: does not fit objective.name={objective.name}, which looks at the first model's "
            "responses: there are none to prompts that come later. Leave it empty."
        )
    Game(config)
    check_pattern(config.evaluation.answer_pattern)
    if config.evaluation.scorer is not None:
        SCORERS[config.evaluation.scorer]  # raises if there is none
    check_trackers(config)


def check_free(config: RunConfig) -> None:
    """Raise `RunFolderError` if something of a run of this name is there, in its folder or its storage.

    `ConfigError` if the storage does not answer.
    """
    RunFolder.free(config)
    with storage_errors(config):
        found = CheckpointStorage(config).newest()
    if found:
        raise RunFolderError(
            f"run.name={config.run.name}: checkpoint.storage holds checkpoints of a run of this name, such "
            f"as {found.path}. Choose another run.name, or remove them."
        )


def prepare(config: RunConfig, folder: RunFolder) -> Prepared:
    """Read and tokenise the data into the run folder.

    Raises `DataError` or `ModelError`, and `ConfigError` for stop texts that do not fit the tokenizer.
    """
    if config.model.scratch:
        rows = _rows(config)
        tokenizer: PreTrainedTokenizerBase
        texts = (message["content"] for row in rows for message in row.messages)
        tokenizer = train_tokenizer(texts, config.model.scratch.vocab_size, config.model.architecture)
        parameters = _count_made_parameters(config, tokenizer)
    else:
        parameters = count_parameters(config)
        tokenizer = load_tokenizer(config)
        rows = _rows(config)
    data = prepare_data(rows, tokenizer, config, folder.data)
    tokenizer.save_pretrained(folder.tokenizer)
    return Prepared(tokenizer, parameters, data)


def reopen(config: RunConfig, folder: RunFolder) -> Prepared:
    """What `prepare` left in the folder of a run that is gone on with; the source is not read again.

    Raises `RunFolderError` if it did not get that far, `ModelError` if the model is gone.
    """
    if not (folder.data / REPORT).exists():
        raise RunFolderError(
            f"{folder.path}: the run ended before its data were prepared, so there is nothing to resume. "
            "Remove the folder and start the run again."
        )
    data = load_prepared(folder.data)
    if config.model.scratch is None:
        return Prepared(load_tokenizer(config), count_parameters(config), data)
    tokenizer = AutoTokenizer.from_pretrained(folder.tokenizer)
    return Prepared(tokenizer, _count_made_parameters(config, tokenizer), data)


def _count_made_parameters(config: RunConfig, tokenizer: PreTrainedTokenizerBase) -> int:
    with torch.device("meta"):
        model = _build(config, tokenizer)
    return _counted(model, config)


def _build(config: RunConfig, tokenizer: PreTrainedTokenizerBase) -> MadeModel:
    assert config.model.scratch is not None
    return build_model(
        config.model.scratch, tokenizer, config.window, config.run.seed, config.model.architecture
    )


def _rows(config: RunConfig) -> Rows:
    data = config.data
    if data.sort_digits is None:
        return read_rows(data)
    made = Dataset.from_list(make_rows(data.sort_digits, data.holdout, config.run.seed))
    return Rows(made.rename_columns({"prompt": data.prompt_column, "response": data.response_column}), data)


def make_model(config: RunConfig, folder: RunFolder, prepared: Prepared, progress: Progress) -> WarmupResult:
    """Build the model of `model.scratch`, warm it by SFT and save it as the run's start model."""
    spec = config.model.scratch
    assert spec is not None
    tokenizer, seed = prepared.tokenizer, config.run.seed
    # Models this small gain little from a second thread, and lose much where cores are shared.
    torch.set_num_threads(1)
    model = _build(config, tokenizer)
    train, holdout = (
        list(map(demonstration, split)) for split in (prepared.data.train, prepared.data.holdout)
    )
    result = warm_up(model, train, holdout, spec, seed, prepared.end_token_id, progress)
    # Under its name only when it is whole: a run that was killed before makes it again.
    part = folder.path / "start.part"
    shutil.rmtree(part, ignore_errors=True)
    model.to(getattr(torch, config.model.dtype)).save_pretrained(part)
    tokenizer.save_pretrained(part)
    part.rename(folder.start)
    return result


def _found(config: RunConfig) -> str:
    # A mistyped folder is taken for a hub name, and loading alone would go on trying for half a minute.
    name = config.model.path
    assert name is not None
    if not Path(name).is_dir() and not constants.HF_HUB_OFFLINE:
        try:
            HfApi().model_info(name, timeout=HUB_TIMEOUT_S)
        except Exception as error:  # of the hub's client, whichever it uses
            raise _not_a_model(config, "model", error) from error
    return name


def load_tokenizer(config: RunConfig) -> PreTrainedTokenizerBase:
    """The tokenizer of `model.path`. Raises `ModelError` if there is none."""
    try:
        return AutoTokenizer.from_pretrained(
            config.model.path, trust_remote_code=config.model.trust_remote_code
        )
    except (OSError, ValueError, KeyError) as error:
        raise _not_a_model(config, "tokenizer", error) from error


def count_parameters(config: RunConfig) -> int:
    """Parameters of `model.path`, from its configuration alone; raises as `described_model`."""
    return _counted(described_model(config), config)


def described_model(config: RunConfig) -> PreTrainedModel:
    """The model of `model.path` without its weights, from its configuration alone.

    Raises `ModelError` if it is no causal language model, or its context is too short for the data limits,
    or the part of it in which one sequence does not change another's positions.
    """
    name = _found(config)
    try:
        model = meta_model(name, config.model.trust_remote_code)
    except (OSError, ValueError, KeyError) as error:
        raise _not_a_model(config, "model", error) from error
    wanted, kind = config.model.architecture, model.config.model_type
    if wanted not in (None, kind):
        raise ModelError(
            f"model.architecture={wanted} does not fit: {name} is a {kind} model. Name another one in "
            "model.path, or leave model.architecture empty."
        )
    for length, reason in _contexts(model.config.get_text_config()):
        if config.window > length:
            raise ModelError(
                f"data.max_prompt_tokens={config.data.max_prompt_tokens} and data.max_response_tokens="
                f"{config.data.max_response_tokens} need a context of {config.window} tokens, but "
                f"{config.model.path} {reason}. Lower them."
            )
    return model


def _contexts(config: PreTrainedConfig) -> Iterator[tuple[int, str]]:
    """Lengths in tokens that no sequence may exceed, and why."""
    if context := getattr(config, "max_position_embeddings", None):
        yield context, f"has {context}"
    rope = getattr(config, "rope_parameters", None) or {}
    for each in (rope, *rope.values()):  # one for all layers, or by their type
        # Its long factors come in for a whole batch of transformers by the longest sequence in it, for all
        # sequences of vLLM by the window.
        if isinstance(each, dict) and each.get("rope_type") == "longrope":
            short = each["original_max_position_embeddings"]
            yield (
                short,
                f"encodes positions in another way beyond {short} (rope_type=longrope): one longer sequence "
                "would change log p of those beside it",
            )


def _counted(model: PreTrainedModel, config: RunConfig) -> int:
    """Parameters of `model`. Raises `ConfigError` if the adapter that is asked for does not fit it."""
    if config.model.lora:
        target_modules(model, config.model.lora)
    return model.num_parameters()


def _not_a_model(config: RunConfig, what: str, error: Exception) -> ModelError:
    return ModelError(
        f"model.path={config.model.path}: no {what} can be loaded from it. Give a folder in "
        "Hugging Face format (config.json, safetensors, tokenizer) or a hub name, or use model.scratch. "
        f"The reason given: {first_line(error)}"
    )
