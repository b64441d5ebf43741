"""The learner's end of `sync.transport` nccl and gloo: weights go to all generators that wait for them."""

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import ray
import torch
from ray.actor import ActorHandle

from iris_ray.config import Sync
from iris_ray.weights.broadcast import BroadcastGroup, TransferError
from iris_ray.weights.buckets import pack_buckets
from iris_ray.weights.manifest import Broadcast, Meeting, WeightManifest

TOGETHER_S = 0.25  # for the generators of the last broadcast to come once more


@dataclass(frozen=True)
class _Audience:
    group: BroadcastGroup
    members: dict[str, int]
    first_rank: dict[str, int]


class WeightBroadcasts:
    """Sends weights to the generators that have come for them; belongs to rank 0, which alone sends.

    As long as the same generators come they keep their group. When others come, or one is lost, a new one is
    made. A generator that is lost in the middle costs the others this broadcast: they come again.
    """

    def __init__(self, sync: Sync, store: ActorHandle, device: torch.device):
        self.sync = sync
        self.store = store
        self.device = device
        self.count = 0
        self._comers: Any = None
        self._audience: _Audience | None = None
        self._lost: Any = None

    def comers(self) -> Any:
        """The object reference that is there once generators have come; `send` serves them."""
        if self._comers is None:
            expected = list(self._audience.members) if self._audience else []
            self._comers = self.store.comers.remote(expected, TOGETHER_S)
        return self._comers

    def send(self, manifest: WeightManifest, weights: Iterable[tuple[str, torch.Tensor]]) -> bool:
        """Send the weights to those that came; whether all of them got everything."""
        members = ray.get(self.comers())
        self._comers = None
        self.count += 1
        buckets = pack_buckets(weights, self.sync.bucket_mib << 20, self.device)
        try:
            group = self._meet(members, manifest)
            for bucket, _ in buckets:
                group.broadcast(bucket)
            group.arrive()
            group.wait_for_all()
        except TransferError:
            self._part()
            for _ in buckets:
                pass  # what is gathered (ZeRO-3) is gathered by all ranks
            return False
        finally:
            ray.get(self.store.end.remote())
        return True

    def _meet(self, members: dict[str, int], manifest: WeightManifest) -> BroadcastGroup:
        audience, kept = self._audience, True
        if audience is None or audience.members != members:
            self._part()
            assert self.sync.transport != "object_store"
            size, host = 1 + sum(members.values()), ray.util.get_node_ip_address()
            meeting = Meeting(self.sync.transport, host, 0, size, self.sync.timeout_s)
            first_rank = dict(zip(members, accumulate(members.values(), initial=1), strict=False))
            audience, kept = _Audience(BroadcastGroup(meeting, 0, self._is_lost), members, first_rank), False
            self._audience = audience
        group = audience.group
        invitation = Broadcast(self.count, manifest, group.meeting, audience.first_rank)
        ray.get(self.store.invite.remote(invitation))
        self._lost = self.store.wait_lost.remote(self.count)
        if not kept:
            group.connect()
        return group

    def _part(self) -> None:
        if self._audience is not None:
            self._audience.group.close()
            self._audience = None

    def _is_lost(self) -> bool:
        return bool(ray.wait([self._lost], timeout=0)[0])
