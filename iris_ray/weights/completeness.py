"""Whether an update brought everything."""

from iris_ray.errors import EngineError


def check_whole(missing: set[str]) -> None:
    """Raise `EngineError` unless no parameter is `missing` its new value."""
    if missing:
        raise EngineError(
            f"an update was not whole: {len(missing)} parameters got no value, for instance {min(missing)}."
        )
