"""Which version of the opponent is the newest, step by step."""

from iris_ray.config import Schedule
from iris_ray.game import Round


def steps_between(schedule: Schedule) -> int | None:
    """Optimiser steps between two versions within a round; `None` if the opponent stays for the round."""
    return None if schedule.refresh == "iteration" else schedule.refresh


def newest_version(round_: Round, step: int, every: int | None) -> int:
    """The newest version once `step` steps of the round are done: one more after every `every` steps."""
    return round_.version + (step // every if every else 0)


def next_version(round_: Round, steps: int, every: int | None) -> int:
    """The version that follows a round of `steps` steps, and opens the next one."""
    return newest_version(round_, steps - 1, every) + 1
