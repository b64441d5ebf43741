"""A generator: one vLLM engine that plays the opponent."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

import ray

from actors import names
from actors.pair_writer import PairWriter
from iris_ray.config import RunConfig
from iris_ray.contracts import Answer, Demonstration, Question, SelfPlayPair
from iris_ray.generation.cores import OwnCores
from iris_ray.generation.in_flight import InFlight
from iris_ray.leases import RoundKey, Task
from iris_ray.weights.manifest import WeightManifest, WeightsLost

if TYPE_CHECKING:
    from starlette.types import Message

    from actors.weight_updates import WeightUpdates
    from iris_ray.generation.policy_engine import PolicyEngine, Response

RETRY_S = 0.5


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
        self.serial = 0  # of the weights in place; 0 while there are none that were proven
        self.updating = asyncio.Lock()
        self.proven = asyncio.Event()  # set while the weights in place have passed the probe
        self.failure: BaseException | None = None  # of an update, after which none is tried any more
        self.in_flight = InFlight()
        self.answering = InFlight()  # of these, what one version must answer from its first token to its last
        self.visits = InFlight()  # requests of people, by way of the gateway
        self.generated_tokens = 0

    async def start(self) -> None:
        """Start the engine, load the newest weights, pass the probe: only then is it ready."""
        # Not above: whoever asks Ray for this actor imports this file too, and these take seconds.
        from actors.weight_updates import WeightUpdates
        from iris_ray.generation.policy_engine import PolicyEngine

        if self.config.generation.bind_cores:
            self.cores = OwnCores(int(self.config.generation.num_cpus))
        reports_as = f"{self.config.run.name}/{self.name}" if self.config.generation.engine_metrics else None
        self.engine = PolicyEngine(self.config, self.model_path, self.end_token_id, reports_as=reports_as)
        self.updates = WeightUpdates(self.config, self.engine, self.name, self.store)
        while await self.use_version(None) is None:
            await asyncio.sleep(RETRY_S)  # the learner that published them is gone; the next one does anew

    async def play(self) -> None:
        """Write pairs until the game is over or the buffer has no more work for this generator."""
        full = self.config.generation.concurrency
        writer = PairWriter(self.name, self.buffer, full, self.in_flight, self.use_version, self._write)
        await writer.play()

    async def _write(self, round_: RoundKey, task: Task) -> SelfPlayPair:
        demonstration = task.demonstration
        response, version, reference = await self._respond(demonstration, task.seed)
        self.generated_tokens += len(response.tokens)
        await self.proven.wait()  # weights that fail the probe may have written some of it
        return SelfPlayPair(
            iteration=round_.iteration,
            prompt_id=demonstration.prompt_id,
            prompt_tokens=demonstration.prompt_tokens,
            real_tokens=demonstration.response_tokens,
            synthetic_tokens=response.tokens,
            finish_reason=response.finish_reason,
            version=version,
            version_spans=response.version_spans,
            replica=task.replica,
            reference=reference,
        )

    async def _respond(self, demonstration: Demonstration, seed: int) -> tuple["Response", int, list[float]]:
        """A response y', its opponent's version, and log p of y and y' under it if the learner asks for them.

        Where several versions wrote y', both are scored in full under the last of them, or a newer one that
        came first: log-ratios are those of one model.
        """
        prompt, real = demonstration.prompt_tokens, demonstration.response_tokens
        try:
            if self.config.learner.reference == "learner":
                response = await self.engine.generate(prompt, seed=seed)
                return response, response.version_spans[-1].version, []
            response, (scores, version) = await asyncio.gather(
                self.engine.generate(prompt, seed=seed, with_logprob=True),
                self.engine.score(prompt, [real]),
            )
            if {span.version for span in response.version_spans} == {version}:
                assert response.logprob is not None
                return response, version, [*scores, response.logprob]
            scores, version = await self.engine.score(prompt, [real, response.tokens])
            return response, version, scores
        finally:
            self.in_flight.leave()

    async def answer(self, questions: list[Question], version: int) -> list[Answer]:
        """Greedy answers of weights `version`; `WeightsLost` if the learner went back to a checkpoint."""
        if await self.use_version(version) is None:
            raise WeightsLost(f"{self.name} was to answer with weights version {version}, which are gone.")
        self.in_flight.enter(len(questions))
        self.answering.enter(len(questions))
        return await asyncio.gather(*map(self._answer, questions))

    async def _answer(self, question: Question) -> Answer:
        try:
            logprobs, _ = await self.engine.score(question.prompt, question.likely)
            if question.max_tokens == 0:
                return Answer([], None, logprobs)
            with_logprob = bool(question.likely)
            response = await self.engine.generate(
                question.prompt, greedy=True, with_logprob=with_logprob, max_tokens=question.max_tokens
            )
            return Answer(response.tokens, response.logprob, logprobs)
        finally:
            self.answering.leave()
            self.in_flight.leave()

    async def respond(self, method: str, path: str, body: dict[str, Any] | None) -> "AsyncIterator[Message]":
        """Answer an OpenAI-compatible request: the ASGI messages of vLLM's response, as they come."""
        async with self.updating:  # an update that waits for what is under way does not wait for ever
            if self.failure:
                raise self.failure
            self.visits.enter(1)
        try:
            async with aclosing(self.engine.respond(method, path, body)) as messages:
                async for message in messages:
                    yield message
        finally:
            self.visits.leave()

    async def use_version(self, version: int | None, attempt: int | None = None) -> int | None:
        """Load weights `version`, or the newest if they are gone or `None`, unless they are in place.

        Responses under way finish first, or go on, by `generation.in_flight`; greedy answers always finish.
        Returns the version in place; `None` if the one that was asked for is of no more use, as the run went
        back to a checkpoint since `attempt`, by default since now.
        """
        # Not under the lock: who asks on behalf of a learner that died since may wait for ever.
        manifest = await self.store.get.remote(version, attempt)
        if manifest is None:
            return None
        finish = [self.answering]
        if self.config.generation.in_flight == "finish":
            finish = [self.in_flight, self.visits]
        async with self.updating:
            if self.failure:
                raise self.failure
            if self.serial != manifest.serial:
                try:
                    await self.updates.prepare(manifest)
                    for under_way in finish:
                        await under_way.at_most(0)
                    await self._load(manifest)
                except WeightsLost:  # with the learner, which goes back to a checkpoint
                    return None
                except Exception as error:
                    self.failure = error
                    raise
            return self.version

    async def _load(self, manifest: WeightManifest) -> None:
        self.serial = 0
        self.proven.clear()
        loaded, update = await self.updates.load(manifest)
        self.version, self.serial = loaded.version, loaded.serial
        self.proven.set()
        await self.controller.record_update.remote(update)

    async def heartbeat(self) -> dict[str, Any]:
        """How it stands, once its engine answers; raises `EngineError` if that died."""
        await self.engine.check_alive()
        return {
            "version": self.version,
            "generated_tokens": self.generated_tokens,
            "busy_seconds": self.in_flight.busy_seconds,
            "requests": self.in_flight.count,
        }

    async def leave(self) -> None:
        """Finish what is under way for others and end the engine's processes."""
        await self.in_flight.at_most(0)
        await self.visits.at_most(0)
        self.engine.shutdown()
