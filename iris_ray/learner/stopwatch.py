"""Where a learner's time goes."""

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import torch

OTHER = "other"


class Stopwatch:
    """Splits the time of a rank among named phases: `with stopwatch("forward"): ...`.

    Inside a phase another one takes over until it ends; what belongs to none is `other`. On a GPU the marks
    lie in its queue of work, so that nothing has to wait for them.
    """

    def __init__(self, device: torch.device):
        self._on_gpu = device.type == "cuda"
        self._marks = [(self._now(), OTHER)]

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        outer = self._marks[-1][1]
        self._mark(phase)
        try:
            yield
        finally:
            self._mark(outer)

    def lap(self) -> dict[str, float]:
        """Seconds of each phase since the last lap; together they are all the time that passed."""
        self._mark(self._marks[-1][1])
        if self._on_gpu:
            torch.cuda.current_stream().synchronize()
        seconds: defaultdict[str, float] = defaultdict(float)
        for (begin, phase), (end, _) in pairwise(self._marks):
            seconds[phase] += begin.elapsed_time(end) / 1000 if self._on_gpu else end - begin
        self._marks = self._marks[-1:]
        return dict(seconds)

    def _mark(self, phase: str) -> None:
        self._marks.append((self._now(), phase))

    def _now(self) -> Any:
        if not self._on_gpu:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event
