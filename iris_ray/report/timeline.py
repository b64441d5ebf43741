"""When generators wrote, the learner stepped, and who stood still."""

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from statistics import median
from typing import Any

from iris_ray.report.history import History

PAUSE_S = 600  # of nothing recorded before a resume: the run was stopped, and the picture leaves it out
SLOW = 3  # times the median step: something other than the step took the time
MOST_SPELLS = 400  # of one iteration's learner, the longest stand-stills


@dataclass(frozen=True)
class Spell:
    """From `begin` to `end`, in seconds of the picture."""

    begin: float
    end: float
    note: str = ""


@dataclass(frozen=True)
class Timeline:
    """What the picture shows, each in seconds since its beginning."""

    seconds: float
    writing: list[Spell]
    stepping: list[Spell]
    slow: list[Spell]
    alive: dict[str, list[Spell]]
    updates: dict[str, list[Spell]]
    deaths: dict[str, list[float]]
    resumes: list[float]


class Clock:
    """Seconds since the run's beginning, without pauses between a stop and a resume."""

    def __init__(self, history: History):
        self.begin = float(history.times[0])
        resumed = [event["time"] for event in history.events.get("resumed", [])]
        self.at: list[float] = []
        self.left_out = [0.0]
        for time in sorted(resumed):
            before = history.times[history.times < time]
            pause = time - before[-1] if len(before) else 0.0
            if pause > PAUSE_S:
                self.at.append(time)
                self.left_out.append(self.left_out[-1] + pause)

    def __call__(self, time: float) -> float:
        return float(time) - self.begin - self.left_out[bisect_right(self.at, time)]


def timeline(history: History) -> Timeline | None:
    """The run's timeline; `None` if nothing was recorded."""
    if not len(history.times):
        return None
    clock = Clock(history)
    stepping, slow = [], []
    for entry in history.iterations:
        times = [clock(time) for time in history.steps_of(entry["iteration"])["time"]]
        if times:
            stepping.append(Spell(times[0], times[-1], str(entry["iteration"])))
            slow += _slow(times)
    end = clock(history.times[-1])
    by_generator: defaultdict[str, list[dict[str, Any]]] = defaultdict(list)
    for event in history.events.get("generator", []):
        by_generator[event["generator"]].append(event)
    updates: defaultdict[str, list[Spell]] = defaultdict(list)
    for update in history.events.get("update", []):
        done = clock(update["time"])
        updates[update["generator"]].append(Spell(max(0.0, done - update["seconds"]), done))
    return Timeline(
        seconds=end,
        writing=list(_writing(history, clock)),
        stepping=stepping,
        slow=slow,
        alive={name: list(_alive(events, clock, end)) for name, events in by_generator.items()},
        updates=updates,
        deaths={
            name: [clock(event["time"]) for event in events if event["state"] == "died"]
            for name, events in by_generator.items()
        },
        resumes=[clock(event["time"]) for event in history.events.get("resumed", [])],
    )


def _writing(history: History, clock: Clock) -> Iterator[Spell]:
    """From each round's opening to its last pair; an open round's until now."""
    took = {entry["iteration"]: entry["generation_seconds"] for entry in history.iterations}
    written = {event["iteration"]: clock(event["time"]) for event in history.events.get("written", [])}
    for iteration, seconds in took.items():
        if iteration in written:
            if seconds is None:  # of a round that is still open: its first step is all that is known
                steps = history.steps_of(iteration)["time"]
                seconds = written[iteration] - clock(steps[0]) if len(steps) else 0.0
            yield Spell(max(0.0, written[iteration] - seconds), written[iteration], str(iteration))
        elif len(steps := history.steps_of(iteration)["time"]):
            yield Spell(clock(steps[0]), clock(steps[-1]), str(iteration))


def _slow(times: list[float]) -> list[Spell]:
    """Steps that took `SLOW` times the median, without what a step takes."""
    lengths = [after - before for before, after in pairwise(times)]
    if not lengths:
        return []
    usual = median(lengths)
    spells = [
        Spell(before, after - usual) for before, after in pairwise(times) if after - before > SLOW * usual
    ]
    return sorted(spells, key=lambda spell: spell.begin - spell.end)[:MOST_SPELLS]


def _alive(events: Iterable[dict[str, Any]], clock: Clock, end: float) -> Iterator[Spell]:
    """Each time from a generator's being ready until it was gone, or until now."""
    began: float | None = None
    for event in events:
        if event["state"] == "ready":
            began = clock(event["time"]) if began is None else began
        elif began is not None:
            yield Spell(began, clock(event["time"]))
            began = None
    if began is not None:
        yield Spell(began, end)
