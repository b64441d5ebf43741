"""A checkpoint as a model in Hugging Face format."""

import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast

import torch
from peft import LoraConfig, PeftModel
from pyarrow import fs
from safetensors import SafetensorError, safe_open
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from iris_ray.checkpoints import (
    MASTER,
    SCORER,
    STATE,
    TRAINING_STATE,
    CheckpointStorage,
    StoredCheckpoint,
    read_state,
    storage_errors,
)
from iris_ray.config import RunConfig
from iris_ray.data.prepare import REPORT, load_report
from iris_ray.errors import CheckpointError, ConfigError, ModelError, RunFolderError, first_line
from iris_ray.lora import POLICY, adapter_tensors, add_adapter, merged_state_dict, write_adapter
from iris_ray.model_card import write_model_card
from iris_ray.precision import cast_parameters
from iris_ray.run_folder import RunFolder

# Makes a file of the checkpoint local while it is entered.
Fetch = Callable[[str], AbstractContextManager[Path]]


def export_checkpoint(
    run: Path, checkpoint: int | None = None, out: Path | None = None, *, adapter: bool = False
) -> Path:
    """Make a Hugging Face model of a checkpoint of the run in folder `run`; returns its folder.

    `checkpoint` is an iteration, and its newest checkpoint is taken; by default the newest of all. The
    weights are those that the learner had, in the run's `model.dtype`. A LoRA adapter is merged into the
    model, or with `adapter` exported alone, as PEFT saves one. `out` must not exist or be empty; by default
    it is `exports/<name of the checkpoint>` in the run folder. Needs neither Ray nor DeepSpeed.

    Raises `RunFolderError` if there is no run or `out` is taken, `CheckpointError` if there is no such
    checkpoint or it cannot be read, `ModelError` if the model that the run started from is gone.
    """
    folder = RunFolder.existing(run)
    config = folder.read_config()
    if adapter and config.model.lora is None:
        raise ConfigError("--adapter: the run trained all weights (model.lora is not set). Leave it out.")
    with storage_errors(config):
        storage = CheckpointStorage(config)
        found = storage.find(checkpoint)
    out = out or folder.path / "exports" / (f"{found.name}-adapter" if adapter else found.name)
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise RunFolderError(f"{out} exists and is not an empty folder. Remove it, or set --out.")
    with _folder_beside(out) as scratch:
        fetch = partial(_local, storage.filesystem, found, scratch)
        model, tokenizer = _start(folder, config)
        lora = config.model.lora
        adapted = add_adapter(model, lora, config.run.seed) if lora else None  # changes `model` itself
        state = _restore(model, fetch, found)
        part = scratch / "model"
        _save(model, adapted, part, adapter)
        tokenizer.save_pretrained(part)
        history = _history(folder, state)
        report = load_report(folder.data) if (folder.data / REPORT).exists() else None
        write_model_card(part, config, history, report, checkpoint=found.name, adapter=adapter)
        part.rename(out)  # under its name only when it is whole
    return out


def _start(folder: RunFolder, config: RunConfig) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The model that the run started from, and its tokenizer."""
    path, trust = config.model.path or str(folder.start), config.model.trust_remote_code
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=trust)
        model = AutoModelForCausalLM.from_pretrained(path, trust_remote_code=trust)
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(
            f"{path}: the model that the run started from cannot be loaded. Put it back there. "
            f"The reason given: {first_line(error)}"
        ) from error
    cast_parameters(model, config.model.dtype)
    return model, tokenizer


def _restore(model: nn.Module, fetch: Fetch, found: StoredCheckpoint) -> dict[str, Any]:
    """Set the checkpoint's weights in `model`; returns the checkpoint's state."""
    try:
        with fetch(STATE) as path:
            state = read_state(path.parent)
        files = sorted(name for name in state["files"] if name.startswith(TRAINING_STATE))
        _set_weights(model, _masters(files, fetch), found)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{found.path} cannot be read: {error}. Export another checkpoint.") from error
    return state


def _masters(files: list[str], fetch: Fetch) -> Iterator[tuple[str, torch.Tensor]]:
    """The trained parameters in float32, under their names in the model."""
    for each in files:
        with fetch(each) as path, safe_open(path, "pt") as file:
            for key in file.keys():  # noqa: SIM118, it is no dictionary
                name, kind = key.rsplit("/", 1)
                if kind == MASTER:
                    yield name.removeprefix(SCORER), file.get_tensor(key)


@torch.no_grad()
def _set_weights(
    model: nn.Module, masters: Iterable[tuple[str, torch.Tensor]], found: StoredCheckpoint
) -> None:
    missing = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    for name, master in masters:
        weight = missing.pop(name, None)
        if weight is None or weight.shape != master.shape:
            here = "there is none" if weight is None else f"it is {tuple(weight.shape)}"
            raise CheckpointError(
                f"{found.path}: {name} was saved as {tuple(master.shape)}, but in the model that the run "
                f"started from {here}. Put the model back as it was."
            )
        weight.copy_(master)  # rounds as the learner does
    if missing:
        raise CheckpointError(
            f"{found.path}: {next(iter(missing))} was not saved. Export another checkpoint."
        )


def _save(model: PreTrainedModel, adapted: PeftModel | None, folder: Path, adapter: bool) -> None:
    if adapted is None:
        model.save_pretrained(folder)
    elif adapter:
        config = replace(cast(LoraConfig, adapted.peft_config[POLICY]), inference_mode=True)
        write_adapter(folder, config, adapter_tensors(adapted))
    else:
        model.save_pretrained(folder, state_dict=merged_state_dict(adapted))


def _history(folder: RunFolder, state: dict[str, Any]) -> dict[str, Any]:
    """The records in the checkpoint, and what its own model scored, which was known only later."""
    records = state["controller"]["records"]
    if state["between"] and folder.metrics.exists():
        last = records["iterations"][-1]
        for line in folder.metrics.read_text().split("\n")[:-1]:  # the run may be writing the next one
            event = json.loads(line)
            if event["event"] == "iteration" and event["iteration"] == last["iteration"]:
                last["exact_match"] = event["exact_match"]
    return records


@contextmanager
def _folder_beside(out: Path) -> Iterator[Path]:
    """A temporary folder from which a rename to `out` takes no copying."""
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        scratch = TemporaryDirectory(dir=out.parent, prefix=f".{out.name}-")
    except OSError as error:
        raise RunFolderError(f"{out.parent} cannot be written to: {error}. Set another --out.") from error
    with scratch as name:
        yield Path(name)


@contextmanager
def _local(filesystem: fs.FileSystem, found: StoredCheckpoint, scratch: Path, name: str) -> Iterator[Path]:
    """A file of the checkpoint on this machine: itself, or a copy that is gone afterwards."""
    path = f"{found.path}/{name}"
    if isinstance(filesystem, fs.LocalFileSystem):
        yield Path(path)
        return
    copy = scratch / name
    fs.copy_files(path, str(copy), source_filesystem=filesystem, destination_filesystem=fs.LocalFileSystem())
    yield copy
    copy.unlink()
