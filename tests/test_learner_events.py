"""What the learner attends to while it waits: a real actor gives the orders."""

import asyncio

import pytest
import ray
from run_process import WAIT_S

from actors import learner_events
from actors.learner_events import LearnerEvents


@ray.remote
class Orders:
    """As the controller has them."""

    def __init__(self) -> None:
        self.ordered = asyncio.Event()

    async def next_order(self, number: int) -> str:
        if number > 0:
            await asyncio.Event().wait()
        await self.ordered.wait()
        return "resume"

    async def order(self, after_s: float) -> None:
        await asyncio.sleep(after_s)
        self.ordered.set()


@ray.remote
def soon(seconds: float) -> None:
    import time

    time.sleep(seconds)


def test_a_long_wait_is_made_of_short_ones(ray_here: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(learner_events, "LOOK_S", 0.05)
    orders = Orders.remote()
    events = LearnerEvents(orders, None, rank=0, ranks=1, orders_taken=0)
    assert events.next(soon.remote(0.5), seconds=WAIT_S, orders=True) == "there"
    assert events.next(soon.remote(30), seconds=0.5, orders=True) == "late"
    orders.order.remote(after_s=0.5)
    assert events.next(None, seconds=0.1, orders=True) == "resume"  # paused: no end by itself
    assert events.orders_taken == 1
