"""How the actors of a run are called, so that dashboard and CLI find them."""

import time
from collections.abc import Iterable
from typing import Any

import ray
from ray.actor import ActorHandle
from ray.util import list_named_actors

NAMESPACE = "iris-ray"

SAMPLE_BUFFER = "sample-buffer"
WEIGHT_STORE = "weight-store"
CONTROLLER = "controller"
GENERATOR_POOL = "generator-pool"
LEARNER = "learner"

# Calls that an actor serves at a time, where each generator may have one that waits. Ray's own bound of 1,000
# would leave no place for the call that they wait for.
MOST_CALLS = 100_000


def generator(index: int) -> str:
    return f"generator-{index}"


def start(actor_class: Any, run: str, role: str, *args: Any, **options: Any) -> ActorHandle:
    """Start an actor of run `run` as `<run>/<role>`."""
    return actor_class.options(name=f"{run}/{role}", namespace=NAMESPACE, **options).remote(*args)


def wait_free(run: str, roles: Iterable[str], seconds: float) -> None:
    """Wait until Ray has let go of the names of actors that were killed; `TimeoutError` if it does not."""
    deadline = time.monotonic() + seconds
    left = {f"{run}/{role}" for role in roles}
    while left := left & {actor["name"] for actor in list_named_actors(all_namespaces=True)}:
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited {seconds:g} s for the end of the actors {', '.join(sorted(left))}")
        time.sleep(0.1)


def find(run: str, role: str) -> ActorHandle:
    """The actor `<run>/<role>`; `ValueError` if there is none."""
    return ray.get_actor(f"{run}/{role}", namespace=NAMESPACE)
