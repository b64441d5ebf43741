"""What a learner attends to between two steps."""

import math
import time
from typing import Any, Literal

import ray
import torch.distributed as dist
from ray.actor import ActorHandle

from actors.weight_broadcasts import WeightBroadcasts
from iris_ray.contracts import Order

Event = Order | Literal["there", "generators", "late"]

LOOK_S = 60  # a wait of all ranks ends in an error after half an hour or so


class LearnerEvents:
    """Rank 0 looks at what comes first, and all ranks get the answer, so that they do the same."""

    def __init__(
        self,
        controller: ActorHandle,
        broadcasts: WeightBroadcasts | None,
        rank: int,
        ranks: int,
        orders_taken: int,
    ):
        self.controller = controller
        self.broadcasts = broadcasts
        self.rank = rank
        self.ranks = ranks
        self._await_order(orders_taken)

    def next(self, awaited: ray.ObjectRef | None, seconds: float, orders: bool) -> Event:
        """An order if `orders` are taken, "generators" when some come for weights, "there" once `awaited` is.

        "late" if `awaited` is not there within `seconds`. Other ranks than 0 need not have it.
        """
        until = None if awaited is None else time.monotonic() + seconds
        while True:
            event: list[Any] = [self._look(awaited, until, orders) if self.rank == 0 else None]
            if self.ranks > 1:
                dist.broadcast_object_list(event)
            if event[0] is not None:
                return event[0]

    def obeyed(self) -> None:
        """The order that came last was carried out."""
        if self.rank == 0:
            self.controller.record_obeyed.remote()

    def _look(self, awaited: ray.ObjectRef | None, until: float | None, orders: bool) -> Event | None:
        """What comes first; `None` if nothing does for a while, so that no rank waits long for the others."""
        watched: list[Any] = [self.order] if orders else []
        if self.broadcasts:
            watched.append(self.broadcasts.comers())
        if awaited is not None:
            watched.append(awaited)
        left = math.inf if until is None else max(until - time.monotonic(), 0)
        there, _ = ray.wait(watched, timeout=min(left, LOOK_S))
        if not there:
            return "late" if left <= LOOK_S else None
        if there[0] == awaited:
            return "there"
        if there[0] != self.order:
            return "generators"
        order: Order = ray.get(self.order)
        self._await_order(self.orders_taken + 1)
        return order

    def _await_order(self, number: int) -> None:
        self.orders_taken = number
        self.order: Any = self.controller.next_order.remote(number)
