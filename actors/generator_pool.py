"""Membership of the generators: who starts, serves, leaves, and who takes the place of the dead."""

import asyncio
import time
from collections import deque
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Literal

import ray
from ray.actor import ActorHandle

from actors import names
from actors.environment import generator_environment
from actors.failures import generator_failure, is_parity_error
from actors.generator import Generator
from iris_ray.config import RunConfig
from iris_ray.contracts import Answer, Question
from iris_ray.errors import ConfigError
from iris_ray.generation.heartbeat import heartbeat_s
from iris_ray.generation.restarts import Restarts
from iris_ray.generation.scaling import autoscaled
from iris_ray.resources import generator_memory

POLL_S = 0.2
LEAVE_TIMEOUT_S = 30

RATE_BEATS = 10  # heartbeats that tokens per second are counted over

State = Literal["starting", "ready", "draining", "failed"]


@dataclass(eq=False)
class Member:
    """A generator, which is `placed` once there are resources for it."""

    name: str
    handle: ActorHandle
    state: State = "starting"
    placed: bool = False
    life: asyncio.Task[None] = field(init=False)
    started: float = field(default_factory=time.monotonic)
    ready_since: float = float("inf")
    drain_until: float = float("inf")
    fault: BaseException | None = None
    beat: dict[str, Any] = field(
        default_factory=lambda: {
            "version": None,
            "generated_tokens": 0,
            "busy_seconds": 0.0,
            "requests": 0,
        }
    )
    counts: deque[tuple[float, int]] = field(default_factory=lambda: deque(maxlen=RATE_BEATS))

    def take(self, beat: dict[str, Any]) -> None:
        self.beat = beat
        self.counts.append((time.monotonic(), beat["generated_tokens"]))

    @property
    def tokens_per_s(self) -> float:
        """Over the last heartbeats."""
        if len(self.counts) < 2:
            return 0.0
        (begin, first), (end, last) = self.counts[0], self.counts[-1]
        return (last - first) / (end - begin)

    @property
    def status(self) -> dict[str, Any]:
        ready = max(time.monotonic() - self.ready_since, 0.0)
        told = {"name": self.name, "state": self.state, "placed": self.placed, "ready_seconds": ready}
        return told | self.beat | {"tokens_per_s": self.tokens_per_s}


@ray.remote(num_cpus=0)
class GeneratorPool:
    """Keeps as many generators playing as are wanted, spreads evaluation prompts over them.

    A generator that dies, hangs or holds weights that are not proven is replaced by a new one under a new
    name, so that nothing that the old one still sends can be taken for the new one's.
    """

    def __init__(self, config: RunConfig, model_path: str, end_token_id: int, parameters: int):
        self.config = config
        self.parameters = parameters
        self.model_path = model_path
        self.end_token_id = end_token_id
        self.buffer = names.find(config.run.name, names.SAMPLE_BUFFER)
        self.controller = names.find(config.run.name, names.CONTROLLER)
        self.store = names.find(config.run.name, names.WEIGHT_STORE)
        self.wanted = config.generation.count
        self.members: dict[str, Member] = {}
        self.started = 0
        self.restarts = Restarts(config.generation.max_failures)
        self.not_before = 0.0
        self.proven = False
        self.over = False
        self.past = {"generated_tokens": 0, "busy_seconds": 0.0, "ready_seconds": 0.0}
        self.deaths: list[dict[str, str]] = []
        self.changed = asyncio.Condition()

    async def run(self) -> None:
        """Keep the generators playing; returns when the game is over, raises what a user has to mend."""
        async with asyncio.TaskGroup() as tasks:
            scaling = tasks.create_task(self._autoscale()) if self.config.generation.autoscale else None
            while not self.over:
                self._balance(tasks)
                await asyncio.sleep(POLL_S)
            if scaling:
                scaling.cancel()
            for member in self.members.values():
                if member.state == "starting":  # the others end by themselves
                    member.life.cancel()

    async def scale(self, count: int) -> None:
        """Have `count` generators from now on: new ones start, or the newest leave once they are done."""
        if count < 1:
            raise ConfigError(f"{count} generators: there must be at least one.")
        self.wanted = count

    async def close(self) -> None:
        """End the game: generators finish and leave."""
        self.over = True
        await self.buffer.close.remote()

    async def wait_ready(self) -> None:
        """Wait until there is a generator to play with."""
        async with self.changed:
            await self.changed.wait_for(self._ready)

    async def answer(self, questions: list[Question], version: int) -> list[Answer]:
        """Greedy answers of weights `version`, the questions spread over all ready generators.

        What a generator that dies owes is asked of the others.
        """
        answers: dict[int, Answer] = {}
        while left := [index for index in range(len(questions)) if index not in answers]:
            await self.wait_ready()
            ready = self._ready()
            shares = [left[index :: len(ready)] for index in range(len(ready))]
            asked: list[Any] = [
                member.handle.answer.remote([questions[index] for index in share], version)
                for member, share in zip(ready, shares, strict=True)
            ]
            answered = await asyncio.gather(*asked, return_exceptions=True)
            for member, share, answer in zip(ready, shares, answered, strict=True):
                if not isinstance(answer, BaseException):
                    answers |= zip(share, answer, strict=True)
                elif generator_failure(answer) is None:
                    raise answer
                else:
                    member.fault = answer
            if len(answers) < len(questions):
                await asyncio.sleep(heartbeat_s(len(ready)))  # until those that failed are out
        return [answers[index] for index in range(len(questions))]

    async def status(self) -> dict[str, Any]:
        """`generators`: one entry each; `wanted`: how many there should be; `deaths`: who died, and why.

        `in_all` adds up what all generators did, also those that are gone.
        """
        generators = [member.status for member in self.members.values()]
        return {
            "generators": generators,
            "wanted": self.wanted,
            "deaths": self.deaths,
            "in_all": {key: self.past[key] + sum(g[key] for g in generators) for key in self.past},
        }

    async def stop(self) -> None:
        """End every generator at once."""
        for member in self.members.values():
            ray.kill(member.handle)

    def _ready(self) -> list[Member]:
        return [member for member in self.members.values() if member.state == "ready"]

    def _balance(self, tasks: asyncio.TaskGroup) -> None:
        """Start generators or have some leave until there are as many as wanted."""
        staying = [m for m in self.members.values() if m.state not in ("draining", "failed")]
        if len(staying) < self.wanted and time.monotonic() >= self.not_before:
            for _ in range(self.wanted - len(staying)):
                self._start(tasks)
        # The newest leave, and before them those that have nothing to finish.
        newest = staying[::-1]
        leaving = [m for m in newest if m.state != "ready"] + [m for m in newest if m.state == "ready"]
        for member in leaving[: max(len(staying) - self.wanted, 0)]:
            if member.state == "ready":
                member.drain_until = time.monotonic() + self.config.generation.drain_timeout_s
                self.buffer.dismiss.remote(member.name)
            else:
                member.life.cancel()
            member.state = "draining"

    def _start(self, tasks: asyncio.TaskGroup) -> None:
        generation = self.config.generation
        name = names.generator(self.started)
        self.started += 1
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
            resources=generation.resources,
            label_selector=generation.labels,
            memory=generator_memory(self.config, self.parameters),
            runtime_env={"env_vars": generator_environment(generation)},
        )
        member = self.members[name] = Member(name, handle)
        member.life = tasks.create_task(self._live(member))

    async def _live(self, member: Member) -> None:
        """A generator's life, from its start to its end."""
        try:
            await self._serve(member)
        except Exception as error:
            reason = generator_failure(error)
            if reason is None or (not self.proven and is_parity_error(error)):
                raise  # a user has to mend it: where the first engine differs, all do
            await self._replace(member, reason)
            member.state = "failed"
        finally:
            ray.kill(member.handle)
            await self.store.leave.remote(member.name)
            # What it leased goes to others, and nothing that it still sends is taken.
            await self.buffer.give_back.remote(member.name)
            async with self.changed:
                del self.members[member.name]
                for key in self.past:
                    self.past[key] += member.status[key]
                self.changed.notify_all()

    async def _serve(self, member: Member) -> None:
        await member.handle.__ray_ready__.remote()
        member.placed = True
        await _within(
            member.handle.start.remote(), self.config.run.start_timeout_s, f"{member.name} to start"
        )
        async with self.changed:
            member.state, member.ready_since, self.proven = "ready", time.monotonic(), True
            self.changed.notify_all()
        self.controller.record_generator.remote(member.name, "ready", None)
        play = asyncio.ensure_future(member.handle.play.remote())
        timeout, what = self.config.generation.hang_timeout_s, f"the engine of {member.name} to answer"
        while not (await asyncio.wait({play}, timeout=heartbeat_s(len(self.members))))[0]:
            member.take(await _within(member.handle.heartbeat.remote(), timeout, what))
            if member.fault:
                raise member.fault
            if time.monotonic() > member.drain_until:
                break
        else:
            await play
            over = time.monotonic() + LEAVE_TIMEOUT_S  # the game, or else this generator's part in it
            until = member.drain_until if member.state == "draining" else over
            with suppress(TimeoutError):  # answers that it still owes are asked of other generators
                await asyncio.wait_for(member.handle.leave.remote(), until - time.monotonic())
        left = "drained" if member.state == "draining" else "finished"
        self.controller.record_generator.remote(member.name, left, None)

    async def _replace(self, member: Member, reason: str) -> None:
        """Take note of a death; another generator will start."""
        self.deaths.append({"name": member.name, "reason": reason})
        self.controller.record_generator.remote(member.name, "died", reason)
        written = (await self.buffer.status.remote())["written_in_all"]
        now = time.monotonic()
        self.not_before = now + self.restarts.died(member.started, now, written, reason)

    async def _autoscale(self) -> None:
        settings = self.config.generation.autoscale
        assert settings is not None
        while True:
            await asyncio.sleep(settings.interval_s)
            status = await self.buffer.status.remote()
            if status["paused"] or not status["written"]:
                continue  # that nothing is written, or nothing yet, is no lack of generators
            count = autoscaled(
                settings, self.config.learner.batch_size, self.wanted, status["ahead"], status["leasable"]
            )
            # One that starts is still to have its effect, but may wait for resources for ever.
            states = {member.state for member in self.members.values()}
            if states <= {"ready"} or (count < self.wanted and "draining" not in states):
                await self.scale(count)


async def _within(answer: Any, seconds: float, what: str) -> Any:
    try:
        return await asyncio.wait_for(answer, seconds)
    except TimeoutError as error:
        raise TimeoutError(f"waited {seconds:g} s for {what}") from error
