"""How a run stands, put together from its actors."""

import threading
import time
from typing import Any

import ray

from actors import names

LOOK_S = 0.5


def run_status(run: str, timeout: float, interrupted: threading.Event | None = None) -> dict[str, Any]:
    """Fields of `Records.status` and of the pool's, beside those of `buffer`; waits `timeout` s at most.

    Raises Ray's error if an actor is gone, `ValueError` if there is none, and `KeyboardInterrupt` if
    `interrupted` is set while one does not answer.
    """
    roles = (names.CONTROLLER, names.SAMPLE_BUFFER, names.GENERATOR_POOL)
    asked: list[Any] = [names.find(run, role).status.remote() for role in roles]
    asked.append(names.find(run, names.WEIGHT_STORE).__ray_ready__.remote())
    until = time.monotonic() + timeout
    while ray.wait(asked, num_returns=len(asked), timeout=min(LOOK_S, timeout))[1]:
        if interrupted and interrupted.is_set():
            raise KeyboardInterrupt
        if time.monotonic() > until:
            break
    controller, buffer, pool, _ = ray.get(asked, timeout=0)
    return controller | pool | {"buffer": buffer}
