"""Whether a running engine gets on with its work."""

import time
from typing import Any

from vllm.v1.metrics.loggers import StatLoggerBase


class Progress(StatLoggerBase):
    """vLLM tells it of every step of an engine, so that a long response is told from an engine that hangs.

    Itself the factory that vLLM asks for: calling it returns it.
    """

    def __init__(self) -> None:
        self.steps = 0
        self.last_step = time.monotonic()

    def __call__(self, *_: Any) -> "Progress":
        return self

    def record(self, *_: Any, **__: Any) -> None:
        self.steps += 1
        self.last_step = time.monotonic()

    def log_engine_initialized(self) -> None:
        pass
