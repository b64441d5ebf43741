"""What became of the rows of a data set."""

from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True)
class Dropped:
    """Rows dropped for one reason: how many, and the numbers of the first few, from 1."""

    rows: int
    first: list[int]

    def __str__(self) -> str:
        numbers = ", ".join(map(str, self.first)) + (", …" if self.rows > len(self.first) else "")
        return f"{self.rows} (row {numbers})"


@dataclass(frozen=True)
class Lengths:
    """Sequence lengths in tokens, over all rows that are used."""

    mean: float
    max: int

    def __str__(self) -> str:
        return f"{self.mean:.1f} tokens on average, at most {self.max}"


@dataclass(frozen=True)
class DataReport:
    """What became of the rows: `rows` read = `train` + `holdout` + all `dropped`, and those that
    `data.subset` leaves out."""

    rows: int
    train: int
    holdout: int
    dropped: dict[str, Dropped]
    prompt_tokens: Lengths
    response_tokens: Lengths

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "DataReport":
        """The report that `to_dict` was taken of."""
        parts = {
            "dropped": {reason: Dropped(**rows) for reason, rows in values["dropped"].items()},
            "prompt_tokens": Lengths(**values["prompt_tokens"]),
            "response_tokens": Lengths(**values["response_tokens"]),
        }
        return cls(**values | parts)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def summary(self) -> str:
        lines = [
            f"{self.rows} rows: {self.train} to train on, {self.holdout} held out.",
            f"Prompts: {self.prompt_tokens}. Responses: {self.response_tokens}.",
        ]
        return "\n".join(lines + [f"Dropped, {reason}: {rows}" for reason, rows in self.dropped.items()])


@dataclass
class Added:
    """What an iteration took in: `rows` of `files`.

    `dropped` counts bad rows by what is wrong with them; `refused` says of a file why none of it was taken.
    """

    files: list[str] = field(default_factory=list)
    rows: int = 0
    dropped: dict[str, int] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)
