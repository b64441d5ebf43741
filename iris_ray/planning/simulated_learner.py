"""The learner in a simulation: rounds, steps, weights published on the way."""

from typing import TYPE_CHECKING, Any

from simpy import AnyOf, Event

from iris_ray.game import Round
from iris_ray.planning.simulated_buffer import Process
from iris_ray.refresh import newest_version, next_version, steps_between

if TYPE_CHECKING:
    from iris_ray.planning.simulation import Simulation

TOGETHER_S = 0.25  # that those of the last broadcast get to come once more
PIECES = 4  # of a step: how often it looks at who else computes on its cores


class SimulatedLearner:
    """Follows `actors/learner_rank.py`; `rounds` holds one entry for each iteration that is over."""

    def __init__(self, simulation: "Simulation"):
        self.simulation = simulation
        self.env = simulation.env
        self.rounds: list[dict[str, Any]] = []
        self.staleness: list[int] = []
        self.busy_s = 0.0
        self._comers: list[Event] = []
        self._came = self.env.event()

    def play(self) -> Process:
        simulation = self.simulation
        config, buffer = simulation.config, simulation.buffer
        every, version = steps_between(config.schedule), 0
        for iteration in range(1, simulation.iterations + 1):
            yield from self._publish(version)
            round_ = Round(iteration, version, 1.0, 0.0, "")
            if every:
                yield from self._await(simulation.evaluate(version))
            yield simulation.controller.call(simulation.calls.record)
            current = buffer.open_round(round_)
            beside = None if every else simulation.evaluate(version)
            begin, waited = self.env.now, 0.0
            simulation.note_written(current)
            for step in range(current.steps):
                asked = self.env.now
                yield from self._await(buffer.batch(step))
                waited += self.env.now - asked
                yield from self._compute(simulation.step_s(current, step))
                self.staleness += yield from buffer.commit(step)
                simulation.controller.occupy(simulation.calls.record, 1)
                done = step + 1
                saves = config.checkpoint.every_steps
                if saves and done % saves == 0 and done < current.steps:
                    yield self.env.timeout(simulation.costs.checkpoint_s)
                if every and done % every == 0 and done < current.steps:
                    yield from self._publish(newest_version(round_, done, every))
            seconds = self.env.now - begin
            pairs = config.schedule.epochs * len(current.pair_ids)
            self.rounds.append(
                {
                    "iteration": iteration,
                    "seconds": seconds,
                    "pairs": pairs,
                    "pairs_per_s": pairs / seconds,
                    "generation_seconds": simulation.written_at - begin,
                    "learner_waited_seconds": waited,
                }
            )
            if beside is not None:
                yield from self._await(beside)
            buffer.close_round()
            version = next_version(round_, current.steps, every)
            yield self.env.timeout(simulation.between_s)
        buffer.close()

    def _compute(self, seconds: float) -> Process:
        cores, wanted = self.simulation.cores, self.simulation.learner_cores
        begin = self.env.now
        for _ in range(PIECES if self.simulation.shares_cores else 1):
            slower = cores.enter(wanted)
            yield self.env.timeout(seconds / PIECES * slower if self.simulation.shares_cores else seconds)
            cores.leave(wanted)
        self.busy_s += self.env.now - begin
        if self._comers:
            yield from self._send()

    def _publish(self, version: int) -> Process:
        simulation = self.simulation
        if not simulation.sends_weights:
            yield self.env.timeout(simulation.sync.blocked)
        yield simulation.store.call(simulation.calls.get)
        simulation.publish(version)

    def _await(self, event: Event) -> Process:
        """Wait for it, and send weights to those who come meanwhile."""
        while not event.triggered:
            if not self._comers:
                yield AnyOf(self.env, [event, self._came])
            if self._comers:
                yield from self._send()
        if not event.processed:
            yield event

    def come(self) -> Event:
        """A generator comes for weights; the event is there once it got them."""
        got = self.env.event()
        self._comers.append(got)
        if not self._came.triggered:
            self._came.succeed()
        return got

    def _send(self) -> Process:
        if len(self._comers) < self.simulation.ready_count:
            yield self.env.timeout(TOGETHER_S)
        comers, self._comers, self._came = self._comers, [], self.env.event()
        yield self.env.timeout(self.simulation.sync.blocked)
        for got in comers:
            got.succeed()
