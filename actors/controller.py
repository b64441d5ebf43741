"""Leads the game: opens rounds, has opponents evaluated and archived, keeps the records."""

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import ray
from ray.actor import ActorHandle

from actors import names
from actors.stored_pairs import fetch_in_turn
from iris_ray.config import RunConfig
from iris_ray.contracts import Order, StepReport, Update
from iris_ray.data.splits import load_split
from iris_ray.game import Game, Round
from iris_ray.gap import PairMeans
from iris_ray.held_out import HeldOut
from iris_ray.plugins import load_plugins
from iris_ray.records import Records
from iris_ray.run_folder import RunFolder
from iris_ray.samples import write_samples

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from iris_ray.data.inbox import Inbox


@ray.remote(num_cpus=0)
class Controller:
    """The learner asks it for one round after the other.

    Evaluation and archive of a round run beside its training and are over before it is closed.
    """

    def __init__(
        self, config: RunConfig, model_path: str, tokenizer: "PreTrainedTokenizerBase", has_order: bool
    ):
        """`has_order`: the objective has an order α, which is controlled."""
        load_plugins(config)  # which may hold schedules, gap estimators and scorers
        self.config = config
        self.model_path = model_path
        self.tokenizer = tokenizer
        self.game = Game(config)
        self.folder = RunFolder(config.folder)
        self.left_over = self.folder.metrics.exists()  # by an earlier attempt
        self.records = Records(self.folder, config.alpha if has_order else None)
        holdout = load_split(self.folder.data, "holdout")
        self.held_out = HeldOut(config, self.folder, holdout, self.tokenizer)
        self.inbox = self._open_inbox()
        # One at a time: what nobody waits for any more, as the run went back, may still be at the same file.
        self.writer = ThreadPoolExecutor(1)
        self.opening: asyncio.Future[Any] | None = None
        self.beside_training: asyncio.Future[Any] | None = None
        self.failure: Exception | None = None
        self.started = False  # the learner is there, and a generator
        self.learner_starts: list[dict[str, int]] = []
        self.learner_died: float | None = None  # when, until another one is there
        self.orders: list[Order] = []
        self.ordered = asyncio.Condition()
        self.obeyed = 0
        self.stopped = False
        self.last_checkpoint: str | None = None
        # A run begins with empty records, whatever an earlier attempt left in the folder.
        self.beginning = self.state() | {"records": self.records.state_dict() | {"metrics_bytes": 0}}

    # Looked up when they are needed: the pool starts after the controller.

    @property
    def buffer(self) -> ActorHandle:
        return names.find(self.config.run.name, names.SAMPLE_BUFFER)

    @property
    def pool(self) -> ActorHandle:
        return names.find(self.config.run.name, names.GENERATOR_POOL)

    def _open_inbox(self) -> "Inbox | None":
        if self.config.data.inbox is None:
            return None
        from iris_ray.data.inbox import Inbox

        return Inbox(self.config, self.folder, self.tokenizer)

    def state(self) -> dict[str, Any]:
        """What a checkpoint must keep of game and records. Plain JSON types."""
        return {"game": self.game.state_dict(), "records": self.records.state_dict()}

    async def restore(self, state: dict[str, Any] | None) -> None:
        """Go back to a checkpoint's state, or to the beginning."""
        for future in filter(None, (self.opening, self.beside_training)):  # nobody waits for them any more
            future.cancel()
            await asyncio.gather(future, return_exceptions=True)
        self.opening = self.beside_training = None
        goes_back = state is not None or self.left_over or self.learner_starts  # else this is the beginning
        state = state or self.beginning
        self.game.load_state_dict(state["game"])
        if goes_back:
            self.records.load_state_dict(state["records"])
        self.learner_starts.append(self.records.where())
        self.learner_died = None

    def record_learner_death(self) -> None:
        self.learner_died = time.monotonic()

    async def order(self, order: Order) -> int:
        """Have the learner do something before its next step; returns the order's number, from 0."""
        if order in ("pause", "resume"):
            await self.buffer.pause.remote(order == "pause")
        async with self.ordered:
            self.orders.append(order)
            self.ordered.notify_all()
            return len(self.orders) - 1

    async def wait_obeyed(self, number: int) -> dict[str, Any]:
        """Wait until the learner has done order `number`; returns the status by then."""
        async with self.ordered:
            await self.ordered.wait_for(lambda: self.obeyed > number)
            return self.status()

    async def next_order(self, number: int) -> Order:
        """Wait for order `number`."""
        async with self.ordered:
            await self.ordered.wait_for(lambda: len(self.orders) > number)
            return self.orders[number]

    async def standing_orders(self) -> tuple[int, bool]:
        """How many orders were obeyed, and whether the run is paused: where a new learner begins."""
        if "stop" in self.orders[: self.obeyed]:  # the learner died as it stopped
            self.obeyed = self.orders.index("stop")
        return self.obeyed, self.paused

    async def record_obeyed(self) -> None:
        async with self.ordered:
            self.obeyed += 1
            self.ordered.notify_all()

    @property
    def paused(self) -> bool:
        pauses = [order for order in self.orders[: self.obeyed] if order in ("pause", "resume")]
        return pauses[-1:] == ["pause"]

    async def record_stop(self) -> None:
        """The learner stopped, as it was asked to."""
        self.stopped = True

    async def record_checkpoint(self, name: str | None) -> None:
        self.last_checkpoint = name

    def record_failure(self, error: Exception) -> None:
        """The learner found something that only a user can mend."""
        self.failure = error

    async def next_round(self, version: int) -> tuple[Round, int] | None:
        """The round against the published opponent `version` and its number of steps; `None` at the end."""
        self.opening = asyncio.ensure_future(self._next_round(version))
        return await self.opening

    async def _next_round(self, version: int) -> tuple[Round, int] | None:
        made = self.game.iterations
        round_ = self.game.next_round(version)
        if round_ is None:
            await self._evaluate(version, made)
            return None
        await self.pool.wait_ready.remote()
        self.started = True
        if self.config.schedule.refresh != "iteration":
            await self._evaluate(version, made)  # before generators go on to newer weights
        added = await self._write(self.inbox.take_in, round_.iteration) if self.inbox else None
        steps = await self.buffer.open_round.remote(round_)
        self.records.round_opened(round_, steps)
        if added:
            self.records.added(added)
        await self.go_on_beside(round_)
        return round_, steps

    async def go_on_beside(self, round_: Round) -> None:
        """Evaluate the opponent and archive what it writes, beside the training against it."""
        self.beside_training = asyncio.ensure_future(self._go_on_beside(round_))

    async def _go_on_beside(self, round_: Round) -> None:
        try:
            await asyncio.gather(self._evaluate(round_.version, round_.iteration - 1), self._archive(round_))
        except ray.exceptions.RayError:  # a part of the run that died may be the reason, which others mend
            raise
        except Exception as error:
            self.failure = error  # told at once: the learner comes to it at the end of the round only
            raise

    def round_started(self, start: PairMeans) -> Round:
        """The open round after its first step, with the order that the rest of it is trained at."""
        assert self.records.round is not None
        round_ = self.game.measured_start(self.records.round, start)
        if round_ != self.records.round:
            self.records.order_set(round_)
        return round_

    async def round_ended(self, end: PairMeans) -> None:
        """Take in how the round ended, and wait for what went on beside it."""
        self.game.measured_end(end)
        self.records.round_closed(end)
        assert self.beside_training is not None
        await self.beside_training
        self.beside_training = None
        await self.buffer.close_round.remote()

    async def _evaluate(self, version: int, iteration: int) -> None:
        """Answer the held-out prompts with weights `version`, made by `iteration`, and score the answers."""
        if self.records.evaluated_iteration == iteration:
            return  # before, or before the checkpoint that the run went back to
        answers = []
        if questions := await asyncio.to_thread(self.held_out.questions, iteration):
            answers = await self.pool.answer.remote(questions, version)
        scores = await asyncio.to_thread(self.held_out.scores, iteration, answers)
        if self.config.evaluation.tasks:
            from actors.examination import examine

            examined = examine.remote(self.config, self.model_path, version)
            try:
                scores |= await examined
            except asyncio.CancelledError:
                ray.cancel(examined)
                raise
        self.records.evaluated(iteration, scores)

    async def _archive(self, round_: Round) -> None:
        """Write the round's pairs to Parquet once all are written."""
        stored = await self.buffer.all_written.remote()
        self.records.round_written()
        pairs = ([pair for _, pair in members] for members in fetch_in_turn(enumerate(stored)))
        path = self.folder.samples / f"iteration-{round_.iteration:03d}.parquet"
        await self._write(write_samples, path, pairs, self.tokenizer)

    async def _write(self, write: Callable[..., Any], *arguments: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self.writer, write, *arguments)

    def record_step(self, report: StepReport, staleness: list[int], seconds: dict[str, float]) -> None:
        self.records.stepped(report, staleness, seconds)

    def record_update(self, update: Update) -> None:
        self.records.updated(update)

    def record_generator(self, name: str, event: str, reason: str | None) -> None:
        """A generator is `ready`, `died`, was `drained` or `finished`."""
        self.records.generator(name, event, reason)

    def status(self) -> dict[str, Any]:
        return self.records.status() | {
            "failure": self.failure,
            "started": self.started,
            "learner_starts": self.learner_starts,
            "learner_away_s": time.monotonic() - self.learner_died if self.learner_died else 0.0,
            "planned": self.config.schedule.iterations,
            "paused": self.paused,
            "stopping": "stop" in self.orders,
            "stopped": self.stopped,
            "last_checkpoint": self.last_checkpoint,
        }

    def summary(self) -> dict:
        return self.records.summary()
