"""A run of the service in simulated time, on the service's own rules for buffer, ledger and restarts."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, median
from typing import Any

import numpy as np
from simpy import Environment, Event

from iris_ray.config import RunConfig
from iris_ray.generation.delivery import delivery_pause
from iris_ray.generation.heartbeat import heartbeat_s
from iris_ray.generation.restarts import Restarts
from iris_ray.generation.scaling import autoscaled
from iris_ray.planning.hardware import CallSeconds
from iris_ray.planning.model_shape import ModelShape
from iris_ray.planning.rates import EngineRates, LearnerRates
from iris_ray.planning.server import Cores, Server
from iris_ray.planning.simulated_buffer import Process, SimulatedBuffer
from iris_ray.planning.simulated_generator import SimulatedGenerator
from iris_ray.planning.simulated_learner import SimulatedLearner
from iris_ray.planning.weight_sync import SyncSeconds
from iris_ray.planning.workload import Workload
from iris_ray.round_buffer import RoundBuffer

LARGEST_GRAIN_S = 1.0


@dataclass(frozen=True)
class Costs:
    """All that takes time. `cores`: that processes share, `None` if none does (on GPUs)."""

    shape: ModelShape
    engine: EngineRates
    learner: LearnerRates
    sync: SyncSeconds
    calls: CallSeconds
    between_s: float = 0.0
    checkpoint_s: float = 0.0
    start_s: float = 40.0
    failure_s: float | None = None
    cores: float | None = None
    engine_cores: float = 1.0
    learner_cores: float = 1.0


class Simulation:
    """A game of `iterations` rounds. Its generators are ready when it begins; those that follow start first.

    The lengths of responses follow the run's seed, iteration and position, whoever writes them.
    """

    def __init__(self, config: RunConfig, workload: Workload, costs: Costs, iterations: int | None = None):
        self.env = Environment()
        self.config = config
        self.workload = workload
        self.costs = costs
        self.iterations = iterations or config.schedule.iterations
        self.engine, self.sync, self.calls = costs.engine, costs.sync, costs.calls
        self.between_s = costs.between_s
        # A coarser grain for many generators: a message then stands for several.
        self.grain_s = min(LARGEST_GRAIN_S, delivery_pause() * max(1, config.generation.count / 200))
        self.cores = Cores(costs.cores or float("inf"))
        self.shares_cores = costs.cores is not None
        self.engine_cores, self.learner_cores = costs.engine_cores, costs.learner_cores
        self.sends_weights = config.sync.transport != "object_store"
        self.buffer = SimulatedBuffer(self.env, config, workload, costs.calls)
        self.store = Server(self.env, "weight store")
        self.controller = Server(self.env, "controller")
        self.learner = SimulatedLearner(self)
        self.generators: list[SimulatedGenerator] = []
        self.gone: list[SimulatedGenerator] = []
        self.started = 0
        self.wanted = config.generation.count
        self.starting = 0
        self.deaths = 0
        self.restarts = Restarts(config.generation.max_failures)
        self.rng = np.random.default_rng([config.run.seed, 1])
        self.newest_published = -1
        self.updates: list[float] = []
        self.written_at = 0.0
        self._published: list[tuple[int, Event]] = []
        self._owed = 0
        self._evaluated: Event | None = None
        self._written = self._prompts = self._real = np.empty(0, dtype=int)

    def run(self) -> dict[str, Any]:
        """Play; returns what happened, in simulated seconds."""
        for _ in range(self.wanted):
            self._add_generator()
        over = self.env.process(self.learner.play())
        if self.costs.failure_s:
            self.env.process(self._fail(self.costs.failure_s))
        if self.config.generation.autoscale:
            self.env.process(self._autoscale())
        self.env.run(over)
        return self._result()

    def note_written(self, current: RoundBuffer) -> None:
        """A round was opened: draw its lengths, and note when its last pair is written."""
        prompt_ids = current.pair_ids // current.replicas
        self._prompts, self._real = self.workload.of_prompts(prompt_ids)
        seed = [self.config.run.seed, current.round.iteration]
        self._written = self.workload.draw_written(len(prompt_ids), seed)

        def last_pair(_: Event) -> None:
            self.written_at = self.env.now

        written = self.buffer.all_written()
        assert written.callbacks is not None
        written.callbacks.append(last_pair)

    def lengths(self, positions: Sequence[int]) -> tuple[list[int], list[int], list[int]]:
        """Tokens of prompt, annotated and written response."""
        mine = np.asarray(positions)
        return self._prompts[mine].tolist(), self._real[mine].tolist(), self._written[mine].tolist()

    def step_s(self, current: RoundBuffer, step: int) -> float:
        positions = current.positions(step)
        prompts, real, written = (np.array(part) for part in self.lengths(positions))
        visible = prompts**2 / 2 + real**2 / 2 + written**2 / 2 + prompts * (real + written)
        tokens, predicted = float((prompts + real + written).sum()), float((real + written).sum())
        flops = self.costs.shape.forward_flops(tokens, float(visible.sum()), predicted)
        return self.costs.learner.step_s(flops, tokens, len(positions), step < current.steps_per_epoch)

    def publish(self, version: int) -> None:
        self.newest_published = version
        waiting, self._published = self._published, []
        for wanted, there in waiting:
            if wanted <= version:
                there.succeed()
            else:
                self._published.append((wanted, there))

    def published(self, version: int) -> Process:
        """Wait until this version, or a later one, is there."""
        if self.newest_published < version:
            there = self.env.event()
            self._published.append((version, there))
            yield there

    def evaluate(self, version: int) -> Event:
        """Held-out prompts, spread over all generators; there once all are answered."""
        self._evaluated = self.env.event()
        count = min(self.config.evaluation.prompts, self.workload.holdout)
        self._owed = count
        if not count or not self.generators:
            self._evaluated.succeed()
            return self._evaluated
        for index, generator in enumerate(self.generators):
            if share := len(range(index, count, len(self.generators))):
                self.env.process(generator.evaluate(share, version))
        return self._evaluated

    def answered(self, count: int) -> None:
        self._owed -= count
        if self._owed <= 0 and self._evaluated and not self._evaluated.triggered:
            self._evaluated.succeed()

    @property
    def ready_count(self) -> int:
        return len(self.generators)

    def _add_generator(self) -> None:
        generator = SimulatedGenerator(self, f"generator-{self.started}")
        self.started += 1
        self.generators.append(generator)
        self.env.process(generator.play())

    def _start(self, pause_s: float) -> Process:
        self.starting += 1
        yield self.env.timeout(pause_s + self.costs.start_s)
        self.starting -= 1
        self._add_generator()

    def _fail(self, failure_s: float) -> Process:
        """Each generator dies after `failure_s` on average, at any time alike."""
        while True:
            yield self.env.timeout(self.rng.exponential(failure_s / max(1, len(self.generators))))
            if self.generators:
                self._kill(self.generators[int(self.rng.integers(len(self.generators)))])

    def _kill(self, generator: SimulatedGenerator) -> None:
        self.generators.remove(generator)
        self.gone.append(generator)
        self.deaths += 1
        owed = generator.die()
        self.buffer.give_back(generator.name)
        started = generator.ready_at - self.costs.start_s
        pause_s = self.restarts.died(started, self.env.now, self.buffer.written_in_all, "simulated")
        self.env.process(self._start(pause_s))
        if owed:
            if self.generators:
                self.env.process(self.generators[0].evaluate(owed, self.newest_published))
            else:
                self.answered(owed)  # the next evaluation is asked of those that follow

    def _autoscale(self) -> Process:
        settings = self.config.generation.autoscale
        assert settings is not None
        while True:
            yield self.env.timeout(settings.interval_s)
            current = self.buffer.current
            if current is None or not current.ledger.written or self.starting:
                continue
            batch, ahead = self.config.learner.batch_size, current.ahead
            count = autoscaled(settings, batch, self.wanted, ahead, current.leasable)
            if count > self.wanted:
                self.env.process(self._start(0.0))
            elif count < self.wanted:
                leaving = self.generators.pop()
                self.gone.append(leaving)
                self.buffer.dismiss(leaving.name)
            self.wanted = count

    def _result(self) -> dict[str, Any]:
        now = self.env.now
        everyone = self.generators + self.gone
        ready = sum((each.gone_at or now) - each.ready_at for each in everyone) or 1.0
        rounds = self.learner.rounds
        seconds, pairs = (sum(entry[key] for entry in rounds) for key in ("seconds", "pairs"))
        waited = sum(entry["learner_waited_seconds"] for entry in rounds)
        beats_per_s = len(self.generators) / heartbeat_s(len(self.generators))
        return {
            "iterations": rounds,
            "seconds": now,
            "pairs_per_s": pairs / seconds,
            "learner_idle_share": waited / seconds,
            "generators_idle_share": 1 - sum(each.busy_s for each in everyone) / ready,
            "learner_busy_s": self.learner.busy_s,
            "generators_busy_s": sum(each.busy_s for each in everyone),
            "written_tokens_per_s": sum(each.queue.tokens for each in everyone) / now,
            "staleness_mean": fmean(self.learner.staleness),
            "staleness_max": max(self.learner.staleness),
            "update_seconds_median": median(self.updates),
            "deaths": self.deaths,
            "ledger": vars(self.buffer.books).copy(),
            "busy_share": {
                "sample buffer": self.buffer.server.utilisation,
                "weight store": self.store.utilisation,
                "controller": self.controller.utilisation,
                "generator pool": min(self.calls.heartbeat * beats_per_s, 1.0),
            },
        }
