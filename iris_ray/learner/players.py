"""The two players of a learner: the policy it trains, and the frozen opponent.

The opponent is a second model or a second adapter that the learner holds, or only lies on disk.
"""

import copy
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from transformers import PreTrainedModel

from iris_ray.config import RunConfig
from iris_ray.learner.compilation import compile_layers
from iris_ray.learner.engine import build_frozen
from iris_ray.learner.opponent_on_disk import OpponentOnDisk
from iris_ray.learner.policy import AdapterPolicy, ModelPolicy, NamedParameters, Players, Scoring
from iris_ray.learner.split_parameters import split_alike
from iris_ray.lora import OPPONENT, Gather, adapter_tensors, as_opponent, freeze_opponent


class TwoModels(ModelPolicy):
    """The opponent is a copy, whole on every rank unless the policy is split."""

    def __init__(self, model: PreTrainedModel, config: RunConfig):
        super().__init__(model, config)
        self.copy = copy.deepcopy(self.scorer).requires_grad_(False)
        if config.learner.zero_stage == 3:  # split parameters are copied as empty ones
            for policy, opponent in zip(self.scorer.parameters(), self.copy.parameters(), strict=True):
                split_alike(opponent, policy)
        if config.learner.compile:
            compile_layers(self.copy.model)
        if config.learner.zero_stage == 3:
            self.frozen = build_frozen(self.copy, config.learner, config.model.dtype)

    def opponent_weights(self) -> NamedParameters:
        return self.copy.model.named_parameters()

    @torch.no_grad()
    def freeze(self, gather: Gather) -> None:
        for (_, policy), (_, opponent) in zip(self.policy_weights(), self.opponent_weights(), strict=True):
            with gather([policy, opponent]):
                opponent.copy_(policy)

    @torch.no_grad()
    def set_opponent(self, weights: Mapping[str, torch.Tensor], gather: Gather) -> None:
        for name, parameter in self.opponent_weights():
            with gather([parameter]):
                parameter.copy_(weights[name])

    def opponent_scorer(self, engine: Scoring) -> AbstractContextManager[Scoring]:
        return nullcontext(self.frozen or self.copy)


class TwoAdapters(AdapterPolicy):
    """The opponent is a second adapter of the same model."""

    def opponent_weights(self) -> NamedParameters:
        return adapter_tensors(self.adapted, OPPONENT)

    def freeze(self, gather: Gather) -> None:
        freeze_opponent(self.adapted, gather)

    @torch.no_grad()
    def set_opponent(self, weights: Mapping[str, torch.Tensor], gather: Gather) -> None:
        for name, parameter in self.opponent_weights():
            with gather([parameter]):
                parameter.copy_(weights[name])

    @contextmanager
    def opponent_scorer(self, engine: Scoring) -> Iterator[Scoring]:
        with as_opponent(self.adapted):
            yield engine


class ModelAlone(OpponentOnDisk, ModelPolicy):
    """The policy is the only model."""


class AdapterAlone(OpponentOnDisk, AdapterPolicy):
    """The policy's adapter is the only one."""

    def __init__(self, model: PreTrainedModel, config: RunConfig):
        super().__init__(model, config)
        self.adapted.delete_adapter(OPPONENT)


def build_players(model: PreTrainedModel, config: RunConfig) -> Players:
    """The players of a run that starts from `model`."""
    kinds: tuple[type[Players], type[Players]] = (TwoModels, TwoAdapters)
    if config.learner.reference == "generator":
        kinds = (ModelAlone, AdapterAlone)
    players = kinds[config.model.lora is not None](model, config)
    if config.learner.compile:
        compile_layers(model)
    return players
