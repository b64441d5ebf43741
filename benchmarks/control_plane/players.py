"""Those who use the buffer: many generators without engines in one process, and a learner without a model."""

import asyncio
import random
import time
from typing import Any

import psutil
import ray

from actors import names
from actors.pair_writer import PairWriter
from actors.sample_buffer import RoundKey, Task
from benchmarks.control_plane.settings import RUN, Settings
from iris_ray.contracts import SelfPlayPair, VersionSpan
from iris_ray.generation.in_flight import InFlight


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


@ray.remote(num_cpus=0)
class Generators:
    """`count` of them in one process. Each writes `rate` pairs a second, in its sleep."""

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
        buffer: Any = TimedBuffer(names.find(RUN, names.SAMPLE_BUFFER), self.seconds)
        in_flight = InFlight()
        engine = asyncio.Semaphore(self.settings.concurrency)  # what it works on at a time
        mean = self.settings.concurrency / self.settings.rate

        async def use_version(version: int) -> int:
            return version

        async def write(round_: RoundKey, task: Task) -> SelfPlayPair:
            async with engine:
                await asyncio.sleep(self.random.uniform(0.5, 1.5) * mean)
            in_flight.leave()
            row, length = task.demonstration, self.settings.response_tokens
            spans = [VersionSpan(0, length)]
            answer = list(range(length))
            return SelfPlayPair(
                1, row.prompt_id, row.prompt_tokens, row.response_tokens, answer, "stop", 0, spans
            )

        await asyncio.sleep(self.random.uniform(0, mean))  # they do not begin all at once
        full = self.settings.concurrency
        await PairWriter(f"generator-{member}", buffer, full, in_flight, use_version, write).play()


@ray.remote(num_cpus=0)
class Learner:
    """Takes batch after batch, as fast as they come."""

    async def play(self, seconds: float, warm_up: float) -> dict[str, float]:
        """For so long after `warm_up` s; returns pairs a second, and how many waited at both ends."""
        buffer: Any = names.find(RUN, names.SAMPLE_BUFFER)
        began = time.monotonic()
        step, pairs, measured_from, ahead = 0, 0, 0.0, 0
        while (now := time.monotonic()) - began < warm_up + seconds:
            if not measured_from and now - began >= warm_up:
                measured_from, pairs = now, 0
                ahead = (await buffer.status.remote())["ahead"]
            share = await buffer.share.remote(step, 0, 1)
            for chunk in dict.fromkeys(stored.chunk for stored in share.pairs):
                await chunk
            await buffer.commit.remote(step)
            pairs += len(share.pairs)
            step += 1
        status = await buffer.status.remote()
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
    """Without what it shares with others, in MiB."""
    return process.memory_full_info().uss / (1 << 20)


def busy_seconds(process: psutil.Process) -> float:
    """CPU time that it took so far."""
    times = process.cpu_times()
    return times.user + times.system


def _cmdline(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()[:1]
    except psutil.Error:
        return []
