"""One rank of the learner among the run's actors."""

import time
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal, NoReturn

import ray
import ray.train
import torch.distributed as dist
from ray.train.torch import get_device

from actors import names
from actors.weight_broadcasts import WeightBroadcasts
from actors.weight_publishing import put_buckets
from iris_ray.config import RunConfig
from iris_ray.contracts import Order, SelfPlayPair
from iris_ray.errors import ResourceError, RunStopped
from iris_ray.refresh import newest_version, steps_between
from iris_ray.round_buffer import Share
from iris_ray.weights.buckets import lay_out
from iris_ray.weights.manifest import Bucket, Probe, TensorSpec, WeightManifest
from iris_ray.weights.shares import WeightShare

if TYPE_CHECKING:
    from iris_ray.learner.learner_state import RoundProgress
    from iris_ray.learner.self_play_learner import SelfPlayLearner


Event = Order | Literal["there", "generators"]


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
        self.probe = self.wait(self.buffer.probe.remote(), "the probe")
        self.broadcasts: WeightBroadcasts | None = None
        if config.sync.transport != "object_store":
            self.broadcasts = WeightBroadcasts(config.sync, self.store, get_device())
        self.layout: list[list[TensorSpec]] = []
        self.published: int
        self.published_opponent: bool
        self.paused: bool
        number, self.paused = self.wait(self.controller.standing_orders.remote(), "standing orders")
        self._await_order(number)

    def publish(self, version: int, opponent: bool = False) -> None:
        """List the policy's weights, or the opponent's, as `version` for generators to pull."""
        self.published, self.published_opponent = version, opponent
        buckets = self._buckets(opponent)
        probe = self._probe(opponent)
        weights = WeightShare(version, self.rank, self.ranks, buckets, probe if self.rank == 0 else None)
        self.wait(self.store.publish.remote(weights), f"the weight store to take version {version}")

    def _buckets(self, opponent: bool) -> list[Bucket]:
        """This rank's share: put into the object store, or to be sent when generators come for them."""
        weights, bucket_bytes = self.learner.weights(opponent), self.config.sync.bucket_mib << 20
        if self.broadcasts:
            self.layout = self.layout or lay_out(weights, bucket_bytes)
            return [Bucket(None, tensors) for tensors in self.layout[self.rank :: self.ranks]]
        # All ranks walk through all weights, as ZeRO-3 gathers each of them, and share the copying.
        return put_buckets(
            weights,
            bucket_bytes,
            self.rank,
            self.ranks,
            # The policy's own parameters stay as they are until this returns; what is gathered does not.
            lasting=not opponent and self.config.learner.zero_stage < 3,
        )

    def _probe(self, opponent: bool) -> Probe:
        return Probe(self.probe, self.learner.token_logprobs(self.probe, opponent))

    def _send(self) -> None:
        """Send weights to the generators that have come for them."""
        # Online, the policy may have gone on since it was published: the number stays, the probe is new.
        opponent = self.published_opponent
        probe, weights = self._probe(opponent), self.learner.weights(opponent)
        if self.rank == 0:
            assert self.broadcasts
            buckets = [Bucket(None, tensors) for tensors in self.layout]
            self.broadcasts.send(WeightManifest(self.published, buckets, probe), weights)
        else:
            for _ in weights:
                pass

    def _next_event(self, *, awaited: ray.ObjectRef | None, what: str, orders: bool) -> Event:
        """What comes first; rank 0 looks, and all ranks get the answer.

        "there" once `awaited` is, "generators" when some come for weights, an order if `orders` are taken.
        """
        event: list[Any] = [self._look(awaited, what, orders) if self.rank == 0 else None]
        if self.ranks > 1:
            dist.broadcast_object_list(event)
        return event[0]

    def _look(self, awaited: ray.ObjectRef | None, what: str, orders: bool) -> Event:
        watched: list[Any] = []
        if orders:
            watched.append(self.order)
        if self.broadcasts:
            watched.append(self.broadcasts.comers())
        if awaited is not None:
            watched.append(awaited)
        there, _ = ray.wait(watched, timeout=None if awaited is None else self.config.run.wait_timeout_s)
        if not there:
            self._late(what)
        if there[0] == awaited:
            return "there"
        if there[0] != self.order:
            return "generators"
        order: Order = ray.get(self.order)
        self._await_order(self.orders_taken + 1)
        return order

    def _await_order(self, number: int) -> None:
        self.orders_taken = number
        self.order: Any = self.controller.next_order.remote(number)

    def _next_batch(self, share: ray.ObjectRef, what: str, checkpoint: Callable[[], None]) -> Share:
        """The batch, once it is there; what a person orders comes first. Raises `RunStopped`."""
        while True:
            event = self._next_event(awaited=None if self.paused else share, what=what, orders=True)
            if event == "there":
                break
            if event == "generators":
                self._send()
            if event in ("pause", "resume"):
                self.paused = event == "pause"
            if event in ("checkpoint", "stop"):
                checkpoint()
            if self.rank == 0 and event != "generators":
                self.controller.record_obeyed.remote()
            if event == "stop":
                raise RunStopped
        batch: Share = self.wait(share, what)
        return batch

    def next_round(self, version: int) -> "RoundProgress | None":
        """Open the next round, on every rank; `None` when the game is over."""
        from iris_ray.learner.learner_state import RoundProgress

        what = f"generators to load version {version} and finish the evaluation"
        opened = self.ask(lambda: self.controller.next_round.remote(version), what)
        if opened is None:
            return None
        progress = RoundProgress(*opened)
        self.learner.start_round(progress.round.iteration, progress.steps)
        # From now on the policy moves. Online, generators that come late get it as it is by then.
        self.published_opponent = self.refresh_every is None
        return progress

    def play(self, progress: "RoundProgress", checkpoint: Callable[[], None]) -> None:
        """Train the rest of a round, on the opponent's first pairs while it writes the others.

        Calls `checkpoint` every `checkpoint.every_steps` steps, and when it is ordered. Raises `RunStopped`.
        """
        learner, steps, waited = self.learner, progress.steps, 0.0
        share: ray.ObjectRef = self.buffer.share.remote(progress.step, self.rank, self.ranks)
        while progress.step < steps:
            step, round_ = progress.step, progress.round
            begin = time.monotonic()
            what = f"batch {step + 1} of {steps} in iteration {round_.iteration}"
            batch = self._next_batch(share, what, checkpoint)
            waited += time.monotonic() - begin
            if step + 1 < steps:
                share = self.buffer.share.remote(step + 1, self.rank, self.ranks)
            result = learner.step(_fetch(batch), round_.alpha)
            if not result.report.skipped:
                progress.tail.add(result.rows)
            if step == 0:
                start = result.rows.means(learner.objective, round_.alpha)
                what = "the controller to set the order"
                opened = self.ask(lambda start=start: self.controller.round_started.remote(start), what)
                progress.round = opened
            if self.rank == 0:
                what = "the sample buffer to commit a step"
                staleness = self.wait(self.buffer.commit.remote(step), what)
                self.controller.record_step.remote(result.report, staleness)
            progress.step += 1
            if self.refresh_every and progress.step % self.refresh_every == 0 and progress.step < steps:
                self.publish(newest_version(progress.round, progress.step, self.refresh_every))
            every = self.config.checkpoint.every_steps
            if every and progress.step % every == 0 and progress.step < steps:
                checkpoint()
        end = progress.tail.means(learner.objective, progress.round.alpha)
        what = "the controller to close the round"
        self.ask(lambda: self.controller.round_ended.remote(end, waited), what)

    def ask(self, question: Callable[[], ray.ObjectRef], what: str) -> Any:
        """Rank 0 asks; all ranks get the answer."""
        reference = question() if self.rank == 0 else None
        while self.broadcasts and self._next_event(awaited=reference, what=what, orders=False) != "there":
            self._send()
        answer = [self.wait(reference, what) if reference else None]
        dist.broadcast_object_list(answer)
        return answer[0]

    def wait(self, reference: ray.ObjectRef, what: str) -> Any:
        timeout = self.config.run.wait_timeout_s
        try:
            return ray.get(reference, timeout=timeout)
        except ray.exceptions.GetTimeoutError:
            self._late(what)

    def _late(self, what: str) -> NoReturn:
        raise ResourceError(
            f"learner rank {self.rank} waited {self.config.run.wait_timeout_s:g} s for {what}. "
            "If the cluster is only slow, raise run.wait_timeout_s."
        )


def _fetch(share: Share) -> list[SelfPlayPair]:
    chunks = list(dict.fromkeys(pair.chunk for pair in share.pairs + share.initial))
    fetched = dict(zip(chunks, ray.get(chunks), strict=True))
    pairs, initial = (
        [fetched[pair.chunk][pair.index] for pair in stored] for stored in (share.pairs, share.initial)
    )
    if not initial:
        return pairs
    return [
        replace(pair, initial_tokens=first.synthetic_tokens)
        for pair, first in zip(pairs, initial, strict=True)
    ]
