"""How the actors of a run are called, so that dashboard and CLI find them."""

from typing import Any

import ray
from ray.actor import ActorHandle

NAMESPACE = "iris-ray"

SAMPLE_BUFFER = "sample-buffer"
WEIGHT_STORE = "weight-store"
CONTROLLER = "controller"
GENERATOR_POOL = "generator-pool"
LEARNER = "learner"


def generator(index: int) -> str:
    return f"generator-{index}"


def start(actor_class: Any, run: str, role: str, *args: Any, **options: Any) -> ActorHandle:
    """Start an actor of run `run` as `<run>/<role>`."""
    return actor_class.options(name=f"{run}/{role}", namespace=NAMESPACE, **options).remote(*args)


def find(run: str, role: str) -> ActorHandle:
    """The actor `<run>/<role>`; `ValueError` if there is none."""
    return ray.get_actor(f"{run}/{role}", namespace=NAMESPACE)
