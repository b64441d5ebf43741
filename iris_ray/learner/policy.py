"""The policy that a learner trains: a whole model, or a LoRA adapter of one.

`scorer` is what the engine trains. Where ZeRO-3 partitions parameters, `gather` makes some of them whole
while it is entered, and writes back what was changed. What stands against the policy is for subclasses to
say.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from itertools import chain
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from iris_ray.config import RunConfig
from iris_ray.kept_buffers import kept_buffers
from iris_ray.learner.sequence_scorer import SequenceScorer
from iris_ray.learner.split_parameters import whole_by_layer, whole_shape
from iris_ray.learner.token_batch import TokenBatch
from iris_ray.lora import Gather, adapter_tensors, add_adapter, merged_weights
from iris_ray.precision import widen_products
from iris_ray.weights.checkpoint_names import CheckpointNames

NamedParameters = Iterator[tuple[str, nn.Parameter]]
NamedTensors = Iterator[tuple[str, torch.Tensor]]
Scoring = Callable[[TokenBatch], torch.Tensor]


class Players(ABC):
    """Policy and opponent. `model` must not be wrapped yet; it becomes the policy."""

    keeps_opponent = True
    """Whether there are weights of the opponent to be saved and published."""
    frozen: Any = None
    """With ZeRO-3, the engine of an opponent that is a model of its own."""

    def __init__(self, model: PreTrainedModel, config: RunConfig):
        self.model = model
        with whole_by_layer(model):
            self.scorer = SequenceScorer.fastest(model, config.max_length)

    @abstractmethod
    def policy_weights(self) -> NamedParameters:
        """What is trained and published."""

    @abstractmethod
    def published_buffers(self) -> NamedTensors:
        """What generators need beside the weights, and is never trained."""

    @abstractmethod
    def as_checkpoints(self, weights: NamedTensors) -> NamedTensors:
        """What is published, as checkpoints have it."""

    @abstractmethod
    def model_weights(self, gather: Gather) -> NamedTensors:
        """The policy as a model of its own, buffers included. A tensor may live until the next only."""

    @abstractmethod
    def opponent_weights(self) -> NamedTensors:
        """The opponent's counterparts of `policy_weights`, in the same order; every rank walks through."""

    @abstractmethod
    def freeze(self, gather: Gather) -> None:
        """The current policy becomes the opponent."""

    @abstractmethod
    def set_opponent(self, weights: Mapping[str, torch.Tensor], gather: Gather) -> None:
        """Replace the opponent's weights by what `opponent_weights` gave."""

    @abstractmethod
    def opponent_scorer(self, engine: Scoring) -> AbstractContextManager[Scoring]:
        """Scores as the opponent while it is entered; `engine` was built around `scorer`."""


class ModelPolicy(Players):
    """All weights are trained."""

    def __init__(self, model: PreTrainedModel, config: RunConfig):
        super().__init__(model, config)
        published = chain(self.policy_weights(), self.published_buffers())
        self._names = CheckpointNames(model, {name: whole_shape(tensor) for name, tensor in published})

    def policy_weights(self) -> NamedParameters:
        return self.model.named_parameters()

    def published_buffers(self) -> NamedTensors:
        return kept_buffers(self.model)

    def as_checkpoints(self, weights: NamedTensors) -> NamedTensors:
        return self._names.of(weights)

    def model_weights(self, gather: Gather) -> NamedTensors:
        yield from self.published_buffers()
        for name, parameter in self.policy_weights():
            with gather([parameter]):
                yield name, parameter.detach()


class AdapterPolicy(Players):
    """An adapter is trained; the model under it stays as it was loaded."""

    def __init__(self, model: PreTrainedModel, config: RunConfig):
        assert config.model.lora is not None
        self.adapted = add_adapter(model, config.model.lora, config.run.seed)
        widen_products(model)  # the adapter's own layers
        super().__init__(model, config)

    def policy_weights(self) -> NamedParameters:
        return adapter_tensors(self.adapted)

    def published_buffers(self) -> NamedTensors:
        return iter(())

    def as_checkpoints(self, weights: NamedTensors) -> NamedTensors:
        return weights

    def model_weights(self, gather: Gather) -> NamedTensors:
        return merged_weights(self.adapted, gather)
