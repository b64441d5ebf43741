"""Requests under way in an engine."""

import asyncio
import time


class InFlight:
    """Counts requests, and the seconds in which there were any."""

    def __init__(self) -> None:
        self.count = 0
        self._busy_before = 0.0
        self._since = 0.0
        self._waiting: list[tuple[int, asyncio.Future[None]]] = []

    def enter(self, requests: int) -> None:
        if self.count == 0:
            self._since = time.monotonic()
        self.count += requests

    def leave(self) -> None:
        self.count -= 1
        if self.count == 0:
            self._busy_before += time.monotonic() - self._since
        for requests, reached in self._waiting:
            if self.count <= requests and not reached.done():
                reached.set_result(None)

    async def at_most(self, requests: int) -> None:
        """Wait until no more than `requests` are under way."""
        while self.count > requests:
            waiting = requests, asyncio.get_running_loop().create_future()
            self._waiting.append(waiting)
            try:
                await waiting[1]
            finally:
                self._waiting.remove(waiting)

    @property
    def busy_seconds(self) -> float:
        return self._busy_before + (time.monotonic() - self._since if self.count else 0.0)
