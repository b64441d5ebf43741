"""Errors out of actors, for people."""

from collections.abc import Iterator

from ray.exceptions import RayActorError, RayTaskError

from iris_ray.errors import IrisRayError, ResourceError


def user_error(error: BaseException) -> BaseException:
    """The error of ours inside what Ray raised; a lost actor in words; else the error itself."""
    causes = list(_causes(error))
    for cause in causes:
        # Ray's copy of an error is an instance of its class too, but its text is a whole traceback.
        if isinstance(cause, IrisRayError) and not isinstance(cause, RayTaskError):
            return cause
    for cause in causes:
        if isinstance(cause, RayActorError):
            return ResourceError(
                f"an actor of the run died: {str(cause).strip()}\nThe logs of all processes lie in "
                "/tmp/ray/session_latest/logs of its node; out of memory is the most frequent reason."
            )
    return error


def _causes(error: BaseException) -> Iterator[BaseException]:
    """Ray wraps errors of actors, Ray Train those of its ranks, task groups those of their tasks."""
    found = [error]
    for current in found:
        inner = [getattr(current, "cause", None), current.__cause__]
        inner += getattr(current, "exceptions", ())
        inner += getattr(current, "worker_failures", {}).values()
        found += [cause for cause in inner if isinstance(cause, BaseException) and cause not in found]
        yield current
