"""The ledger of an opponent's round: every prompt counted exactly once, whatever dies."""

from bisect import bisect_left
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class LedgerCounts:
    """Pairs of finished rounds: trained on once in every pass, missed in one, trained on twice in one."""

    committed: int = 0
    lost: int = 0
    duplicated: int = 0

    def __add__(self, other: "LedgerCounts") -> "LedgerCounts":
        return LedgerCounts(
            self.committed + other.committed, self.lost + other.lost, self.duplicated + other.duplicated
        )


class Ledger:
    """Where each position of a round stands: waiting, leased, written, committed once per epoch.

    A position is a place in the round's order of prompts. Leases go out in that order, so that what is
    trained on, and when, does not depend on which generator was faster.
    """

    def __init__(self, size: int, epochs: int):
        self.size = size
        self.epochs = epochs
        self._waiting = deque(range(size))
        self._holder: dict[int, str] = {}
        # Arrays, as a round may have millions of positions.
        self._is_written = np.zeros(size, bool)
        self._written = 0
        self._commits = np.zeros((epochs, size), np.uint16)

    def lease(self, holder: str, count: int, below: int) -> list[int]:
        """Give `holder` up to `count` waiting positions smaller than `below`."""
        positions: list[int] = []
        while len(positions) < count and self._waiting and self._waiting[0] < below:
            positions.append(self._waiting.popleft())
        self._holder.update(dict.fromkeys(positions, holder))
        return positions

    def leasable(self, below: int) -> int:
        """How many positions `lease` could give."""
        return bisect_left(self._waiting, below)

    def give_back(self, holder: str) -> list[int]:
        """Put what `holder` still leases back at the front, in order; returns the positions."""
        positions = sorted(position for position, owner in self._holder.items() if owner == holder)
        for position in positions:
            del self._holder[position]
        self._waiting = deque(sorted([*positions, *self._waiting]))
        return positions

    def write(self, position: int, holder: str) -> bool:
        """Record that `holder` wrote `position`. False if its lease was given back: drop the pair."""
        if self._holder.get(position) != holder:
            return False
        del self._holder[position]
        self._is_written[position] = True
        self._written += 1
        return True

    def commit(self, epoch: int, positions: Sequence[int]) -> None:
        """Record that an optimiser step trained on `positions` in pass `epoch`."""
        np.add.at(self._commits[epoch], positions, 1)

    @property
    def written(self) -> int:
        return self._written

    @property
    def leased(self) -> int:
        return len(self._holder)

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    def is_written(self, positions: Sequence[int]) -> bool:
        return bool(self._is_written[positions].all())

    def state_dict(self) -> dict[str, Any]:
        """What is written and what was trained on, in plain JSON types. Leases do not outlive a restart."""
        commits = [_run_lengths(times) for times in self._commits]
        return {"written": _run_lengths(self._is_written.astype(int)), "commits": commits}

    def load_state_dict(self, state: dict[str, Any], also_written: Iterable[int] = ()) -> None:
        """Go on where `state_dict` was taken: what was leased then waits again, in the round's order.

        `also_written` need not be written anew although the state does not know of them.
        """
        written = _expand(state["written"])
        commits = [_expand(times) for times in state["commits"]]
        if [len(column) for column in (written, *commits)] != [self.size] * (1 + self.epochs):
            raise ValueError(f"not the state of a ledger of {self.size} prompts and {self.epochs} epochs")
        also = np.fromiter(also_written, int)
        if len(also) and not 0 <= also.min() <= also.max() < self.size:
            raise ValueError(f"written positions outside a round of {self.size} prompts")
        self._is_written = written.astype(bool)
        self._is_written[also] = True
        self._written = int(self._is_written.sum())
        self._holder = {}
        self._waiting = deque(np.flatnonzero(~self._is_written).tolist())
        self._commits = np.array(commits, np.uint16)

    def counts(self) -> LedgerCounts:
        """The books of the round, to be read when it is over."""
        fewest, most = self._commits.min(axis=0), self._commits.max(axis=0)
        return LedgerCounts(
            committed=int(((fewest == 1) & (most == 1)).sum()),
            lost=int((fewest == 0).sum()),
            duplicated=int((most > 1).sum()),
        )


def _run_lengths(values: np.ndarray) -> list[list[int]]:
    """Equal neighbours as one `[value, how many]`."""
    starts = np.flatnonzero(np.diff(values, prepend=values[:1] + 1))
    lengths = np.diff(starts, append=len(values))
    return [[int(values[start]), int(length)] for start, length in zip(starts, lengths, strict=True)]


def _expand(runs: Sequence[Sequence[int]]) -> np.ndarray:
    values, lengths = np.array(runs, int).reshape(-1, 2).T
    return np.repeat(values, lengths)
