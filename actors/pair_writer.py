"""Between the sample buffer and whatever answers prompts: leases out, pairs in."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from itertools import groupby

from ray.actor import ActorHandle

from iris_ray.chunks import pack
from iris_ray.contracts import SelfPlayPair
from iris_ray.generation.delivery import delivery_pause
from iris_ray.generation.in_flight import InFlight
from iris_ray.leases import RoundKey, Task


class PairWriter:
    """Leases prompts for generator `name`, has `write` make pairs of them, delivers these to the buffer.

    `full` requests keep the engine busy; `in_flight` counts them, and `write` lets them leave. `use_version`
    makes ready for a lease's version and attempt; `None` says that it is void.
    """

    def __init__(
        self,
        name: str,
        buffer: ActorHandle,
        full: int,
        in_flight: InFlight,
        use_version: Callable[[int, int], Awaitable[int | None]],
        write: Callable[[RoundKey, Task], Awaitable[SelfPlayPair]],
    ):
        self.name = name
        self.buffer = buffer
        self.full = full
        self.in_flight = in_flight
        self.use_version = use_version
        self.write = write
        self.outbox: asyncio.Queue[tuple[RoundKey, int, SelfPlayPair]] = asyncio.Queue()

    async def play(self) -> None:
        """Write pairs until the game is over or the buffer has no more work for this generator."""
        async with asyncio.TaskGroup() as tasks:
            delivery = tasks.create_task(self._deliver())
            await self._write_all()
            await self.outbox.join()
            delivery.cancel()

    async def _write_all(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            while True:
                # One engine-full waits inside the engine, so that it never runs dry between leases.
                await self.in_flight.at_most(self.full)
                lease = await self.buffer.lease.remote(self.name, self.full)
                if lease is None:
                    break
                if await self.use_version(lease.version, lease.round.attempt) is None:
                    continue  # the run went back to a checkpoint
                self.in_flight.enter(len(lease.positions))
                for task in lease.tasks():
                    tasks.create_task(self._write(lease.round, task))

    async def _write(self, round_: RoundKey, task: Task) -> None:
        self.outbox.put_nowait((round_, task.position, await self.write(round_, task)))

    async def _deliver(self) -> None:
        pause = delivery_pause()
        while True:
            items = [await self.outbox.get()]
            with suppress(TimeoutError):  # unless they are the last for now
                await asyncio.wait_for(self.in_flight.at_most(0), pause)
            while not self.outbox.empty():
                items.append(self.outbox.get_nowait())
            began = time.monotonic()
            for key, members in groupby(items, lambda item: item[0]):
                _, positions, pairs = zip(*members, strict=True)
                await self.buffer.add.remote(self.name, key, list(positions), pack(pairs))
            pause = delivery_pause(time.monotonic() - began)
            for _ in items:
                self.outbox.task_done()
