"""One rank of the learner among the run's actors."""

import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NoReturn

import ray
import ray.train
import torch.distributed as dist

from actors import names
from actors.learner_events import Event, LearnerEvents
from actors.stored_pairs import fetch
from actors.weight_publishing import WeightPublisher
from iris_ray.config import RunConfig
from iris_ray.contracts import SelfPlayPair
from iris_ray.errors import ResourceError, RunStopped
from iris_ray.refresh import newest_version, steps_between
from iris_ray.round_buffer import Share

if TYPE_CHECKING:
    from iris_ray.learner.learner_state import RoundProgress
    from iris_ray.learner.self_play_learner import SelfPlayLearner

PAUSE_S = 0.01  # between two looks


class LearnerRank:
    """Brings the plain learner of one rank together with the run's actors."""

    def __init__(self, config: RunConfig, learner: "SelfPlayLearner"):
        self.config = config
        self.learner = learner
        self.rank = ray.train.get_context().get_world_rank()
        self.ranks = ray.train.get_context().get_world_size()
        self.refresh_every = steps_between(config.schedule)
        self.buffer = names.find(config.run.name, names.SAMPLE_BUFFER)
        self.controller = names.find(config.run.name, names.CONTROLLER)
        self.store = names.find(config.run.name, names.WEIGHT_STORE)
        self.weights: WeightPublisher
        self.events: LearnerEvents
        self.paused: bool
        self.publishing: tuple[int, Future[ray.ObjectRef]] | None = None
        learner.before_update = self.copied
        probe = self.wait(self.buffer.probe.remote(), "the probe")
        self.weights = WeightPublisher(config, learner, self.store, probe, self.rank, self.ranks)
        self.recording: ray.ObjectRef | None = None
        taken, self.paused = self.wait(self.controller.standing_orders.remote(), "the orders that stand")
        self.events = LearnerEvents(
            self.controller, self.weights.broadcasts, self.rank, self.ranks, orders_taken=taken
        )
        learner.stopwatch.lap()  # from here on its time counts

    def publish(self, version: int, opponent: bool = False) -> None:
        """List the policy's weights, or the opponent's, as `version` for generators to pull."""
        self.start_publishing(version, opponent)
        self.published()

    def start_publishing(self, version: int, opponent: bool = False) -> None:
        """The same, but weights are copied beside what comes next, until the next update of the policy."""
        self.published()
        with self.learner.stopwatch("publish"):
            self.publishing = version, self.weights.publish(version, opponent)

    def copied(self) -> None:
        """Wait until what is being published is copied: from then on the policy may change."""
        if self.publishing:
            _, listed = self.publishing
            with self.learner.stopwatch("publish"):
                listed.result()

    def published(self) -> None:
        """Wait until what is being published is listed."""
        if self.publishing:
            (version, listed), self.publishing = self.publishing, None
            with self.learner.stopwatch("publish"):
                self.wait(listed.result(), f"the weight store to take version {version}")

    def next_round(self, version: int) -> "RoundProgress | None":
        """Open the next round, on every rank; `None` when the game is over."""
        from iris_ray.learner.learner_state import RoundProgress

        what = f"generators to load version {version} and finish the evaluation"
        with self.learner.stopwatch("between"):
            opened = self.ask(lambda: self.controller.next_round.remote(version), what)
        if opened is None:
            return None
        progress = RoundProgress(*opened)
        self.learner.start_round(progress.round.iteration, progress.steps)
        self.weights.policy_moves(keeps_opponent=self.refresh_every is None)
        return progress

    def play(self, progress: "RoundProgress", checkpoint: Callable[..., None]) -> None:
        """Train the rest of a round, on the opponent's first pairs while it writes the others.

        Calls `checkpoint` every `checkpoint.every_steps` steps, and as `ordered=True` when it is. Raises
        `RunStopped`.
        """
        learner, steps = self.learner, progress.steps
        share: ray.ObjectRef = self.buffer.share.remote(progress.step, self.rank, self.ranks)
        while progress.step < steps:
            step, round_ = progress.step, progress.round
            what = f"batch {step + 1} of {steps} in iteration {round_.iteration}"
            with learner.stopwatch("wait"):
                batch = self._next_batch(share, what, checkpoint)
            if step + 1 < steps:
                share = self.buffer.share.remote(step + 1, self.rank, self.ranks)
            with learner.stopwatch("fetch"):
                pairs = _fetch(batch)
            result = learner.step(pairs, round_.alpha)
            if not result.report.skipped:
                progress.tail.add(result.rows)
            if step == 0:
                start = result.rows.means(learner.objective, round_.alpha)
                what = "the controller to set the order"
                opened = self.ask(lambda start=start: self.controller.round_started.remote(start), what)
                progress.round = opened
            seconds = learner.stopwatch.lap()
            if self.rank == 0:
                staleness = self.buffer.commit.remote(step)
                self._recorded()
                # Nobody waits here for the buffer: Ray gives its answer to the controller.
                self.recording = self.controller.record_step.remote(result.report, staleness, seconds)
            progress.step += 1
            if self.refresh_every and progress.step % self.refresh_every == 0 and progress.step < steps:
                self.start_publishing(newest_version(progress.round, progress.step, self.refresh_every))
            every = self.config.checkpoint.every_steps
            if every and progress.step % every == 0 and progress.step < steps:
                self._recorded()
                checkpoint()
        self._recorded()
        end = progress.tail.means(learner.objective, progress.round.alpha)
        what = "the evaluation and the archive of the round to end"
        with learner.stopwatch("between"):
            self.ask(lambda: self.controller.round_ended.remote(end), what)

    def _next_batch(self, share: ray.ObjectRef, what: str, checkpoint: Callable[..., None]) -> Share:
        """The batch, once it is there; what a person orders comes first. Raises `RunStopped`."""
        if not ray.wait([share], timeout=0)[0]:
            self.published()  # who has to wait anyway sees at once if that failed
        while (event := self._next_event(None if self.paused else share, what, orders=True)) != "there":
            if event == "generators":
                self.weights.send()
                continue
            self._recorded()
            if event in ("checkpoint", "stop"):
                checkpoint(ordered=True)
            else:
                self.paused = event == "pause"
            self.events.obeyed()
            if event == "stop":
                raise RunStopped
        batch: Share = self.wait(share, what)
        return batch

    def _recorded(self) -> None:
        """Wait until the last step is in the records: Ray may have later calls overtake it."""
        if self.recording is not None:
            self.wait(self.recording, "the controller to take note of a step")
            self.recording = None

    def _next_event(self, awaited: ray.ObjectRef | None, what: str, orders: bool = False) -> Event:
        event = self.events.next(awaited, self.config.run.wait_timeout_s, orders)
        if event == "late":
            self._late(what)
        return event

    def ask(self, question: Callable[[], ray.ObjectRef], what: str) -> Any:
        """Rank 0 asks; all ranks get the answer."""
        reference = question() if self.rank == 0 else None
        while self._next_event(reference, what) != "there":
            self.weights.send()
        answer = [self.wait(reference, what) if reference else None]
        dist.broadcast_object_list(answer)
        return answer[0]

    def wait(self, reference: ray.ObjectRef, what: str) -> Any:
        """What `reference` stands for. Raises `ResourceError` after `run.wait_timeout_s`."""
        timeout = self.config.run.wait_timeout_s
        try:
            return ray.get(reference, timeout=timeout)
        except ray.exceptions.GetTimeoutError:
            self._late(what)

    def wait_until(self, condition: Callable[[], bool], what: str) -> None:
        """The same for what is no reference."""
        deadline = time.monotonic() + self.config.run.wait_timeout_s
        while not condition():
            if time.monotonic() > deadline:
                self._late(what)
            time.sleep(PAUSE_S)

    def _late(self, what: str) -> NoReturn:
        raise ResourceError(
            f"learner rank {self.rank} waited {self.config.run.wait_timeout_s:g} s for {what}. "
            "If the cluster is only slow, raise run.wait_timeout_s."
        )


def _fetch(share: Share) -> list[SelfPlayPair]:
    fetched = fetch(share.pairs + share.initial)
    pairs, initial = fetched[: len(share.pairs)], fetched[len(share.pairs) :]
    if not initial:
        return pairs
    return [
        replace(pair, initial_tokens=first.synthetic_tokens)
        for pair, first in zip(pairs, initial, strict=True)
    ]
