"""The sample buffer in a simulation: the service's own `RoundBuffer` behind a server."""

from collections import deque
from collections.abc import Generator, Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

from simpy import Environment, Event

from iris_ray.config import RunConfig
from iris_ray.game import Round
from iris_ray.ledger import LedgerCounts
from iris_ray.planning.hardware import CallSeconds
from iris_ray.planning.server import Server
from iris_ray.planning.workload import Workload
from iris_ray.refresh import steps_between
from iris_ray.round_buffer import RoundBuffer, StoredPair, draw_prompts

Process = Generator[Event, Any, Any]


class Lease(NamedTuple):
    """`attempt` tells the rounds apart."""

    iteration: int
    version: int
    positions: list[int]


@dataclass(frozen=True)
class Waiting:
    generator: str
    count: int
    answer: Event


class SimulatedBuffer:
    """Leases, pairs and batches by the service's own rules; the time that calls take by `CallSeconds`."""

    def __init__(self, env: Environment, config: RunConfig, workload: Workload, calls: CallSeconds):
        self.env = env
        self.config = config
        self.workload = workload
        self.calls = calls
        self.server = Server(env, "sample buffer")
        self.current: RoundBuffer | None = None
        self.books = LedgerCounts()
        self.written_in_all = 0
        self.closed = False
        self.dismissed: set[str] = set()
        self._waiting: deque[Waiting] = deque()
        self._missing: set[int] = set()
        self._batch: Event | None = None
        self._all_written: Event | None = None

    def open_round(self, round_: Round) -> RoundBuffer:
        schedule, seed = self.config.schedule, self.config.run.seed
        self.current = RoundBuffer(
            round_,
            draw_prompts(self.workload.prompts, schedule.prompts_per_iteration, seed, round_.iteration),
            epochs=schedule.epochs,
            batch_size=self.config.learner.batch_size,
            max_ahead=self.config.generation.max_ahead,
            seed=seed,
            replicas=self.config.generation.n,
            refresh_every=steps_between(schedule),
            max_staleness=schedule.max_staleness,
            overlap=schedule.overlap,
        )
        self._all_written = self.env.event()
        self._changed()
        return self.current

    def lease(self, generator: str, count: int) -> Process:
        """Waits for work; `None` when there is no more for it."""
        yield self.server.call(self.calls.lease)
        if not self._is_over(generator) and (lease := self._lease(generator, count)):
            return lease
        if self._is_over(generator):
            return None
        waiting = Waiting(generator, count, self.env.event())
        self._waiting.append(waiting)
        return (yield waiting.answer)

    def _is_over(self, generator: str) -> bool:
        return self.closed or generator in self.dismissed

    def _lease(self, generator: str, count: int) -> Lease | None:
        if self.current is None:
            return None
        positions = self.current.lease(generator, count)
        self.server.occupy(self.calls.lease_pair * len(positions))
        round_ = self.current.round
        return Lease(round_.iteration, self.current.version, positions) if positions else None

    def _changed(self) -> None:
        """Every one that waits looks again, in the order of its coming."""
        self.server.occupy(self.calls.wake * len(self._waiting))
        while self._waiting:
            first = self._waiting[0]
            lease = None
            if not self._is_over(first.generator):
                lease = self._lease(first.generator, first.count)
                if lease is None:
                    break
            self._waiting.popleft().answer.succeed(lease)

    def add(self, generator: str, iteration: int, written: Iterable[tuple[int, int]], calls: int) -> Process:
        """Take in pairs: position, and version of the opponent that wrote it; sent in so many calls."""
        pairs = list(written)
        each = self.calls.add + self.calls.add_pair * len(pairs) / calls
        yield self.server.call(each, calls)
        if self.current is None or self.current.round.iteration != iteration:
            return
        for position, version in pairs:
            if self.current.add(generator, position, StoredPair(None, 0, 0, version)):
                self.written_in_all += 1
                self._missing.discard(position)
        if self._batch and not self._missing:
            self._batch.succeed()
            self._batch = None
        ledger = self.current.ledger
        if ledger.written == ledger.size and self._all_written and not self._all_written.triggered:
            self._all_written.succeed()

    def batch(self, step: int) -> Event:
        """There once the whole batch is written."""
        assert self.current is not None
        needed = self.current.positions(step) if self.current.overlap else range(self.current.ledger.size)
        self._missing = {position for position in needed if not self.current.ledger.is_written([position])}
        self._batch = self.env.event()
        batch = self._batch
        if not self._missing:
            batch.succeed()
            self._batch = None
        return batch

    def commit(self, step: int) -> Process:
        """Returns the staleness of the step's pairs in versions."""
        assert self.current is not None
        yield self.server.call(self.calls.share + self.calls.share_pair * self.config.learner.batch_size)
        self.current.commit(step)
        self._changed()
        return self.current.staleness(step)

    def all_written(self) -> Event:
        assert self._all_written is not None
        return self._all_written

    def give_back(self, generator: str) -> None:
        self.dismissed.add(generator)
        if self.current:
            self.current.ledger.give_back(generator)
        self._changed()

    def dismiss(self, generator: str) -> None:
        self.dismissed.add(generator)
        for waiting in [each for each in self._waiting if each.generator == generator]:
            self._waiting.remove(waiting)
            waiting.answer.succeed(None)

    def close_round(self) -> None:
        assert self.current is not None
        self.books += self.current.ledger.counts()
        self.current = None

    def close(self) -> None:
        self.closed = True
        self._changed()
