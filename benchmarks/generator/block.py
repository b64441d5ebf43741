"""What a side did in a block."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Block:
    """Responses in the round's order, and the seconds from the first request to the last response."""

    seconds: float
    responses: list[list[int]]

    @property
    def tokens(self) -> int:
        return sum(map(len, self.responses))

    @property
    def tokens_per_s(self) -> float:
        return self.tokens / self.seconds
