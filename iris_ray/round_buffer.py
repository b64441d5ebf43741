"""The pairs of one opponent's round, between the generators that write them and the learner."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from iris_ray.batching import balance
from iris_ray.game import Round
from iris_ray.ledger import Ledger
from iris_ray.refresh import newest_version


class StoredPair(NamedTuple):
    """Where a pair lies: item `item` of chunk `chunk` of what is behind the object reference `parcel`.

    `version` is the oldest that wrote some of it.
    """

    parcel: Any
    item: int
    num_tokens: int
    version: int
    chunk: int = 0


@dataclass(frozen=True)
class Share:
    """What a rank trains on in a step; `initial` are the first iteration's pairs of the same prompts and
    replicas.

    Empty unless the objective looks at them, and in the first iteration itself.
    """

    pairs: list[StoredPair]
    initial: list[StoredPair]


class RoundBuffer:
    """Leases prompts in a seeded order and serves the learner's batches in that same order.

    A prompt has as many positions as responses are written to it, one behind the other. Its pairs stay
    neighbours in every pass.

    The first pass follows the order of generation, so that training starts on the first pairs while
    the rest are written; later passes are shuffled. Which pairs a step holds depends on the seed alone,
    never on how fast a generator or how long a response was: batches in order of arrival would train
    on short responses first. At most `max_ahead` pairs beyond the learner are leased or waiting.
    """

    def __init__(
        self,
        round_: Round,
        prompt_ids: np.ndarray,
        *,
        epochs: int,
        batch_size: int,
        max_ahead: int,
        seed: int,
        replicas: int = 1,
        initial: Mapping[int, StoredPair] | None = None,
        refresh_every: int | None = None,
        max_staleness: int = 0,
        overlap: bool = True,
    ):
        """`initial`: pairs of the first iteration by pair id, for an objective that looks at them.

        `refresh_every`: steps between two versions of the opponent; a pair is trained on when its own lies
        at most `max_staleness` versions behind the newest. Without `overlap` no batch is ready before all
        pairs are written, and `max_ahead` is no bound.
        """
        self.round = round_
        self.replicas = replicas
        self.pair_ids = _positions(prompt_ids, replicas)
        self.ledger = Ledger(len(self.pair_ids), epochs)
        self.batch_size = batch_size
        self.max_ahead = max_ahead if overlap else len(self.pair_ids)
        self.overlap = overlap
        self.steps_per_epoch = math.ceil(len(self.pair_ids) / batch_size)
        self.steps = epochs * self.steps_per_epoch
        self.trained_steps = 0
        self.refresh_every = refresh_every
        self.max_staleness = max_staleness
        self._stored: dict[int, StoredPair] = {}
        self._initial = initial or {}
        shuffles = (np.random.default_rng([seed, round_.iteration, epoch]) for epoch in range(1, epochs))
        self._orders = [np.arange(len(self.pair_ids))]
        self._orders += [_positions(shuffle.permutation(len(prompt_ids)), replicas) for shuffle in shuffles]

    def pair(self, position: int) -> tuple[int, int]:
        """The prompt at `position`, and which of its responses stands there, from 0."""
        prompt_id, replica = divmod(int(self.pair_ids[position]), self.replicas)
        return prompt_id, replica

    def lease(self, holder: str, count: int) -> list[int]:
        """Up to `count` positions for `holder`, to be answered with `version`.

        None when the learner is too far behind: to be worth their place, they must not grow too stale.
        """
        return self.ledger.lease(holder, count, self._below)

    @property
    def leasable(self) -> int:
        """How many positions may be leased now."""
        return self.ledger.leasable(self._below)

    @property
    def _below(self) -> int:
        """The first position that nobody may lease yet."""
        below = self.trained_steps * self.batch_size + self.max_ahead
        if self.refresh_every:
            # When a position is trained on is known beforehand, and with it how stale it will be by then.
            refreshes = self.trained_steps // self.refresh_every + self.max_staleness + 1
            below = min(below, refreshes * self.refresh_every * self.batch_size)
        return below

    @property
    def version(self) -> int:
        """The newest version of the opponent."""
        return newest_version(self.round, self.trained_steps, self.refresh_every)

    def staleness(self, step: int) -> list[int]:
        """By how many versions the pairs of `step` lie behind the newest one when they are trained on."""
        newest = newest_version(self.round, step, self.refresh_every)
        return [newest - self._stored[position].version for position in self.positions(step)]

    def add(self, holder: str, position: int, pair: StoredPair) -> bool:
        """Take in a written pair; False if its lease had been given back meanwhile."""
        if not self.ledger.write(position, holder):
            return False
        self._stored[position] = pair
        return True

    def positions(self, step: int) -> list[int]:
        """Positions that step `step` (from 0) trains on."""
        epoch, index = divmod(step, self.steps_per_epoch)
        start = index * self.batch_size
        return self._orders[epoch][start : start + self.batch_size].tolist()

    def is_ready(self, step: int) -> bool:
        if not self.overlap:
            return self.ledger.written == self.ledger.size
        return self.ledger.is_written(self.positions(step))

    def share(self, step: int, rank: int, ranks: int) -> Share:
        """What `rank` of `ranks` trains on in `step`: about the same number of tokens for each."""
        positions = self.positions(step)
        parts = balance([self._stored[position].num_tokens for position in positions], ranks)
        mine = [positions[item] for item in sorted(parts[rank])]
        pair_ids = self.pair_ids[mine].tolist() if self._initial else []
        return Share([self._stored[position] for position in mine], [self._initial[i] for i in pair_ids])

    def commit(self, step: int) -> None:
        """Enter a finished optimiser step in the ledger."""
        self.ledger.commit(step // self.steps_per_epoch, self.positions(step))
        self.trained_steps = max(self.trained_steps, step + 1)

    @property
    def ahead(self) -> int:
        """Written pairs that the first pass has not come to yet."""
        return max(self.ledger.written - self.trained_steps * self.batch_size, 0)

    def stored(self) -> list[StoredPair]:
        """All pairs written so far, in the round's order."""
        return list(self.by_position().values())

    def by_position(self) -> dict[int, StoredPair]:
        """The same with their positions: what a checkpoint keeps beside `state_dict`."""
        return dict(sorted(self._stored.items()))

    def state_dict(self) -> dict[str, Any]:
        """How far the round is, in plain JSON types. Orders follow from seed and iteration."""
        return {"trained_steps": self.trained_steps, "ledger": self.ledger.state_dict()}

    def load_state_dict(self, state: dict[str, Any], stored: Mapping[int, StoredPair]) -> None:
        """Go on where `state_dict` was taken; what is not in `stored` is leased again.

        `stored`: the pairs written by then, and those that this very round knows of besides.
        """
        self.ledger.load_state_dict(state["ledger"], stored)
        if self.ledger.written > len(stored):
            missing = self.ledger.written - len(stored)
            raise ValueError(f"{missing} written pairs of iteration {self.round.iteration} are missing")
        self.trained_steps = state["trained_steps"]
        self._stored = dict(stored)


def draw_prompts(
    count: int, limit: int | None, seed: int, iteration: int, same_prompts: bool = False
) -> np.ndarray:
    """The prompt ids of an iteration in a seeded order: all `count`, or `limit` of them.

    With `same_prompts` those of the first iteration, in a new order.
    """
    order = np.random.default_rng([seed, iteration]).permutation(count)
    if limit is None:
        return order
    if same_prompts:
        return order[np.isin(order, draw_prompts(count, limit, seed, 1))]
    return order[:limit]


def sampling_seed(seed: int, iteration: int, prompt_id: int, replica: int = 0) -> int:
    """Seed of one response: the same whichever generator writes it, and when."""
    return int(np.random.SeedSequence([seed, iteration, prompt_id, replica]).generate_state(1)[0])


def _positions(places: np.ndarray, replicas: int) -> np.ndarray:
    """Each of `places` as `replicas` neighbours: place p becomes replicas · p, replicas · p + 1 and so on."""
    return (places[:, None] * replicas + np.arange(replicas)).ravel()
