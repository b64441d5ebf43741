"""What belongs to a model beside its parameters."""

from collections.abc import Iterator

import torch
from torch import nn


def kept_buffers(model: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Buffers that are saved with `model`, such as the bias by which experts are chosen.

    No optimiser moves them, and ZeRO-3 leaves them whole.
    """
    saved = model.state_dict(keep_vars=True).keys()
    return ((name, buffer) for name, buffer in model.named_buffers() if name in saved)
