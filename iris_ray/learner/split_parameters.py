"""Parameters that are split over the ranks (ZeRO-3) before anything computes with them."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import deepspeed
import torch
import torch.distributed as dist
from deepspeed.runtime.zero.partition_parameters import ZeroParamStatus, is_zero_param
from torch import nn
from transformers import PreTrainedModel

from iris_ray.precision import cast_parameters


def split_parameters(model: nn.Module, dtype: str, engine_config: dict[str, Any]) -> None:
    """Cast the parameters of `model` to `dtype` and split them as the engine of `engine_config` would.

    Collective; what counts, and is looked at, are rank 0's values. One parameter at a time is whole on the
    device. As `transformers` maps the files of a checkpoint, no rank needs memory of its own for all of them
    either.
    """
    split: Any = None
    for parameter in model.parameters():
        alone = nn.ParameterList([parameter])
        if dist.get_rank() == 0:
            cast_parameters(alone, dtype)
        else:
            parameter.data = torch.empty(parameter.shape, dtype=getattr(torch, dtype))
        if split is None:
            deepspeed.zero.Init(module=alone, config_dict_or_path=engine_config)
            split = parameter
        else:
            split.convert_to_zero_parameters(param_list=[parameter])


def split_alike(parameter: Any, split: Any) -> None:
    """Split `parameter` as `split` is, and give it the same values."""
    parameter.data = torch.empty(split.ds_shape, dtype=split.dtype, device=split.device)
    split.convert_to_zero_parameters(param_list=[parameter])
    parameter.ds_tensor.copy_(split.ds_tensor)


def are_held(parameters: Iterable[torch.Tensor]) -> bool:
    """Whether an engine holds some of these split parameters whole, or is about to."""
    statuses = {getattr(parameter, "ds_status", None) for parameter in parameters}
    return not statuses <= {None, ZeroParamStatus.NOT_AVAILABLE}


def whole_shape(parameter: torch.Tensor) -> torch.Size:
    """The shape of a parameter that may be split."""
    shape: torch.Size = getattr(parameter, "ds_shape", parameter.shape)
    return shape


@contextmanager
def whole_by_layer(model: PreTrainedModel) -> Iterator[None]:
    """Meanwhile each layer of `model` has its parameters whole while it computes, on every rank.

    The engine does so too, ahead of time; this is for what is computed before there is one.
    """
    handles = []
    for module, split in _layers(model, set(model._no_split_modules or ())):

        def gather(*_: Any, split: list[Any] = split) -> None:
            split[0].all_gather(param_list=split)

        def release(*_: Any, split: list[Any] = split) -> None:
            split[0].partition(param_list=split)

        handles.append(module.register_forward_pre_hook(gather))
        handles.append(module.register_forward_hook(release, always_call=True))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _layers(module: nn.Module, blocks: set[str]) -> Iterator[tuple[nn.Module, list[Any]]]:
    """Repeated blocks with all their split parameters, and modules outside of them with their own."""
    block = type(module).__name__ in blocks
    split = [parameter for parameter in module.parameters(recurse=block) if is_zero_param(parameter)]
    if split:
        yield module, split
    if not block:
        for child in module.children():
            yield from _layers(child, blocks)
