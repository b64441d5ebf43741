"""A generator: one vLLM engine that plays the opponent."""

import asyncio
import os
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import ray

from actors import names
from actors.sample_buffer import Lease, Task
from iris_ray.config import RunConfig
from iris_ray.contracts import SelfPlayPair, Update
from iris_ray.generation.in_flight import InFlight
from iris_ray.weights.manifest import WeightManifest
from iris_ray.weights.parity import check_parity

if TYPE_CHECKING:
    from iris_ray.generation.policy_engine import PolicyEngine, Response

DELIVERY_PAUSE_S = 0.02  # lets a few pairs come together into one message


@ray.remote
class Generator:
    """Leases prompts, answers them, delivers pairs; pulls the weights that a lease asks for."""

    def __init__(self, config: RunConfig, model_path: str, end_token_id: int, name: str):
        self.config = config
        self.model_path = model_path
        self.end_token_id = end_token_id
        self.name = name
        self.buffer = names.find(config.run.name, names.SAMPLE_BUFFER)
        self.store = names.find(config.run.name, names.WEIGHT_STORE)
        self.controller = names.find(config.run.name, names.CONTROLLER)
        self.engine: PolicyEngine
        self.version: int | None = None
        self.updating = asyncio.Lock()
        self.in_flight = InFlight()
        self.outbox: asyncio.Queue[tuple[int, SelfPlayPair]] = asyncio.Queue()
        self.generated_tokens = 0

    async def start(self) -> None:
        """Start the engine, load the newest weights, pass the probe: only then is it ready."""
        from iris_ray.generation.policy_engine import PolicyEngine

        self.engine = PolicyEngine(self.config, self.model_path, self.end_token_id)
        await self._load(await self.store.get.remote(None))

    async def play(self) -> None:
        """Write pairs until the game is over."""
        full = self.config.generation.concurrency
        async with asyncio.TaskGroup() as tasks:
            delivery = tasks.create_task(self._deliver())
            while True:
                # One engine-full waits inside the engine, so that it never runs dry between leases.
                await self.in_flight.at_most(full)
                lease = await self.buffer.lease.remote(self.name, full)
                if lease is None:
                    break
                await self.use_version(lease.version)
                self.in_flight.enter(len(lease.tasks))
                for task in lease.tasks:
                    tasks.create_task(self._write(lease, task))
            delivery.cancel()

    async def _write(self, lease: Lease, task: Task) -> None:
        demonstration = task.demonstration
        response = await self._generate(demonstration.prompt_tokens, seed=task.seed)
        self.generated_tokens += len(response.tokens)
        pair = SelfPlayPair(
            iteration=lease.iteration,
            prompt_id=demonstration.prompt_id,
            prompt_tokens=demonstration.prompt_tokens,
            real_tokens=demonstration.response_tokens,
            synthetic_tokens=response.tokens,
            finish_reason=response.finish_reason,
            version=lease.version,
        )
        self.outbox.put_nowait((task.position, pair))

    async def _deliver(self) -> None:
        while True:
            items = [await self.outbox.get()]
            await asyncio.sleep(DELIVERY_PAUSE_S)
            while not self.outbox.empty():
                items.append(self.outbox.get_nowait())
            positions, pairs = zip(*items, strict=True)
            # All are of one round: the next is leased out only after this one was trained on.
            await self.buffer.add.remote(self.name, pairs[0].iteration, positions, list(pairs))

    async def answer(self, prompts: list[list[int]], version: int) -> list[list[int]]:
        """Greedy answers of weights `version` to token prompts, end token included where reached."""
        await self.use_version(version)
        self.in_flight.enter(len(prompts))
        responses = await asyncio.gather(*[self._generate(prompt, greedy=True) for prompt in prompts])
        return [response.tokens for response in responses]

    async def _generate(self, prompt: list[int], seed: int | None = None, greedy: bool = False) -> "Response":
        try:
            return await self.engine.generate(prompt, seed=seed, greedy=greedy)
        finally:
            await self.in_flight.leave()

    async def use_version(self, version: int) -> None:
        """Load weights `version` unless they are in place; responses under way finish first."""
        async with self.updating:
            if self.version != version:
                manifest = await self.store.get.remote(version)
                await self.in_flight.at_most(0)
                await self._load(manifest)

    async def _load(self, manifest: WeightManifest) -> None:
        """Update the running engine in place and prove it with the probe."""
        begin = time.monotonic()
        async with asyncio.timeout(self.config.sync.timeout_s):
            arrays = await asyncio.gather(*[bucket.data for bucket in manifest.buckets])
            # The engine's process maps the files: in shared memory that is no copy and no disk.
            with tempfile.TemporaryDirectory(dir="/dev/shm" if os.path.isdir("/dev/shm") else None) as folder:
                buckets = []
                for index, (array, bucket) in enumerate(zip(arrays, manifest.buckets, strict=True)):
                    path = Path(folder) / str(index)
                    array.tofile(path)
                    buckets.append((path, bucket.tensors))
                paused = await self.engine.load_weights(manifest.version, buckets)
            logprobs = await self.engine.logprobs(manifest.probe.sequences)
        difference = check_parity(manifest.probe, logprobs, self.config, self.name, manifest.version)
        self.version = manifest.version
        update = Update(self.name, self.version, time.monotonic() - begin, paused, difference)
        await self.controller.record_update.remote(update)

    async def status(self) -> dict:
        return {
            "name": self.name,
            "version": self.version,
            "generated_tokens": self.generated_tokens,
            "busy_seconds": self.in_flight.busy_seconds,
        }

    async def stop(self) -> None:
        """End the engine's process too."""
        self.engine.shutdown()
