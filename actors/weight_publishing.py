"""The learner's end of weight updates."""

from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import ray
import torch
from ray.actor import ActorHandle
from ray.train.torch import get_device

from actors.weight_broadcasts import WeightBroadcasts
from iris_ray.config import RunConfig
from iris_ray.weights.buckets import lay_out, share_buckets
from iris_ray.weights.manifest import Bucket, Probe, TensorSpec, WeightManifest
from iris_ray.weights.shares import WeightShare

if TYPE_CHECKING:
    from iris_ray.learner.self_play_learner import SelfPlayLearner


class WeightPublisher:
    """Lists versions for generators to pull; every rank has one and calls every method.

    The bytes are put into the object store, or wait for generators to come for them (`sync.transport`).
    """

    def __init__(
        self,
        config: RunConfig,
        learner: "SelfPlayLearner",
        store: ActorHandle,
        probe: list[list[int]],
        rank: int,
        ranks: int,
    ):
        self.config = config
        self.learner = learner
        self.store = store
        self.probe = probe
        self.rank = rank
        self.ranks = ranks
        self.broadcasts: WeightBroadcasts | None = None
        if config.sync.transport != "object_store":
            self.broadcasts = WeightBroadcasts(config.sync, store, get_device())
        self.copier = ThreadPoolExecutor(1)
        self.layout: list[list[TensorSpec]] = []
        self.version = 0
        self.opponent = False

    def publish(self, version: int, opponent: bool) -> Future[Any]:
        """List the policy's weights, or the opponent's; gives the object reference to wait for.

        The policy may be computed with meanwhile, and must not change.
        """
        self.version, self.opponent = version, opponent
        probe = self._probe()
        if self._lasting:
            return self.copier.submit(self._list, probe)
        listed: Future[Any] = Future()
        listed.set_result(self._list(probe))
        return listed

    def _list(self, probe: Probe) -> Any:
        probe_of_first = probe if self.rank == 0 else None
        share = WeightShare(self.version, self.rank, self.ranks, self._buckets(), probe_of_first)
        return self.store.publish.remote(share)

    @property
    def _lasting(self) -> bool:
        """Whether what is published are the policy's own parameters, not what was gathered or read."""
        stays = not self.opponent and self.config.learner.zero_stage < 3
        return stays and self.broadcasts is None

    def policy_moves(self, keeps_opponent: bool) -> None:
        """From now on the policy is trained: generators that come late get the opponent, if one is kept."""
        self.opponent = keeps_opponent

    def send(self) -> None:
        """Send weights to the generators that have come for them."""
        assert self.broadcasts
        # Online, the policy may have gone on since it was published: the number stays, the probe is new.
        probe, weights = self._probe(), self.learner.published_weights(self.opponent)
        if self.rank == 0:
            buckets = [Bucket(None, tensors) for tensors in self.layout]
            self.broadcasts.send(WeightManifest(self.version, buckets, probe), weights)
        else:
            for _ in weights:
                pass  # what is gathered (ZeRO-3) is gathered by all ranks

    def _buckets(self) -> list[Bucket]:
        """This rank's share."""
        weights, bucket_bytes = (
            self.learner.published_weights(self.opponent),
            self.config.sync.bucket_mib << 20,
        )
        if self.broadcasts:
            self.layout = self.layout or lay_out(weights, bucket_bytes)
            return [Bucket(None, tensors) for tensors in self.layout[self.rank :: self.ranks]]
        # All ranks walk through all weights, as ZeRO-3 gathers each of them, and share the copying.
        return put_buckets(weights, bucket_bytes, self.rank, self.ranks, self._lasting)

    def _probe(self) -> Probe:
        return Probe(self.probe, self.learner.token_logprobs(self.probe, self.opponent))


def put_buckets(
    weights: Iterable[tuple[str, torch.Tensor]],
    bucket_bytes: int,
    rank: int = 0,
    ranks: int = 1,
    lasting: bool = False,
) -> list[Bucket]:
    """Copy this rank's share of the weights into Ray's object store; the arguments are `share_buckets`'s.

    A list of arrays is put as it is: Ray copies each straight into its shared memory, and that is the only
    copy of `lasting` tensors. The objects live as long as this process.
    """
    return [
        Bucket(ray.put(arrays), tensors)
        for arrays, tensors in share_buckets(weights, bucket_bytes, rank, ranks, lasting)
    ]
