"""A generator in a simulation: leases, writes, delivers, takes newer weights."""

from collections.abc import Iterable
from typing import TYPE_CHECKING

from simpy import Event, Resource

from iris_ray.generation.delivery import delivery_pause
from iris_ray.planning.engine_queue import EngineQueue, Request
from iris_ray.planning.simulated_buffer import Lease, Process

if TYPE_CHECKING:
    from iris_ray.planning.simulation import Simulation

EVALUATION = -1  # in place of a position
Tag = tuple[int, int, int]  # iteration, position, version that began it


class SimulatedGenerator:
    """Follows `actors/generator.py`: an engine-full waits inside the engine, pairs travel together.

    What is finished within a grain of time travels in one simulated call, which counts as as many as a real
    generator would send.
    """

    def __init__(self, simulation: "Simulation", name: str):
        self.simulation = simulation
        self.env = simulation.env
        self.name = name
        self.full = simulation.config.generation.concurrency
        self.queue: EngineQueue[Tag] = EngineQueue(simulation.engine, self.full)
        self.version = -1
        self.is_dead = False
        self.busy_s = 0.0
        self.ready_at = self.env.now
        self.gone_at: float | None = None
        self._stands_still_for = 0.0
        self._work: Event | None = None
        self._updating = Resource(self.env)
        self._room: list[tuple[int, Event]] = []
        self._outbox: list[Tag] = []
        self._delivering = False
        self._latency = 0.0
        self.env.process(self._run_engine())

    def play(self) -> Process:
        buffer = self.simulation.buffer
        while not self.is_dead:
            yield from self._at_most(self.full)
            lease: Lease | None = yield from buffer.lease(self.name, self.full)
            if lease is None or self.is_dead:
                break
            yield from self.use_version(lease.version)
            if not self.is_dead:
                self._admit(lease)
        if not self.is_dead:
            yield from self._at_most(0)
        self.gone_at = self.gone_at or self.env.now

    def _admit(self, lease: Lease) -> None:
        simulation = self.simulation
        prompts, real, written = simulation.lengths(lease.positions)
        scores = simulation.config.learner.reference == "generator"
        self.work_on(
            Request((lease.iteration, position, self.version), prompt, length, scores * (prompt + other))
            for position, prompt, other, length in zip(lease.positions, prompts, real, written, strict=True)
        )

    def work_on(self, requests: Iterable[Request[Tag]]) -> None:
        self.queue.admit(requests)
        if self._work:
            self._work.succeed()
            self._work = None

    def evaluate(self, count: int, version: int) -> Process:
        """Answer so many held-out prompts; the simulation counts the answers."""
        yield from self.use_version(version)
        workload, seed = self.simulation.workload, [self.simulation.config.run.seed, version, count]
        lengths = workload.draw_written(count, seed)
        prompt = int(workload.prompt.mean())
        self.work_on(Request((0, EVALUATION, version), prompt, int(length)) for length in lengths)

    def use_version(self, version: int) -> Process:
        """Newer weights, unless they are in place: fetched beside writing, loaded while it stands still."""
        simulation = self.simulation
        yield simulation.store.call(simulation.calls.get)
        if self.version >= version:
            return
        yield from simulation.published(version)
        with self._updating.request() as turn:
            yield turn
            if self.version >= version or self.is_dead:
                return
            yield self.env.timeout(simulation.sync.ready)
            if simulation.config.generation.in_flight == "finish":
                yield from self._at_most(0)
            begin, newest = self.env.now, simulation.newest_published
            if simulation.sends_weights:
                yield simulation.learner.come()
            self._stands_still_for += simulation.sync.still
            yield self.env.timeout(simulation.sync.still + simulation.sync.probe)
            self.version = newest
            simulation.updates.append(self.env.now - begin)
            yield simulation.controller.call(simulation.calls.record)

    def _at_most(self, count: int) -> Process:
        if self.queue.in_flight > count and not self.is_dead:
            there = self.env.event()
            self._room.append((count, there))
            yield there

    def _run_engine(self) -> Process:
        simulation = self.simulation
        while not self.is_dead:
            if not self.queue.in_flight:
                self._work = self.env.event()
                yield self._work
            if self._stands_still_for:
                still, self._stands_still_for = self._stands_still_for, 0.0
                yield self.env.timeout(still)
            # Where places are free, what a lease brings must not wait for long.
            grain = simulation.grain_s if self.queue.is_full else simulation.grain_s / 5
            seconds, finished = self.queue.advance(grain, max((count for count, _ in self._room), default=0))
            slower = simulation.cores.enter(simulation.engine_cores)
            yield self.env.timeout(seconds * slower)
            simulation.cores.leave(simulation.engine_cores)
            self.busy_s += seconds * slower
            if self.is_dead:
                return
            self._finish(finished, seconds * slower)

    def _finish(self, finished: list[Tag], seconds: float) -> None:
        answers = sum(tag[1] == EVALUATION for tag in finished)
        if answers:
            self.simulation.answered(answers)
        self._outbox += [tag for tag in finished if tag[1] != EVALUATION] if answers else finished
        if self._outbox and not self._delivering:
            self._delivering = True
            self.env.process(self._deliver(seconds))
        for count, there in self._room:
            if self.queue.in_flight <= count:
                there.succeed()
        self._room = [waiting for waiting in self._room if not waiting[1].triggered]

    def _deliver(self, seconds: float) -> Process:
        while self._outbox and not self.is_dead:
            items, self._outbox = self._outbox, []
            begin = self.env.now
            pause = delivery_pause(self._latency) + self._latency
            calls = max(1, min(len(items), round(seconds / pause)))
            by_iteration: dict[int, list[tuple[int, int]]] = {}
            for iteration, position, version in items:
                by_iteration.setdefault(iteration, []).append((position, version))
            for iteration, pairs in by_iteration.items():
                yield from self.simulation.buffer.add(self.name, iteration, pairs, calls)
            self._latency = (self.env.now - begin) / calls
            seconds = self.env.now - begin
        self._delivering = False

    def die(self) -> int:
        """Returns how many evaluation prompts it owed."""
        self.is_dead, self.gone_at = True, self.env.now
        owed = sum(tag[1] == EVALUATION for tag in self.queue.clear())
        for waiting in [there for _, there in self._room] + ([self._work] if self._work else []):
            waiting.succeed()
        self._room, self._work = [], None
        return owed
