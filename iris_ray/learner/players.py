"""The two players that a learner holds: the policy it trains, and the frozen opponent.

Two models, or one model with two LoRA adapters. `scorer` is what the engine trains. Where ZeRO-3 partitions
parameters, `gather` makes some of them whole while it is entered, and writes back what was changed.
"""

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import nn
from transformers import PreTrainedModel

from iris_ray.config import RunConfig
from iris_ray.learner.compilation import compile_layers
from iris_ray.learner.sequence_scorer import SequenceScorer
from iris_ray.learner.token_batch import TokenBatch
from iris_ray.lora import (
    OPPONENT,
    POLICY,
    Gather,
    adapter_tensors,
    add_adapter,
    as_opponent,
    freeze_opponent,
    merged_weights,
)

NamedParameters = Iterator[tuple[str, nn.Parameter]]
Scoring = Callable[[TokenBatch], torch.Tensor]


class Players(ABC):
    """`model` must not be wrapped yet; it becomes the policy."""

    def __init__(self, model: PreTrainedModel, config: RunConfig):
        self.model = model
        self.scorer = SequenceScorer.fastest(model, config.max_length)

    @abstractmethod
    def weights(self, opponent: bool) -> NamedParameters:
        """What is trained and published, or the same of the opponent, as generators call it."""

    @abstractmethod
    def freeze(self, gather: Gather) -> None:
        """The current policy becomes the opponent."""

    @abstractmethod
    def opponent_scorer(self, engine: Scoring) -> AbstractContextManager[Scoring]:
        """Scores as the opponent while it is entered; `engine` was built around `scorer`."""

    @abstractmethod
    def model_weights(self, gather: Gather) -> Iterator[tuple[str, torch.Tensor]]:
        """All weights of the policy as a model of its own. A tensor may live until the next only."""


class TwoModels(Players):
    """The opponent is a copy, whole on every rank."""

    def __init__(self, model: PreTrainedModel, config: RunConfig):
        super().__init__(model, config)
        self.copy = copy.deepcopy(self.scorer).requires_grad_(False)
        if config.learner.compile:
            compile_layers(model)
            compile_layers(self.copy.model)

    def weights(self, opponent: bool) -> NamedParameters:
        return (self.copy.model if opponent else self.model).named_parameters()

    @torch.no_grad()
    def freeze(self, gather: Gather) -> None:
        for (_, policy), (_, opponent) in zip(self.weights(False), self.weights(True), strict=True):
            with gather([policy]):
                opponent.copy_(policy)

    def opponent_scorer(self, engine: Scoring) -> AbstractContextManager[Scoring]:
        return nullcontext(self.copy)

    def model_weights(self, gather: Gather) -> Iterator[tuple[str, torch.Tensor]]:
        for name, parameter in self.weights(False):
            with gather([parameter]):
                yield name, parameter.detach()


class TwoAdapters(Players):
    """Opponent and policy are adapters of one model, which stays as it was loaded."""

    def __init__(self, model: PreTrainedModel, config: RunConfig):
        assert config.model.lora is not None
        self.adapted = add_adapter(model, config.model.lora, config.run.seed)
        super().__init__(model, config)
        if config.learner.compile:
            compile_layers(model)

    def weights(self, opponent: bool) -> NamedParameters:
        return adapter_tensors(self.adapted, OPPONENT if opponent else POLICY)

    def freeze(self, gather: Gather) -> None:
        freeze_opponent(self.adapted, gather)

    @contextmanager
    def opponent_scorer(self, engine: Scoring) -> Iterator[Scoring]:
        with as_opponent(self.adapted):
            yield engine

    def model_weights(self, gather: Gather) -> Iterator[tuple[str, torch.Tensor]]:
        return merged_weights(self.adapted, gather)


def build_players(model: PreTrainedModel, config: RunConfig) -> Players:
    """The players of a run that starts from `model`."""
    return (TwoAdapters if config.model.lora else TwoModels)(model, config)
