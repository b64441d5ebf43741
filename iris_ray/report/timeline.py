"""When generators wrote, the learner stepped, and who stood still."""

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from statistics import median
from typing import Any

from iris_ray.report.clock import Clock
from iris_ray.report.history import History

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
    resumes = [clock(time) for time in clock.at]
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
        alive={name: list(_alive(events, clock, resumes, end)) for name, events in by_generator.items()},
        updates=updates,
        deaths={
            name: [clock(event["time"]) for event in events if event["state"] == "died"]
            for name, events in by_generator.items()
        },
        resumes=resumes,
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


def _alive(
    events: Iterable[dict[str, Any]], clock: Clock, resumes: list[float], end: float
) -> Iterator[Spell]:
    """Each time from a generator's being ready until it was gone, or until now."""
    began: float | None = None
    for event in events:
        now = clock(event["time"])
        if event["state"] == "ready":
            if began is not None:  # it ended with the run, and nobody was there to record it
                yield Spell(began, max([time for time in resumes if time <= now], default=now))
            began = now
        elif began is not None:
            yield Spell(began, now)
            began = None
    if began is not None:
        yield Spell(began, end)
