"""Errors that a user can mend; the CLI prints their message without a traceback."""


def first_line(error: BaseException) -> str:
    """What a library's error says first, or its class if it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


class IrisRayError(Exception):
    """Base of the errors below: the message names the field, the value and the fix."""


class ConfigError(IrisRayError):
    """A setting that does not exist or does not fit."""


class DataError(IrisRayError):
    """Annotated data that cannot be read or used."""


class ModelError(IrisRayError):
    """A model folder or tokenizer that cannot be used."""


class RunFolderError(IrisRayError):
    """A run folder that cannot take this run."""


class CheckpointError(IrisRayError):
    """A checkpoint that cannot be written, read or resumed from."""


class ResourceError(IrisRayError):
    """The cluster cannot hold the actors that were asked for, or lost one."""


class UnavailableError(IrisRayError):
    """A run, or a part of it, that was asked for something and is not there."""


class NotObeyedError(IrisRayError):
    """The learner has not come to an order yet."""


class RunStopped(KeyboardInterrupt):
    """Somebody asked the run to stop, from elsewhere, and it did, at a checkpoint."""


class LostActorError(ResourceError):
    """An actor that holds the run's state died."""


class EngineError(IrisRayError):
    """A generator's engine died."""


class UpdateError(IrisRayError):
    """A weight update that failed or took too long; the generator is out of service."""


class ParityError(IrisRayError):
    """A generator's log-probs differ from the learner's after a weight update."""
