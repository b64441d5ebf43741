"""Weights under the names that checkpoints have, and vLLM loads: `transformers` holds some otherwise."""

from collections.abc import Iterable, Iterator, Mapping

import torch
from transformers import PreTrainedModel
from transformers.core_model_loading import revert_weight_conversion

NamedTensors = Iterable[tuple[str, torch.Tensor]]


class CheckpointNames:
    """What `save_pretrained` makes of a model's weights, tensor by tensor.

    It holds the experts of a mixture in one tensor, and calls some layers by other names than checkpoints do.
    """

    def __init__(self, model: PreTrainedModel, shapes: Mapping[str, torch.Size]):
        """`shapes`: of all that `of` will be given."""
        self.model = model
        self.others = {name for name, shape in shapes.items() if self._differs(name, shape)}

    def of(self, weights: NamedTensors) -> Iterator[tuple[str, torch.Tensor]]:
        """The same weights; a tensor that checkpoints have as it is stays what it is."""
        for name, tensor in weights:
            if name in self.others:
                yield from revert_weight_conversion(self.model, {name: tensor}).items()
            else:
                yield name, tensor

    def _differs(self, name: str, shape: torch.Size) -> bool:
        empty = torch.empty(shape, device="meta")
        saved = revert_weight_conversion(self.model, {name: empty})
        return [(key, value.shape) for key, value in saved.items()] != [(name, empty.shape)]
