"""Log-probs of labels: label_logprobs.cpp for autograd and compilers.

Shapes: R rows, V logits in each.
"""

import ctypes
from typing import Any

import torch

from iris_ray.learner.kernels.library import load_kernels


@torch.library.custom_op("iris_ray::label_logprobs", mutates_args=(), device_types="cpu")
def label_logprobs(
    logits_RV: torch.Tensor, labels_R: torch.Tensor, scaling: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """log softmax(`scaling` · logits) at each row's label (int64).

    Takes bfloat16, float32 and float64. Returns that, and log Σ exp(`scaling` · logits), both (R,) in
    float32, or float64 as the logits.
    """
    logprobs_R, logsums_R = _empty(logits_RV)
    _call("forward", logits_RV.contiguous(), labels_R, scaling, logprobs_R, logsums_R)
    return logprobs_R, logsums_R


@torch.library.custom_op("iris_ray::label_logprobs_backward", mutates_args=(), device_types="cpu")
def label_logprobs_backward(
    logits_RV: torch.Tensor,
    labels_R: torch.Tensor,
    scaling: float,
    logsums_R: torch.Tensor,
    grad_R: torch.Tensor,
) -> torch.Tensor:
    """Gradient of the logits from that of `label_logprobs`' first result."""
    logits_RV = logits_RV.contiguous()
    dlogits_RV = torch.empty_like(logits_RV)
    _call("backward", logits_RV, labels_R, scaling, logsums_R, grad_R.contiguous(), dlogits_RV)
    return dlogits_RV


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[torch.Tensor, torch.Tensor]) -> None:
    logits, labels, ctx.scaling = inputs
    ctx.save_for_backward(logits, labels, output[1])
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, grad: torch.Tensor, _: None) -> tuple[torch.Tensor | None, ...]:
    logits, labels, logsums = ctx.saved_tensors
    return label_logprobs_backward(logits, labels, ctx.scaling, logsums, grad), None, None


def _empty(logits_RV: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    wide = torch.promote_types(logits_RV.dtype, torch.float32)
    rows = logits_RV.shape[0]
    return logits_RV.new_empty(rows, dtype=wide), logits_RV.new_empty(rows, dtype=wide)


label_logprobs.register_autograd(_backward, setup_context=_setup)
label_logprobs.register_fake(lambda logits, labels, scaling: _empty(logits))
label_logprobs_backward.register_fake(
    lambda logits, *others: torch.empty_like(logits, memory_format=torch.contiguous_format)
)


def _call(
    name: str, logits_RV: torch.Tensor, labels_R: torch.Tensor, scaling: float, *others: torch.Tensor
) -> None:
    rows, size = logits_RV.shape
    dtype = str(logits_RV.dtype).removeprefix("torch.")
    labels_R = labels_R.contiguous()
    getattr(load_kernels(), f"iris_label_logprobs_{name}_{dtype}")(
        ctypes.c_void_p(logits_RV.data_ptr()),
        ctypes.c_void_p(labels_R.data_ptr()),
        ctypes.c_int64(rows),
        ctypes.c_int64(size),
        ctypes.c_double(scaling),
        ctypes.c_int64(torch.get_num_threads()),
        *(ctypes.c_void_p(tensor.data_ptr()) for tensor in others),
    )
