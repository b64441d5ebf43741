"""Errors out of actors, for people."""

from collections.abc import Iterator

from iris_ray.errors import IrisRayError


def user_error(error: BaseException) -> BaseException:
    """The error of ours inside what Ray raised, if there is one, else the error itself."""
    return next((cause for cause in _causes(error) if isinstance(cause, IrisRayError)), error)


def _causes(error: BaseException) -> Iterator[BaseException]:
    """Ray wraps errors of actors, Ray Train those of its workers, task groups those of their tasks."""
    seen = [error]
    for current in seen:
        inner = [getattr(current, "cause", None), current.__cause__]
        inner += getattr(current, "exceptions", ())
        inner += getattr(current, "worker_failures", {}).values()
        seen += [cause for cause in inner if isinstance(cause, BaseException) and cause not in seen]
        if type(current).__mro__[1].__name__ != "RayTaskError":
            yield current
