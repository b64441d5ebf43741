"""Requests under way in an engine."""

import asyncio
import time


class InFlight:
    """Counts requests, and the seconds in which there were any."""

    def __init__(self) -> None:
        self.count = 0
        self._busy_before = 0.0
        self._since = 0.0
        self._changed = asyncio.Condition()

    def enter(self, requests: int) -> None:
        if self.count == 0:
            self._since = time.monotonic()
        self.count += requests

    async def leave(self) -> None:
        async with self._changed:
            self.count -= 1
            if self.count == 0:
                self._busy_before += time.monotonic() - self._since
            self._changed.notify_all()

    async def at_most(self, requests: int) -> None:
        """Wait until no more than `requests` are under way."""
        async with self._changed:
            await self._changed.wait_for(lambda: self.count <= requests)

    @property
    def busy_seconds(self) -> float:
        return self._busy_before + (time.monotonic() - self._since if self.count else 0.0)
