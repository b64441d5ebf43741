"""Errors out of actors, for people."""

from collections.abc import Iterator

from ray.exceptions import RayActorError, RayTaskError

from iris_ray.errors import EngineError, IrisRayError, ParityError, ResourceError, UpdateError, first_line

REPLACEABLE = (EngineError, UpdateError, ParityError, TimeoutError)


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
                f"an actor of the run died: {str(cause).strip()}\nOut of memory is the most frequent reason. "
                "The logs of its node may tell more; their folder was printed at the start."
            )
    return error


def generator_failure(error: BaseException) -> str | None:
    """Why a generator failed, in a line, if another in its place may do better; `None` for all else.

    It died or was lost with its node; its engine died; it took too long; its weights are not proven.
    """
    if isinstance(error, RayActorError) and not isinstance(error, RayTaskError):
        return first_line(error)
    for cause in _causes(error):
        if isinstance(cause, REPLACEABLE) and not isinstance(cause, RayTaskError):
            return str(cause) or type(cause).__name__
    return None


def is_parity_error(error: BaseException) -> bool:
    """Whether a generator's log-probs differed from the learner's."""
    return any(isinstance(cause, ParityError) for cause in _causes(error))


def _causes(error: BaseException) -> Iterator[BaseException]:
    """Ray wraps errors of actors, Ray Train those of its ranks, task groups those of their tasks."""
    found = [error]
    for current in found:
        inner = [getattr(current, name, None) for name in ("cause", "__cause__", "_base_exc")]
        inner += getattr(current, "exceptions", ())
        inner += getattr(current, "worker_failures", {}).values()
        found += [cause for cause in inner if isinstance(cause, BaseException) and cause not in found]
        yield current
