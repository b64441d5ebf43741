"""Membership of the generators."""

import asyncio

import ray
from ray.actor import ActorHandle

from actors import names
from actors.environment import generator_environment
from actors.generator import Generator
from iris_ray.config import RunConfig
from iris_ray.resources import generator_memory


@ray.remote(num_cpus=0)
class GeneratorPool:
    """Starts generators, keeps them playing, spreads evaluation prompts over them."""

    def __init__(self, config: RunConfig, model_path: str, end_token_id: int, parameters: int):
        self.config = config
        self.parameters = parameters
        self.model_path = model_path
        self.end_token_id = end_token_id
        self.starting: dict[str, ActorHandle] = {}
        self.ready: dict[str, ActorHandle] = {}
        self.changed = asyncio.Condition()

    async def run(self) -> None:
        """Start the generators and let them play; returns when the game is over, raises if one fails."""
        async with asyncio.TaskGroup() as tasks:
            for index in range(self.config.generation.count):
                tasks.create_task(self._play(names.generator(index)))

    async def _play(self, name: str) -> None:
        generation = self.config.generation
        handle = names.start(
            Generator,
            self.config.run.name,
            name,
            self.config,
            self.model_path,
            self.end_token_id,
            name,
            num_cpus=generation.num_cpus,
            num_gpus=generation.num_gpus,
            memory=generator_memory(self.config, self.parameters),
            runtime_env={"env_vars": generator_environment(generation)},
        )
        self.starting[name] = handle
        await handle.start.remote()
        async with self.changed:
            self.ready[name] = self.starting.pop(name)
            self.changed.notify_all()
        await handle.play.remote()

    async def wait_ready(self) -> None:
        """Wait until there is a generator to play with."""
        async with self.changed:
            await self.changed.wait_for(lambda: self.ready)

    async def answer(self, prompts: list[list[int]], version: int) -> list[list[int]]:
        """Greedy answers of weights `version`, the prompts spread over all ready generators."""
        await self.wait_ready()
        generators = list(self.ready.values())
        shares = [prompts[index :: len(generators)] for index in range(len(generators))]
        answers: list[list[list[int]]] = await asyncio.gather(
            *[g.answer.remote(share, version) for g, share in zip(generators, shares, strict=True)]
        )
        merged: list[list[int]] = [[] for _ in prompts]
        for index, answered in enumerate(answers):
            merged[index :: len(generators)] = answered
        return merged

    async def status(self) -> list[dict]:
        """One entry a generator; `state` is `starting` or `ready`."""
        ready: list[dict] = await asyncio.gather(*[g.status.remote() for g in self.ready.values()])
        unknown = {"version": None, "generated_tokens": 0, "busy_seconds": 0.0}
        starting = [{"name": name, "state": "starting", **unknown} for name in self.starting]
        return starting + [{"state": "ready", **status} for status in ready]

    async def stop(self) -> None:
        """End every generator with its engine."""
        stops = [generator.stop.remote() for generator in self.ready.values()]
        await asyncio.gather(*stops, return_exceptions=True)
        for generator in [*self.starting.values(), *self.ready.values()]:
            ray.kill(generator)
