"""A generator: one vLLM engine that plays the opponent."""

import asyncio
from itertools import groupby
from typing import TYPE_CHECKING

import ray

from actors import names
from actors.sample_buffer import Lease, RoundKey, Task
from actors.weight_updates import WeightUpdates
from iris_ray.config import RunConfig
from iris_ray.contracts import SelfPlayPair
from iris_ray.generation.in_flight import InFlight
from iris_ray.weights.manifest import WeightManifest

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
        self.updates: WeightUpdates
        self.version: int | None = None
        self.serial = 0
        self.updating = asyncio.Lock()
        self.in_flight = InFlight()
        self.outbox: asyncio.Queue[tuple[RoundKey, int, SelfPlayPair]] = asyncio.Queue()
        self.generated_tokens = 0

    async def start(self) -> None:
        """Start the engine, load the newest weights, pass the probe: only then is it ready."""
        from iris_ray.generation.policy_engine import PolicyEngine

        self.engine = PolicyEngine(self.config, self.model_path, self.end_token_id)
        self.updates = WeightUpdates(self.config, self.engine, self.name)
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
                if not await self.use_version(lease.version):
                    continue  # the run went back to a checkpoint, so the lease is void
                self.in_flight.enter(len(lease.tasks))
                for task in lease.tasks:
                    tasks.create_task(self._write(lease, task))
            delivery.cancel()

    async def _write(self, lease: Lease, task: Task) -> None:
        demonstration = task.demonstration
        response = await self._generate(demonstration.prompt_tokens, seed=task.seed)
        self.generated_tokens += len(response.tokens)
        pair = SelfPlayPair(
            iteration=lease.round.iteration,
            prompt_id=demonstration.prompt_id,
            prompt_tokens=demonstration.prompt_tokens,
            real_tokens=demonstration.response_tokens,
            synthetic_tokens=response.tokens,
            finish_reason=response.finish_reason,
            version=lease.version,
        )
        self.outbox.put_nowait((lease.round, task.position, pair))

    async def _deliver(self) -> None:
        while True:
            items = [await self.outbox.get()]
            await asyncio.sleep(DELIVERY_PAUSE_S)
            while not self.outbox.empty():
                items.append(self.outbox.get_nowait())
            for key, members in groupby(items, lambda item: item[0]):
                _, positions, pairs = zip(*members, strict=True)
                await self.buffer.add.remote(self.name, key, positions, list(pairs))

    async def answer(self, prompts: list[list[int]], version: int) -> list[list[int]]:
        """Greedy answers of weights `version` to token prompts, end token included where reached."""
        if not await self.use_version(version):
            return [[] for _ in prompts]  # nobody waits for them any more
        self.in_flight.enter(len(prompts))
        responses = await asyncio.gather(*[self._generate(prompt, greedy=True) for prompt in prompts])
        return [response.tokens for response in responses]

    async def _generate(self, prompt: list[int], seed: int | None = None, greedy: bool = False) -> "Response":
        try:
            return await self.engine.generate(prompt, seed=seed, greedy=greedy)
        finally:
            await self.in_flight.leave()

    async def use_version(self, version: int) -> bool:
        """Load weights `version` unless they are in place; responses under way finish first.

        False if there is no such version any more, as the run went back to a checkpoint.
        """
        async with self.updating:
            manifest = await self.store.get.remote(version)
            if manifest is None:
                return False
            if self.serial != manifest.serial:
                await self.in_flight.at_most(0)
                await self._load(manifest)
            return True

    async def _load(self, manifest: WeightManifest) -> None:
        update = await self.updates.load(manifest)
        self.version, self.serial = manifest.version, manifest.serial
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
