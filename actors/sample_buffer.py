"""Between generators and learner: leases out, written pairs in, batches out."""

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import asdict
from itertools import islice
from typing import Any

import ray

from actors import names
from actors.stored_pairs import Parcel
from iris_ray.chunks import Chunk
from iris_ray.config import RunConfig
from iris_ray.data.splits import as_tables, demonstrations, load_split, load_train, pack_rows
from iris_ray.game import Round
from iris_ray.leases import Lease, RoundKey
from iris_ray.ledger import LedgerCounts
from iris_ray.refresh import steps_between
from iris_ray.round_buffer import RoundBuffer, Share, StoredPair, draw_prompts
from iris_ray.run_folder import RunFolder

Places = list[tuple[int, StoredPair]]
NEWEST = 16  # pairs that outlive their round, for who looks


@ray.remote(num_cpus=0, max_concurrency=names.MOST_CALLS)  # type: ignore[call-overload]
class SampleBuffer:
    """Holds object references and the ledger, and of the pairs themselves no more than an open parcel.

    `compares_with_first`: the objective also looks at the first model's responses.
    """

    def __init__(self, config: RunConfig, compares_with_first: bool = False):
        self.config = config
        self.train = as_tables(load_split(RunFolder(config.folder).data, "train"))
        self.compares_with_first = compares_with_first
        self.initial: dict[int, StoredPair] = {}
        self.current: RoundBuffer | None = None
        self.books = LedgerCounts()
        self.closed = False
        self.paused = False
        self.dismissed: set[str] = set()
        self.written_in_all = 0
        self.attempt = 0
        self.going_back: dict[str, Any] = {}
        self.restored_pairs: dict[int, StoredPair] = {}
        self.came_in: deque[StoredPair] = deque(maxlen=NEWEST)
        self.parcel = Parcel()
        # Two, so that a pair that comes in does not wake a thousand generators that wait for work.
        lock = asyncio.Lock()
        self.work, self.pairs = asyncio.Condition(lock), asyncio.Condition(lock)

    async def open_round(self, round_: Round) -> int:
        """Start a round; returns its number of optimiser steps."""
        async with self.work:
            self.current = self._empty_round(round_)
            self.work.notify_all()
            return self.current.steps

    def _empty_round(self, round_: Round) -> RoundBuffer:
        seed = self.config.run.seed
        limit = self.config.schedule.prompts_per_iteration
        if self.config.data.inbox:
            self.train = as_tables(load_train(RunFolder(self.config.folder).data, round_.iteration))
        return RoundBuffer(
            round_,
            draw_prompts(len(self.train), limit, seed, round_.iteration, self.compares_with_first),
            epochs=self.config.schedule.epochs,
            batch_size=self.config.learner.batch_size,
            max_ahead=self.config.generation.max_ahead,
            seed=seed,
            replicas=self.config.generation.n,
            initial=self.initial,
            refresh_every=steps_between(self.config.schedule),
            max_staleness=self.config.schedule.max_staleness,
            overlap=self.config.schedule.overlap,
        )

    async def state(self) -> tuple[dict[str, Any], Places, Places]:
        """What a checkpoint must keep, in plain JSON types, and where the pairs lie that belong to it.

        Those of the open round by position, those of the first iteration by pair id.
        """
        async with self.work:
            self.parcel.seal()
            state = {"books": asdict(self.books), "round": None}
            if self.current is None:
                return state, [], list(self.initial.items())
            state |= {"round": asdict(self.current.round), "progress": self.current.state_dict()}
            return state, list(self.current.by_position().items()), list(self.initial.items())

    async def restore(self, state: dict[str, Any] | None) -> int:
        """Go back to a checkpoint's state, or to the beginning; `restore_pairs` and `restored` follow.

        Returns how often it was called: leases of an earlier attempt are void.
        """
        async with self.work:
            self.attempt += 1
            self.books = LedgerCounts(**state["books"]) if state else LedgerCounts()
            self.going_back, self.initial, self.restored_pairs = state or {}, {}, {}
            # What this very round's opponent has written since the checkpoint is still good.
            goes_back_to = state["round"]["iteration"] if state and state["round"] else None
            if self.current and self.current.round.iteration == goes_back_to:
                self.restored_pairs = self.current.by_position()
            self.current = None
            self.pairs.notify_all()
            return self.attempt

    async def restore_pairs(self, keys: list[int], chunk: Chunk, initial: bool) -> None:
        """Take in pairs of the checkpoint, by position, or by pair id those of the first iteration."""
        taken = self.initial if initial else self.restored_pairs
        taken.update(zip(keys, self._store(chunk), strict=True))

    async def restored(self) -> None:
        """All pairs are there: open the round again, if one was."""
        async with self.work:
            state = self.going_back
            if state["round"]:
                self.current = self._empty_round(Round(**state["round"]))
                self.current.load_state_dict(state["progress"], self.restored_pairs)
            self.going_back, self.restored_pairs = {}, {}
            self.work.notify_all()
            self.pairs.notify_all()

    async def lease(self, generator: str, count: int) -> Lease | None:
        """Up to `count` prompts for `generator`; waits for work, `None` when there is no more for it."""
        positions: list[int] = []
        async with self.work:
            while not self.closed and generator not in self.dismissed:
                open_ = None if self.paused else self.current
                if open_ and (positions := open_.lease(generator, count)):
                    return self._lease(open_, positions)
                await self.work.wait()
        return None

    async def pause(self, paused: bool) -> None:
        """No more work for anybody, or work again."""
        async with self.work:
            self.paused = paused
            self.work.notify_all()

    async def dismiss(self, generator: str) -> None:
        """No more work for `generator`; it finishes what it has."""
        async with self.work:
            self.dismissed.add(generator)
            self.work.notify_all()

    async def give_back(self, generator: str) -> None:
        """`generator` is gone: what it leased goes to others, and what it may still send is dropped."""
        async with self.work:
            self.dismissed.add(generator)
            if self.current:
                self.current.ledger.give_back(generator)
            self.work.notify_all()

    def _lease(self, buffer: RoundBuffer, positions: list[int]) -> Lease:
        round_ = RoundKey(self.attempt, buffer.round.iteration)
        prompt_ids, replicas = map(list, zip(*map(buffer.pair, positions), strict=True))
        rows = pack_rows(self.train, prompt_ids)
        return Lease(round_, buffer.version, self.config.run.seed, positions, replicas, rows)

    async def add(self, generator: str, round_: RoundKey, positions: list[int], chunk: Chunk) -> None:
        """Take in written pairs. Put from here, they outlive the generator that wrote them."""
        async with self.pairs:
            if self.current is None or round_ != (self.attempt, self.current.round.iteration):
                return
            for position, pair in zip(positions, self._store(chunk), strict=True):
                if self.current.add(generator, position, pair):
                    self.written_in_all += 1
                    self.came_in.appendleft(pair)
            self.pairs.notify_all()

    async def share(self, step: int, rank: int, ranks: int) -> Share:
        """What `rank` trains on in `step`; waits until the whole batch is written."""
        async with self.pairs:
            buffer = self._round()
            await self._wait_for(buffer, lambda: buffer.is_ready(step))
            self.parcel.seal()
            return buffer.share(step, rank, ranks)

    async def commit(self, step: int) -> list[int]:
        """An optimiser step trained on its batch: enter it in the ledger, let generators go on.

        Returns the pairs' staleness in versions.
        """
        async with self.work:
            self._round().commit(step)
            self.work.notify_all()
            return self._round().staleness(step)

    async def all_written(self) -> list[StoredPair]:
        """Wait until every pair of the round is written and return where they lie."""
        async with self.pairs:
            buffer = self._round()
            await self._wait_for(buffer, lambda: buffer.ledger.written == buffer.ledger.size)
            self.parcel.seal()
            return buffer.stored()

    async def newest(self, count: int) -> list[StoredPair]:
        """Where up to `count` (of the last NEWEST) pairs lie, those that came in last, the newest first."""
        self.parcel.seal()
        return list(islice(self.came_in, count))

    async def close_round(self) -> LedgerCounts:
        """End the round and let go of its pairs; returns the books of the run so far."""
        async with self.work:
            buffer = self._round()
            self.books += buffer.ledger.counts()
            if self.compares_with_first and not self.initial:
                pair_ids = buffer.pair_ids.tolist()
                self.initial = dict(zip(pair_ids, buffer.stored(), strict=True))
            self.current = None
        return self.books

    async def close(self) -> None:
        """End the game: waiting generators are told to stop."""
        async with self.work:
            self.closed = True
            self.work.notify_all()

    async def probe(self) -> list[list[int]]:
        """Token sequences whose log-probs learner and generators must agree on."""
        count = min(self.config.sync.probe_sequences, len(self.train))
        rows = demonstrations(pack_rows(self.train, range(count)))
        # vLLM scores a sequence only if one more token would fit behind it.
        return [(row.prompt_tokens + row.response_tokens)[: self.config.max_length - 1] for row in rows]

    async def status(self) -> dict:
        """Of the open round: `ahead` counts written pairs that the learner has not come to yet, `leasable`
        how many of the unleased would be neither too stale nor too far ahead."""
        ledger = self.current.ledger if self.current else None
        return {
            "paused": self.paused,
            "ahead": self.current.ahead if self.current else 0,
            "unleased": ledger.waiting if ledger else 0,
            "leasable": self.current.leasable if self.current else 0,
            "written_in_all": self.written_in_all,
            "pairs": ledger.size if ledger else 0,
            "written": ledger.written if ledger else 0,
            "leased": ledger.leased if ledger else 0,
            "ledger": asdict(self.books),
        }

    async def _wait_for(self, buffer: RoundBuffer, condition: Callable[[], bool]) -> None:
        """Raises `RuntimeError` if the run went back meanwhile: nobody waits for that round any more."""
        await self.pairs.wait_for(lambda: condition() or self.current is not buffer)
        if self.current is not buffer:
            raise RuntimeError("the run went back to a checkpoint")

    def _round(self) -> RoundBuffer:
        if self.current is None:
            raise RuntimeError("no round is open")
        return self.current

    def _store(self, chunk: Chunk) -> list[StoredPair]:
        """Returns where its pairs lie: for others from when the open parcel is sealed."""
        if self.parcel.is_sealed:
            self.parcel = Parcel()
        return self.parcel.add(chunk)
