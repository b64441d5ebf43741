"""vLLM's linear layers on a CPU without products of bfloat16: they multiply in float32."""

from types import SimpleNamespace
from typing import Any

import torch
from torch import nn
from vllm.model_executor.layers import utils

from iris_ray.precision import cpu_multiplies

_dispatch = utils.dispatch_cpu_unquantized_gemm


def widen_layers() -> None:
    """Have vLLM pack a float32 copy of what the CPU does not multiply. Calling it again changes nothing."""
    utils.dispatch_cpu_unquantized_gemm = dispatch


def dispatch(layer: Any, remove_weight: bool) -> None:
    """Give `layer` its product, `cpu_linear`: (x, weight, bias) -> x · weight + bias, rounded once.

    As vLLM's own function of this purpose, which does it for all weights that the CPU multiplies as they are.
    """
    weight: torch.Tensor = layer.weight
    if weight.is_meta or weight.ndim != 2 or cpu_multiplies(weight.dtype):
        _dispatch(layer, remove_weight)
        return
    wide: Any = SimpleNamespace(weight=weight.float())
    _dispatch(wide, remove_weight=True)  # unless vLLM does not pack it

    def multiply(x: torch.Tensor, _: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        wide_bias = None if bias is None else bias.float()
        out: torch.Tensor = wide.cpu_linear(x.float(), wide.weight, wide_bias)
        return out.to(x.dtype)

    layer.cpu_linear = multiply
    if remove_weight:
        layer.weight = nn.Parameter(weight.new_empty(0), requires_grad=False)
