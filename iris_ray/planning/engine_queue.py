"""A vLLM engine's requests: what is written, what waits, what is finished when."""

from collections import deque
from collections.abc import Iterable
from heapq import heappop, heappush
from typing import Generic, NamedTuple, TypeVar

from iris_ray.planning.rates import EngineRates

Tag = TypeVar("Tag")


class Request(NamedTuple, Generic[Tag]):
    """`prompt` tokens to read, `written` tokens to answer, `scored` tokens of another sequence to score."""

    tag: Tag
    prompt: int
    written: int
    scored: int = 0


class EngineQueue(Generic[Tag]):
    """Continuous batching: up to `concurrency` responses grow by a token in each step, others wait.

    Knows no clock: `advance` says how long it took.
    """

    def __init__(self, rates: EngineRates, concurrency: int):
        self.rates = rates
        self.concurrency = concurrency
        self.tokens = 0
        self._step = 0.0
        self._serial = 0
        self._context = 0.0  # of all that is written, halfway through their responses
        self._writing: list[tuple[float, int, Request[Tag]]] = []
        self._waiting: deque[Request[Tag]] = deque()

    @property
    def in_flight(self) -> int:
        return len(self._writing) + len(self._waiting)

    @property
    def is_full(self) -> bool:
        return bool(self._waiting)

    def admit(self, requests: Iterable[Request[Tag]]) -> None:
        self._waiting.extend(requests)

    def clear(self) -> list[Tag]:
        """Forget all that is under way; returns what it was."""
        left = [request.tag for _, _, request in self._writing] + [request.tag for request in self._waiting]
        self._writing.clear()
        self._waiting.clear()
        self._context = 0.0
        return left

    def advance(self, seconds: float, at_most: int) -> tuple[float, list[Tag]]:
        """Write for up to `seconds`, or until no more than `at_most` are under way.

        Returns the seconds that passed, and what was finished in them.
        """
        finished: list[Tag] = []
        passed = self._start_waiting()
        while self._writing and passed < seconds:
            count = len(self._writing)
            token_s = self.rates.decode_s(count, self._context / count)
            steps = self._writing[0][0] - self._step
            if passed + steps * token_s > seconds:
                self._step += (seconds - passed) / token_s
                return seconds, finished
            passed += steps * token_s
            self._step = end = self._writing[0][0]
            while self._writing and self._writing[0][0] <= end:
                request = heappop(self._writing)[2]
                self._context -= request.prompt + request.written / 2
                self.tokens += request.written
                finished.append(request.tag)
            passed += self._start_waiting()
            if self.in_flight <= at_most:
                break
        return passed, finished

    def _start_waiting(self) -> float:
        """Fill free places; returns the seconds that reading took."""
        seconds = 0.0
        while self._waiting and len(self._writing) < self.concurrency:
            request = self._waiting.popleft()
            self._serial += 1
            heappush(self._writing, (self._step + request.written, self._serial, request))
            self._context += request.prompt + request.written / 2
            seconds += self.rates.request_s() + self.rates.read_s(request.prompt)
            if request.scored:
                seconds += self.rates.request_s(scored=True) + self.rates.read_s(request.scored, scored=True)
        return seconds
