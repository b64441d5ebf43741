"""The ledger of an opponent's round: every prompt counted exactly once, whatever dies."""

from collections import Counter, deque
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import chain, groupby, repeat
from typing import Any


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
        self._written: set[int] = set()
        self._commits: Counter[tuple[int, int]] = Counter()

    def lease(self, holder: str, count: int, below: int) -> list[int]:
        """Give `holder` up to `count` waiting positions smaller than `below`."""
        positions: list[int] = []
        while len(positions) < count and self._waiting and self._waiting[0] < below:
            positions.append(self._waiting.popleft())
        self._holder.update(dict.fromkeys(positions, holder))
        return positions

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
        self._written.add(position)
        return True

    def commit(self, epoch: int, positions: Iterable[int]) -> None:
        """Record that an optimiser step trained on `positions` in pass `epoch`."""
        self._commits.update((epoch, position) for position in positions)

    @property
    def written(self) -> int:
        return len(self._written)

    @property
    def leased(self) -> int:
        return len(self._holder)

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    def is_written(self, positions: Iterable[int]) -> bool:
        return self._written.issuperset(positions)

    def state_dict(self) -> dict[str, Any]:
        """What is written and what was trained on, in plain JSON types. Leases do not outlive a restart."""
        commits = [
            _run_lengths(self._commits[epoch, position] for position in range(self.size))
            for epoch in range(self.epochs)
        ]
        written = _run_lengths(int(position in self._written) for position in range(self.size))
        return {"written": written, "commits": commits}

    def load_state_dict(self, state: dict[str, Any], also_written: Iterable[int] = ()) -> None:
        """Go on where `state_dict` was taken: what was leased then waits again, in the round's order.

        `also_written` need not be written anew although the state does not know of them.
        """
        written = _expand(state["written"])
        commits = [_expand(times) for times in state["commits"]]
        if [len(column) for column in (written, *commits)] != [self.size] * (1 + self.epochs):
            raise ValueError(f"not the state of a ledger of {self.size} prompts and {self.epochs} epochs")
        known = {position for position, yes in enumerate(written) if yes}.union(also_written)
        if not known.issubset(range(self.size)):
            raise ValueError(f"written positions outside a round of {self.size} prompts")
        self._written = known
        self._holder = {}
        self._waiting = deque(position for position in range(self.size) if position not in known)
        self._commits = Counter(
            {
                (epoch, position): count
                for epoch, times in enumerate(commits)
                for position, count in enumerate(times)
                if count
            }
        )

    def counts(self) -> LedgerCounts:
        """The books of the round, to be read when it is over."""
        commits = [
            {self._commits[epoch, position] for epoch in range(self.epochs)} for position in range(self.size)
        ]
        return LedgerCounts(
            committed=sum(times == {1} for times in commits),
            lost=sum(0 in times for times in commits),
            duplicated=sum(max(times) > 1 for times in commits),
        )


def _run_lengths(values: Iterable[int]) -> list[list[int]]:
    """Equal neighbours as one `[value, how many]`."""
    return [[value, sum(1 for _ in run)] for value, run in groupby(values)]


def _expand(runs: Iterable[tuple[int, int]]) -> list[int]:
    return list(chain.from_iterable(repeat(value, length) for value, length in runs))
