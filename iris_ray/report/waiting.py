"""Who waited for whom, in numbers and in a sentence."""

from dataclasses import dataclass

from iris_ray.report.history import History

OFTEN = 0.15  # of the rounds' time


@dataclass(frozen=True)
class Waiting:
    """Seconds over all rounds that are over: their length, the learner's waiting, the writing."""

    seconds: float
    learner_waited: float
    writing: float

    @property
    def learner_share(self) -> float:
        return self.learner_waited / self.seconds

    @property
    def writing_share(self) -> float:
        return self.writing / self.seconds

    @property
    def verdict(self) -> str:
        """What held up the run, and what would help."""
        if self.learner_share > OFTEN:
            return "Writing was the slower part. More generators help: iris-ray scale, or generation.count."
        if self.writing_share < 1 - OFTEN:
            return (
                "Training was the slower part: the generators had written everything well before the learner "
                "was through. More learner ranks help, more generators do not."
            )
        return "Neither waited much for the other."


def waiting(history: History) -> Waiting | None:
    """`None` while no round is over."""
    over = [entry for entry in history.iterations if entry["seconds"]]
    if not over:
        return None
    seconds, waited, writing = (
        sum(entry[name] or 0.0 for entry in over)
        for name in ("seconds", "learner_waited_seconds", "generation_seconds")
    )
    return Waiting(seconds, waited, writing)
