"""iris-ray: self-play fine-tuning of language models as a service on Ray clusters."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from iris_ray.config import RunConfig as RunConfig
    from iris_ray.self_play import SelfPlay as SelfPlay

__all__ = ["RunConfig", "SelfPlay"]


def __getattr__(name: str) -> Any:
    # Actors that only keep books import this package too: leave torch out until someone asks for it.
    if name == "RunConfig":
        from iris_ray.config import RunConfig

        return RunConfig
    if name == "SelfPlay":
        from iris_ray.self_play import SelfPlay

        return SelfPlay
    raise AttributeError(f"module 'iris_ray' has no attribute {name!r}")
