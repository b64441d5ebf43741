"""How a run stands, put together from its actors."""

from typing import Any

import ray

from actors import names


def run_status(run: str, timeout: float) -> dict[str, Any]:
    """Fields of `Records.status` and of the pool's, beside those of `buffer`; waits `timeout` s at most.

    Raises Ray's error if an actor is gone, `ValueError` if there is none.
    """
    roles = (names.CONTROLLER, names.SAMPLE_BUFFER, names.GENERATOR_POOL)
    asked: list[Any] = [names.find(run, role).status.remote() for role in roles]
    asked.append(names.find(run, names.WEIGHT_STORE).__ray_ready__.remote())
    controller, buffer, pool, _ = ray.get(asked, timeout=timeout)
    return controller | pool | {"buffer": buffer}
