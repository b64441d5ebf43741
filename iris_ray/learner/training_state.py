"""What DeepSpeed trains, on disk: master weights and optimiser state, whatever the ZeRO stage and the ranks.

All tensors are whole and in float32: `NAME/master`, `NAME/step` and one `NAME/KEY` per tensor of the
optimiser's state (`exp_avg`, ...). They lie in `training-state-NNNNN.safetensors`; the ranks take turns in
writing these files.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import deepspeed
import torch
import torch.distributed as dist
from deepspeed.runtime.bf16_optimizer import BF16_Optimizer
from deepspeed.runtime.fp16.unfused_optimizer import FP16_UnfusedOptimizer
from deepspeed.runtime.zero.stage3 import DeepSpeedZeroOptimizer_Stage3
from deepspeed.runtime.zero.stage_1_and_2 import DeepSpeedZeroOptimizer
from deepspeed.utils import (
    safe_get_full_fp32_param,
    safe_get_full_optimizer_state,
    safe_get_local_fp32_param,
    safe_set_full_fp32_param,
    safe_set_full_optimizer_state,
    safe_set_local_fp32_param,
    safe_set_local_optimizer_state,
)
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from iris_ray.checkpoints import MASTER, TRAINING_STATE
from iris_ray.errors import CheckpointError
from iris_ray.learner.split_parameters import whole_shape

FORMAT = "iris-ray training state 2"
STEP = "step"
# A rank holds the tensors of one file in memory. Where the optimiser is offloaded, all of them at once
# would take its memory a second time.
FILE_BYTES = 2 << 30


@torch.no_grad()
def save_training_state(engine: deepspeed.DeepSpeedEngine, folder: Path) -> None:
    """Write the training state into `folder`, which is made; the engine stays as it is.

    Collective, and over on all ranks once it returns. Beside the engine's own memory every rank holds one
    whole tensor, and `FILE_BYTES` on the CPU or one larger tensor. Raises `CheckpointError` on every rank if
    one of them cannot write, or if this kind of engine cannot be saved.
    """
    rank, ranks = dist.get_rank(), dist.get_world_size()
    files = _split(_trained(engine))
    metadata = {"format": FORMAT, "files": str(len(files))}
    failure = None
    for first in range(0, len(files), ranks):  # a file per rank at a time
        mine = {}
        for number, entries in enumerate(files[first : first + ranks]):
            for each, key in entries:
                tensor = each.read(key)
                if number == rank and failure is None:
                    mine[f"{each.name}/{key}"] = tensor.float().cpu().contiguous()
        path = _file(folder, first + rank)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if mine:
                save_file(mine, path, metadata)
        except (OSError, SafetensorError) as error:  # raised later: the other ranks wait in collectives
            failure = f"{path} cannot be written: {error}. Make room there, or choose another folder."
    _raise_on_all_ranks(failure)


@torch.no_grad()
def load_training_state(engine: deepspeed.DeepSpeedEngine, folder: Path) -> None:
    """Set what `save_training_state` wrote into `folder`: masters, the model's weights, moments and steps.

    Collective; every rank must see the whole folder. The number of ranks, the ZeRO stage and the model's
    dtype may differ from those that saved. Learning rates and other settings of the optimiser stay as they
    are. Raises `CheckpointError` on every rank, before anything is altered, if a file is missing or broken,
    or if model or optimiser are not those that were saved.
    """
    trained = _trained(engine)
    saved: dict[str, Any] = {}
    failure = None
    try:
        saved = _open(folder)
        _check(trained, saved, folder)
    except CheckpointError as error:
        failure = str(error)
    _raise_on_all_ranks(failure)
    for each in trained:
        _set_step(each.state, 0)
    for each in trained:
        for key in each.keys:
            name = f"{each.name}/{key}"
            each.write(key, saved[name].get_tensor(name))
    _publish(engine.optimizer, trained)


@dataclass(frozen=True)
class _Trained:
    """One trained parameter.

    `master` is what the torch optimiser updates on this rank and `state` its state: the parameter's own, or
    those of a flat tensor that holds this rank's parts of several parameters.
    """

    name: str
    parameter: nn.Parameter
    master: torch.Tensor
    state: dict[str, Any]

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(whole_shape(self.parameter))

    @property
    def keys(self) -> list[str]:
        """What there is to save, in the same order on every rank."""
        moments = sorted(key for key, value in self.state.items() if torch.is_tensor(value) and key != STEP)
        return [MASTER, STEP, *moments]

    def shape_of(self, key: str) -> tuple[int, ...]:
        return () if key == STEP else self.shape

    def read(self, key: str) -> torch.Tensor:
        """The whole tensor; collective."""
        if key == STEP:
            return torch.tensor(float(self.state[STEP]))
        if not self._partitioned:
            tensor = self.master if key == MASTER else self.state[key]
        elif key == MASTER:
            tensor = safe_get_full_fp32_param(self.parameter)
        else:
            tensor = safe_get_full_optimizer_state(self.parameter, key)
        return tensor.detach()

    def write(self, key: str, value: torch.Tensor) -> None:
        """Set this rank's part of the whole tensor."""
        if key == STEP:
            # The parameters of one flat tensor share their step; without ZeRO, one that never had a
            # gradient lags behind the others.
            _set_step(self.state, max(float(self.state[STEP]), value.item()))
        elif not self._partitioned:
            (self.master if key == MASTER else self.state[key]).copy_(value)
        elif hasattr(self.parameter, "ds_id"):
            part = self._part(value)
            if key == MASTER:
                safe_set_local_fp32_param(self.parameter, part)
            else:
                safe_set_local_optimizer_state(self.parameter, part, key)
        elif key == MASTER:
            safe_set_full_fp32_param(self.parameter, value)
        else:
            safe_set_full_optimizer_state(self.parameter, value, key)

    @property
    def _partitioned(self) -> bool:
        return hasattr(self.parameter, "ds_id") or hasattr(self.parameter, "_hp_mapping")

    def _part(self, value: torch.Tensor) -> torch.Tensor:
        """This rank's part under ZeRO-3; DeepSpeed's own setter fails where the last part needs padding."""
        parameter: Any = self.parameter
        size = parameter.ds_tensor.numel()
        start = size * dist.get_rank(parameter.ds_process_group)
        values = value.flatten()[start : start + size]
        return torch.cat([values, values.new_zeros(size - len(values))])


def _trained(engine: deepspeed.DeepSpeedEngine) -> list[_Trained]:
    """The trained parameters in the module's order, their optimiser state made where there is none yet."""
    optimizer = engine.optimizer
    inner = getattr(optimizer, "optimizer", optimizer)
    masters = {}
    for parameter, master, group in _masters(optimizer):
        masters[parameter] = master
        if not inner.state[master]:
            _create_state(inner, master, inner.param_groups[group])
        if STEP not in inner.state[master]:
            raise CheckpointError(
                f"{type(inner).__name__} keeps no number of steps beside its moments. Use an optimiser of "
                "torch.optim that does, such as AdamW or RMSprop."
            )
    if isinstance(optimizer, (DeepSpeedZeroOptimizer, BF16_Optimizer)):
        # Lets the parameters find their part of the state. DeepSpeed does it once, when the first of several
        # groups has taken its first step, and so too early for the others.
        optimizer._hp_optimizer_states_linked = False
        optimizer._lazy_init_hp_params_optimizer_state()
    return [
        _Trained(name, parameter, masters[parameter], inner.state[masters[parameter]])
        for name, parameter in engine.module.named_parameters()
        if parameter in masters
    ]


def _masters(optimizer: Any) -> Iterator[tuple[nn.Parameter, torch.Tensor, int]]:
    """Each trained parameter, what the torch optimiser updates for it, and the index of its group there."""
    masters: list[list[torch.Tensor]] | None = None  # None: one flat tensor stands for all of a group
    if isinstance(optimizer, DeepSpeedZeroOptimizer_Stage3):
        parameters, flat = optimizer.fp16_groups, optimizer.fp32_partitioned_groups_flat
    elif isinstance(optimizer, BF16_Optimizer):
        parameters, flat = optimizer.bf16_groups, optimizer.fp32_groups_flat_partition
    elif isinstance(optimizer, DeepSpeedZeroOptimizer):
        parameters, flat = optimizer.bit16_groups, optimizer.single_partition_of_fp32_groups
    elif isinstance(optimizer, FP16_UnfusedOptimizer):
        parameters, masters = optimizer.fp16_groups, optimizer.fp32_groups
    elif isinstance(optimizer, torch.optim.Optimizer):
        groups = [group["params"] for group in optimizer.param_groups]
        parameters = masters = [[each for each in group if each.requires_grad] for group in groups]
    else:
        raise CheckpointError(
            f"The state of DeepSpeed's {type(optimizer).__name__} cannot be saved or loaded. "
            "Use another ZeRO stage, or an optimiser of torch.optim."
        )
    if masters is None:
        masters = [[one] * len(group) for group, one in zip(parameters, flat, strict=True)]
    group_of = getattr(optimizer, "sub_group_to_group_id", {})  # ZeRO-3 splits the groups
    for index, (members, tensors) in enumerate(zip(parameters, masters, strict=True)):
        for parameter, master in zip(members, tensors, strict=True):
            yield parameter, master, group_of.get(index, index)


def _create_state(optimizer: torch.optim.Optimizer, master: torch.Tensor, group: dict[str, Any]) -> None:
    """Let the optimiser make the state of `master` as before its first step.

    Only a step makes it: this one goes nowhere, as gradient, learning rate and weight decay are zero.
    """
    groups, gradient = optimizer.param_groups, master.grad
    optimizer.param_groups = [group | {"params": [master], "lr": 0.0, "weight_decay": 0.0}]
    master.grad = torch.zeros_like(master)
    try:
        type(optimizer).step(optimizer)  # not the instance's, which learner and scheduler may have wrapped
    finally:
        optimizer.param_groups, master.grad = groups, gradient
    if STEP in optimizer.state[master]:
        _set_step(optimizer.state[master], 0)


def _set_step(state: dict[str, Any], step: float) -> None:
    if torch.is_tensor(state[STEP]):
        state[STEP].fill_(step)
    else:
        state[STEP] = int(step)


def _publish(optimizer: Any, trained: list[_Trained]) -> None:
    """The model's own weights become the masters, rounded."""
    if isinstance(optimizer, DeepSpeedZeroOptimizer_Stage3):
        # As DeepSpeed does when it loads: small parameters, which stay gathered, are gathered anew.
        optimizer.checkpoint_event_prologue()
        for each in trained:
            parameter: Any = each.parameter
            parameter.ds_tensor.copy_(safe_get_local_fp32_param(parameter))
        optimizer.checkpoint_event_epilogue()
    elif isinstance(optimizer, (DeepSpeedZeroOptimizer, BF16_Optimizer)):
        optimizer.update_lp_params()
    else:
        for each in trained:
            each.parameter.copy_(each.master)


def _split(trained: list[_Trained]) -> list[list[tuple[_Trained, str]]]:
    """What each file holds: as many tensors as fit, or a single larger one."""
    files: list[list[tuple[_Trained, str]]] = []
    free = 0
    for each in trained:
        for key in each.keys:
            size = 4 * math.prod(each.shape_of(key))
            if not files or size > free:
                files.append([])
                free = FILE_BYTES
            files[-1].append((each, key))
            free -= size
    return files


def _open(folder: Path) -> dict[str, Any]:
    """The open file that holds each saved tensor."""
    files = [_open_file(folder, 0)]
    count = files[0].metadata()["files"]
    files += [_open_file(folder, number) for number in range(1, int(count))]
    for number, file in enumerate(files):
        if (found := file.metadata()["files"]) != count:
            raise CheckpointError(
                f"{_file(folder, number)} was saved as one of {found} files, but {_file(folder, 0)} as "
                f"one of {count}. Resume from another checkpoint."
            )
    return {name: file for file in files for name in file.keys()}  # noqa: SIM118, it is no dictionary


def _open_file(folder: Path, number: int) -> Any:
    path = _file(folder, number)
    try:
        file = safe_open(path, "pt")
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}. Resume from another checkpoint.") from error
    if (file.metadata() or {}).get("format") != FORMAT:
        raise CheckpointError(f"{path} is no '{FORMAT}'. Resume from another checkpoint.")
    return file


def _check(trained: list[_Trained], saved: dict[str, Any], folder: Path) -> None:
    """Raise `CheckpointError` unless the saved tensors are those that `trained` needs."""
    keys: dict[str, set[str]] = {}
    for entry in saved:
        name, key = entry.rsplit("/", 1)
        keys.setdefault(name, set()).add(key)
    same = f"Resume with the model and the trained parameters of the run that wrote {folder}."
    if extra := sorted(keys.keys() - {each.name for each in trained}):
        raise CheckpointError(f"'{extra[0]}' was trained and saved, but is not trained here. {same}")
    for each in trained:
        if each.name not in keys:
            raise CheckpointError(f"'{each.name}' is trained here, but was not saved. {same}")
        if keys[each.name] != set(each.keys):
            found, needed = (
                ", ".join(sorted(names - {MASTER})) for names in (keys[each.name], set(each.keys))
            )
            raise CheckpointError(
                f"The optimiser's state of '{each.name}' was saved as {found}, but this optimiser has "
                f"{needed}. Resume with the optimiser of the run that wrote {folder}."
            )
        master = f"{each.name}/{MASTER}"
        shape = tuple(saved[master].get_slice(master).get_shape())
        if shape != each.shape:
            raise CheckpointError(f"'{each.name}' was saved as {shape}, but is {each.shape} here. {same}")


def _raise_on_all_ranks(failure: str | None) -> None:
    """Raise the first rank's failure everywhere, so that none waits for the others; also a barrier."""
    failures: list[str | None] = [None] * dist.get_world_size()
    dist.all_gather_object(failures, failure)
    if first := next(filter(None, failures), None):
        raise CheckpointError(first)


def _file(folder: Path, number: int) -> Path:
    return folder / f"{TRAINING_STATE}{number:05d}.safetensors"
