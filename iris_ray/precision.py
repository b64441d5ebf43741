"""The number format of a model's weights."""

import torch
from torch import nn


def cast_parameters(model: nn.Module, dtype: str) -> None:
    """Cast every parameter of `model` in place, also those that the library would keep in float32.

    Parameters alone: rotary frequencies in bfloat16 would be another model on long sequences.
    """
    for parameter in model.parameters():
        parameter.data = parameter.data.to(getattr(torch, dtype))
