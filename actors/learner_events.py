"""What a learner attends to between two steps."""

from typing import Any, Literal

import ray
import torch.distributed as dist
from ray.actor import ActorHandle

from actors.weight_broadcasts import WeightBroadcasts
from iris_ray.contracts import Order

Event = Order | Literal["there", "generators", "late"]


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
        event: list[Any] = [self._look(awaited, seconds, orders) if self.rank == 0 else None]
        if self.ranks > 1:
            dist.broadcast_object_list(event)
        return event[0]

    def obeyed(self) -> None:
        """The order that came last was carried out."""
        if self.rank == 0:
            self.controller.record_obeyed.remote()

    def _look(self, awaited: ray.ObjectRef | None, seconds: float, orders: bool) -> Event:
        watched: list[Any] = [self.order] if orders else []
        if self.broadcasts:
            watched.append(self.broadcasts.comers())
        if awaited is not None:
            watched.append(awaited)
        there, _ = ray.wait(watched, timeout=None if awaited is None else seconds)
        if not there:
            return "late"
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
