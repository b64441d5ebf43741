"""Attention over a row in which responses share their prompt: row_attention.cpp for autograd and compilers.

Shapes: T tokens of the row, N segments, H heads of queries, K heads of keys and values, D size of a head of
queries and keys, E size of one of values.
"""

import ctypes
from typing import Any

import torch

from iris_ray.learner.kernels.library import load_kernels


@torch.library.custom_op("iris_ray::row_attention", mutates_args=(), device_types="cpu")
def row_attention(
    query_THD: torch.Tensor,
    key_TKD: torch.Tensor,
    value_TKE: torch.Tensor,
    segments_N4: torch.Tensor,
    scaling: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Each token's attention to its segment's prefix and to its own segment up to itself.

    `segments_N4` (int64) has begin and end of each segment's tokens and of its prefix's. A segment without a
    prefix comes before those that have it as theirs; each token is in one segment. H is a multiple of K.
    Takes bfloat16, float32 and float64. Returns (T, H, E), and log Σ exp of the scores that a token sees,
    (T, H).
    """
    tensors = [_dense(tensor) for tensor in (query_THD, key_TKD, value_TKE)]
    out_THE, logsums_TH = _like(query_THD, value_TKE)
    _call("forward", [*tensors, out_THE, logsums_TH], segments_N4, scaling)
    return out_THE, logsums_TH


@torch.library.custom_op("iris_ray::row_attention_backward", mutates_args=(), device_types="cpu")
def row_attention_backward(
    query_THD: torch.Tensor,
    key_TKD: torch.Tensor,
    value_TKE: torch.Tensor,
    out_THE: torch.Tensor,
    logsums_TH: torch.Tensor,
    grad_THE: torch.Tensor,
    segments_N4: torch.Tensor,
    scaling: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gradients of queries, keys and values from that of `row_attention`'s first result."""
    given = [query_THD, key_TKD, value_TKE]
    grads = _empty(*given)
    tensors = [_dense(tensor) for tensor in (*given, out_THE, logsums_TH, grad_THE)]
    _call("backward", [*tensors, *grads], segments_N4, scaling)
    return grads


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[torch.Tensor, torch.Tensor]) -> None:
    query, key, value, segments, ctx.scaling = inputs
    ctx.save_for_backward(query, key, value, *output, segments)
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, grad: torch.Tensor, _: None) -> tuple[torch.Tensor | None, ...]:
    *saved, segments = ctx.saved_tensors
    return *row_attention_backward(*saved, grad, segments, ctx.scaling), None, None


row_attention.register_autograd(_backward, setup_context=_setup)
row_attention.register_fake(lambda query, key, value, segments, scaling: _like(query, value))
row_attention_backward.register_fake(lambda query, key, value, *others: _empty(query, key, value))


def _like(query_THD: torch.Tensor, value_TKE: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    tokens, heads, _ = query_THD.shape
    wide = torch.promote_types(query_THD.dtype, torch.float32)
    return (
        value_TKE.new_empty(tokens, heads, value_TKE.shape[-1]),
        query_THD.new_empty(tokens, heads, dtype=wide),
    )


def _empty(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return query.new_empty(query.shape), key.new_empty(key.shape), value.new_empty(value.shape)


def _dense(tensor: torch.Tensor) -> torch.Tensor:
    """With the numbers of a head side by side."""
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()


def _call(name: str, tensors: list[torch.Tensor], segments_N4: torch.Tensor, scaling: float) -> None:
    (_, heads, size), (_, kv_heads, _), (_, _, value_size) = (tensor.shape for tensor in tensors[:3])
    strides = [stride for tensor in tensors for stride in tensor.stride()[:2]]
    segments_N4 = segments_N4.contiguous()
    getattr(load_kernels(), f"iris_row_attention_{name}")(
        ctypes.c_int(tensors[0].element_size()),
        (ctypes.c_void_p * len(tensors))(*(tensor.data_ptr() for tensor in tensors)),
        (ctypes.c_int64 * len(strides))(*strides),
        ctypes.c_void_p(segments_N4.data_ptr()),
        *map(ctypes.c_int64, (len(segments_N4), heads, kv_heads, size, value_size)),
        ctypes.c_double(scaling),
        ctypes.c_int64(torch.get_num_threads()),
    )
