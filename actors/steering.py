"""Steering a run from another process."""

import json
from pathlib import Path
from typing import Any

import ray
from ray.actor import ActorHandle
from ray.util import list_named_actors

from actors import names
from actors.cluster import connect
from iris_ray.errors import ConfigError
from iris_ray.run_folder import RunFolder

TIMEOUT_S = 60


def scale(run: str | Path, count: int, address: str | None = None) -> dict[str, Any]:
    """Have `count` generators in a run that is going on; returns the pool's status.

    `run` is its folder, or its name on the Ray cluster at `address`. Returns at once: generators that are
    wanted start, and those that leave finish what they have. Raises `ConfigError` if there is no such run,
    or `count` is below 1.
    """
    folder = RunFolder(Path(run))
    if address is None and folder.cluster.exists():
        address = json.loads(folder.cluster.read_text())["address"]
    connect(address or "auto")
    try:
        pool = _pool(folder.path.name)
        ray.get(pool.scale.remote(count), timeout=TIMEOUT_S)
        status: dict[str, Any] = ray.get(pool.status.remote(), timeout=TIMEOUT_S)
        return status
    finally:
        ray.shutdown()


def _pool(run: str) -> ActorHandle:
    try:
        return names.find(run, names.GENERATOR_POOL)
    except ValueError:
        role = f"/{names.GENERATOR_POOL}"
        there = [
            actor["name"].removesuffix(role)
            for actor in list_named_actors(all_namespaces=True)
            if actor["namespace"] == names.NAMESPACE and actor["name"].endswith(role)
        ]
        raise ConfigError(
            f"{run}: no such run plays on this Ray cluster. There: {', '.join(sorted(there)) or 'none'}."
        ) from None
