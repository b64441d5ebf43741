"""An opponent that only the generators compute with."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
import torch.distributed as dist
from transformers import PreTrainedModel

from iris_ray.config import RunConfig
from iris_ray.errors import IrisRayError
from iris_ray.learner.kept_weights import KeptWeights
from iris_ray.learner.policy import NamedTensors, Players, Scoring
from iris_ray.learner.split_parameters import whole_shape
from iris_ray.lora import Gather


class OpponentOnDisk(Players):
    """The generators score, so the learner holds no second model.

    With `schedule.refresh=iteration` the opponent outlives the first step against it: checkpoints save it,
    and after one it is published again. So its weights are kept on disk, a share on each rank. Otherwise
    nothing is kept, and asking for the opponent raises `IrisRayError`.
    """

    gather: Gather

    def __init__(self, model: PreTrainedModel, config: RunConfig):
        super().__init__(model, config)
        self.keeps_opponent = config.schedule.refresh == "iteration"
        self.shapes = [whole_shape(parameter) for _, parameter in self.policy_weights()]
        self._kept: KeptWeights | None = None

    def freeze(self, gather: Gather) -> None:
        self.gather = gather
        if self.keeps_opponent:
            self._kept = self._policy_share()

    def set_opponent(self, weights: Mapping[str, torch.Tensor], gather: Gather) -> None:
        self.gather = gather
        names = [name for name, _ in self.policy_weights()]
        mine = names[dist.get_rank() :: dist.get_world_size()]
        self._kept = KeptWeights((name, weights[name]) for name in mine)

    def opponent_weights(self) -> NamedTensors:
        return self._whole(self._opponent)

    @contextmanager
    def opponent_scorer(self, engine: Scoring) -> Iterator[Scoring]:
        """The engine itself: policy and opponent change places, the policy waits on disk meanwhile.

        Slow, but needed only for the probe of an opponent that is published again.
        """
        opponent, policy = self._opponent, self._policy_share()
        self._become(opponent)
        try:
            yield engine
        finally:
            self._become(policy)

    @property
    def _opponent(self) -> KeptWeights:
        if self._kept is None:
            raise IrisRayError(
                "the learner keeps no weights of the opponent: learner.reference=generator needs none in it "
                "unless schedule.refresh=iteration, and then from the start of a round on."
            )
        return self._kept

    def _policy_share(self) -> KeptWeights:
        return KeptWeights(self._own_weights())

    def _own_weights(self) -> NamedTensors:
        """Those of the policy's weights that this rank keeps."""
        for index, (name, parameter) in enumerate(self.policy_weights()):
            with self.gather([parameter]):
                if index % dist.get_world_size() == dist.get_rank():
                    yield name, parameter.detach()

    def _whole(self, share: KeptWeights) -> NamedTensors:
        """All ranks' shares, on every rank."""
        mine = iter(share)
        for index, ((name, parameter), shape) in enumerate(
            zip(self.policy_weights(), self.shapes, strict=True)
        ):
            owner = index % dist.get_world_size()
            if owner == dist.get_rank():
                weight = next(mine)[1].to(self.model.device)
            else:
                weight = torch.empty(shape, dtype=parameter.dtype, device=self.model.device)
            dist.broadcast(weight, owner)
            yield name, weight

    @torch.no_grad()
    def _become(self, share: KeptWeights) -> None:
        """Put kept weights into the model, in place: the optimiser's own copies know nothing of it."""
        for (_, parameter), (_, weight) in zip(self.policy_weights(), self._whole(share), strict=True):
            with self.gather([parameter]):
                parameter.copy_(weight)
