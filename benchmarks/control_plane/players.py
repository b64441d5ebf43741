"""Those who use the buffer: many generators without engines in one process, and a learner without a model."""

import asyncio
import random
import time
from collections import deque
from functools import cache
from typing import Any

import psutil
import ray

from actors import names
from actors.stored_pairs import fetch
from benchmarks.control_plane.settings import RUN, Settings
from iris_ray.chunks import Chunk, pack
from iris_ray.contracts import SelfPlayPair, VersionSpan
from iris_ray.generation.delivery import delivery_pause
from iris_ray.leases import RoundKey


class TimedBuffer:
    """The buffer's handle, for one caller who notes how long it answers."""

    def __init__(self, handle: Any, seconds: dict[str, list[float]]):
        self.handle = handle
        self.seconds = seconds

    def __getattr__(self, name: str) -> Any:
        return TimedMethod(getattr(self.handle, name), self.seconds[name])


class TimedMethod:
    def __init__(self, method: Any, seconds: list[float]):
        self.method = method
        self.seconds = seconds

    async def remote(self, *arguments: Any) -> Any:
        began = time.monotonic()
        answer = await self.method.remote(*arguments)
        self.seconds.append(time.monotonic() - began)
        return answer


class Player:
    """A generator that writes `rate` pairs a second in its sleep, and no faster, however much it leased.

    It leases and delivers by the service's rules, and does nothing else: the machine's cores are for the
    buffer, which does not look into pairs either.
    """

    def __init__(self, name: str, settings: Settings, buffer: Any):
        self.name = name
        self.buffer = buffer
        self.full = settings.concurrency
        self.each = 1 / settings.rate
        self.settings = settings
        self.under_way: deque[tuple[float, RoundKey, int]] = deque()  # when it is due, and its place
        self.leased = asyncio.Event()

    async def play(self) -> None:
        """Until the buffer is closed."""
        delivery = asyncio.create_task(self._deliver())
        due = time.monotonic()
        # One engine-full waits, as a real one's does.
        while lease := await self.buffer.lease.remote(self.name, self.full):
            due = max(due, time.monotonic())
            for position in lease.positions:
                due += self.each
                self.under_way.append((due, lease.round, position))
            self.leased.set()
            await asyncio.sleep(due - self.full * self.each - time.monotonic())
        delivery.cancel()

    async def _deliver(self) -> None:
        pause = delivery_pause()
        while True:
            while not self.under_way:
                self.leased.clear()
                await self.leased.wait()
            await asyncio.sleep(max(0.0, self.under_way[0][0] - time.monotonic()) + pause)
            began = time.monotonic()
            written = []
            while self.under_way and self.under_way[0][0] <= began:
                written.append(self.under_way.popleft())
            _, rounds, positions = zip(*written, strict=True)
            chunk = packed(self.settings, len(written))
            await self.buffer.add.remote(self.name, rounds[0], list(positions), chunk)
            pause = delivery_pause(time.monotonic() - began)


@cache
def packed(settings: Settings, count: int) -> Chunk:
    """So many written pairs, always the same."""
    prompt, answer = range(settings.prompt_tokens), range(settings.response_tokens)
    spans = [VersionSpan(0, settings.response_tokens)]
    # Lists of its own for each, or one would travel for all.
    pairs = [
        SelfPlayPair(1, i, list(prompt), list(answer), list(answer), "stop", 0, spans) for i in range(count)
    ]
    return pack(pairs)


@ray.remote(num_cpus=0)
class Generators:
    """Many of them in one process."""

    def __init__(self, settings: Settings, first: int, count: int):
        self.settings = settings
        self.members = range(first, first + count)
        self.seconds: dict[str, list[float]] = {"lease": [], "add": []}
        self.random = random.Random(first)

    async def play(self) -> dict[str, list[float]]:
        """Until the buffer is closed; returns how long each call of it took, in s."""
        await asyncio.gather(*map(self._play, self.members))
        return self.seconds

    async def _play(self, member: int) -> None:
        buffer = TimedBuffer(names.find(RUN, names.SAMPLE_BUFFER), self.seconds)
        # They do not begin all at once.
        await asyncio.sleep(self.random.uniform(0, self.settings.concurrency / self.settings.rate))
        await Player(f"generator-{member}", self.settings, buffer).play()


@ray.remote(num_cpus=0)
class Learner:
    """Takes batch after batch, as fast as they come."""

    def play(self, seconds: float, warm_up: float) -> dict[str, float]:
        """For so long after `warm_up` s; returns pairs a second, and how many waited at both ends."""
        buffer: Any = names.find(RUN, names.SAMPLE_BUFFER)
        began = time.monotonic()
        step, pairs, measured_from, ahead = 0, 0, 0.0, 0
        while (now := time.monotonic()) - began < warm_up + seconds:
            if not measured_from and now - began >= warm_up:
                measured_from, pairs = now, 0
                ahead = ray.get(buffer.status.remote())["ahead"]
            share = ray.get(buffer.share.remote(step, 0, 1))
            fetch(share.pairs)
            buffer.commit.remote(step)  # a real one does not wait for it either
            pairs += len(share.pairs)
            step += 1
        status = ray.get(buffer.status.remote())
        return {
            "pairs_per_s": pairs / (now - measured_from),
            "ahead_before": ahead,
            "ahead_after": status["ahead"],
        }


def find_process(name: str) -> psutil.Process:
    """The one that calls itself so."""
    (found,) = [each for each in psutil.process_iter() if name in " ".join(_cmdline(each))]
    return found


def memory_mib(process: psutil.Process) -> float:
    """In MiB, without mapped files: rows on disk, and what it wrote into the object store."""
    memory = process.memory_info()
    return (memory.rss - memory.shared) / (1 << 20)


def busy_seconds(process: psutil.Process) -> float:
    """CPU time that it took so far."""
    times = process.cpu_times()
    return times.user + times.system


def _cmdline(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()[:1]
    except psutil.Error:
        return []
