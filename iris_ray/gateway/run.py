"""What the gateway needs of a run."""

from collections.abc import AsyncGenerator
from typing import Any, Protocol

from starlette.types import Message

from iris_ray.contracts import Order


class Run(Protocol):
    """A run that goes on. Methods raise `UnavailableError` if it, or what is asked of it, is not there.

    All but `respond` block.
    """

    def status(self) -> dict[str, Any]:
        """As `iris-ray status --json` prints it."""

    def scale(self, count: int) -> None:
        """Have `count` generators."""

    def order(self, order: Order, timeout: float) -> dict[str, Any]:
        """Have the learner obey before its next step; raises `NotObeyedError` if it does not in time (s)."""

    def newest_pairs(self, count: int) -> list[dict[str, Any]]:
        """Pairs that were written last: `prompt`, `real`, `synthetic`, and the `version` that wrote them."""

    def respond(self, method: str, path: str, body: dict[str, Any] | None) -> AsyncGenerator[Message, None]:
        """ASGI messages of a generator's response, of one with the newest weights.

        To stop listening ends the generator's work on it.
        """
