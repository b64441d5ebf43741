"""The number format of a model's weights, and of the arithmetic with them."""

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F


def cast_parameters(model: nn.Module, dtype: str) -> None:
    """Cast every parameter of `model` in place, also those that the library would keep in float32.

    Parameters alone: rotary frequencies in bfloat16 would be another model on long sequences.
    """
    for parameter in model.parameters():
        parameter.data = parameter.data.to(getattr(torch, dtype))


def cpu_multiplies(dtype: torch.dtype) -> bool:
    """Whether this machine's CPU has matrix products of `dtype`.

    Where it has none of bfloat16 (x86 without AVX-512), libraries take the numbers one by one: measured, 17
    to 25 times as slow as float32.
    """
    return dtype != torch.bfloat16 or bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def widen_products(model: nn.Module) -> None:
    """Have the linear layers of `model` multiply in float32 if it is on a CPU without products of its dtype.

    Weights and what goes from layer to layer stay as they are. The products are those of a processor that
    has them: exact, summed up in float32, rounded once.
    """
    for module in model.modules():
        if type(module) is nn.Linear:
            weight = module.weight
            if weight.device.type == "cpu" and not cpu_multiplies(weight.dtype):
                module.__class__ = WideLinear


class WideLinear(nn.Linear):
    """A linear layer that multiplies in float32, forth and back."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = _WideProduct.apply(input, self.weight, self.bias)
        return out


class _WideProduct(torch.autograd.Function):
    """Of a function of its own, autograd keeps the inputs as they are and no wide copies."""

    @staticmethod
    def forward(
        ctx: Any, input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None
    ) -> torch.Tensor:
        ctx.save_for_backward(input, weight)
        wide_bias = None if bias is None else bias.float()
        return F.linear(input.float(), weight.float(), wide_bias).to(input.dtype)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        input, weight = ctx.saved_tensors
        needs_input, needs_weight, needs_bias = ctx.needs_input_grad
        dinput = dweight = dbias = None
        wide = grad.float()
        if needs_input:
            dinput = (wide @ weight.float()).to(input.dtype)
        rows = wide.flatten(0, -2)
        if needs_weight:
            dweight = (rows.T @ input.flatten(0, -2).float()).to(weight.dtype)
        if needs_bias:
            dbias = rows.sum(0).to(weight.dtype)
        return dinput, dweight, dbias
