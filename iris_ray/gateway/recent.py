"""Answers that are kept for a moment."""

import threading
import time
from collections.abc import Callable
from typing import Generic, TypeVar

Answer = TypeVar("Answer")
SHARE = 0.1  # of the time, at most, is spent on making answers


class Recent(Generic[Answer]):
    """Calls `make` at most every `seconds`, or less often if it takes long, however many threads ask."""

    def __init__(self, make: Callable[[], Answer], seconds: float):
        self._make = make
        self._seconds = seconds
        self._lock = threading.Lock()
        self._until = -float("inf")
        self._answer: Answer

    def __call__(self) -> Answer:
        with self._lock:
            begin = time.monotonic()
            if begin > self._until:
                self._answer = self._make()
                end = time.monotonic()
                self._until = end + max(self._seconds, (end - begin) / SHARE)
            return self._answer
