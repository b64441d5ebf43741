"""When generators wrote, the learner stepped, and who stood still."""

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from statistics import median
from typing import Any

from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from iris_ray.report.history import History
from iris_ray.report.svg import ALARM, INK, PAPER, REAL, SYNTHETIC, THIRD, drawing, inline_svg

PAUSE_S = 600  # of nothing recorded before a resume: the run was stopped, and the picture leaves it out
SLOW = 3  # times the median step: something other than the step took the time
UNITS = ((3600, "hours"), (60, "minutes"), (1, "seconds"))
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


def timeline_svg(line: Timeline) -> Markup:
    """The picture: writing and learner on top, then a lane for each generator."""
    unit, name = next((unit, name) for unit, name in UNITS if line.seconds >= 3 * unit or unit == 1)
    generators = sorted(line.alive.keys() | line.updates.keys(), key=_number)
    lanes = ["pairs are written", "learner", *generators]
    with drawing(10, 0.75 + 0.32 * len(lanes)) as figure:
        axes = figure.add_subplot()
        _bars(axes, line.writing, 0, unit, SYNTHETIC)
        _bars(axes, line.stepping, 1, unit, REAL)
        _bars(axes, line.slow, 1, unit, ALARM, height=0.34)
        for lane, generator in enumerate(generators, 2):
            _bars(axes, line.alive.get(generator, []), lane, unit, THIRD, height=0.3, alpha=0.55)
            _bars(
                axes,
                line.updates.get(generator, []),
                lane,
                unit,
                ALARM,
                height=0.62,
                shortest=0.0015 * line.seconds,
            )
            deaths = [time / unit for time in line.deaths.get(generator, [])]
            axes.plot(deaths, [lane] * len(deaths), "X", color=INK, markersize=6, markeredgewidth=0)
        for time in line.resumes:
            axes.axvline(time / unit, color=INK, linewidth=1)
        axes.set_yticks(range(len(lanes)), lanes)
        axes.tick_params(axis="y", length=0, labelcolor=INK)
        axes.set_ylim(len(lanes) - 0.45, -0.55)
        axes.set_xlim(0, max(line.seconds, 1e-3) / unit)
        axes.xaxis.set_major_locator(MaxNLocator(12))
        axes.grid(visible=False, axis="y")
        axes.set_xlabel(f"{name} since the first generator was ready")
        axes.spines["left"].set_visible(False)
        label = (
            f"Timeline of {line.seconds:.0f} s: when pairs were written, when the learner stepped, and the "
            f"lives of {len(generators)} generators"
        )
        return inline_svg(figure, "timeline", label)


def _bars(
    axes: Axes,
    spells: list[Spell],
    lane: int,
    unit: float,
    colour: str,
    height: float = 0.62,
    alpha: float = 1,
    shortest: float = 0,
) -> None:
    spans = [(spell.begin / unit, max(spell.end - spell.begin, shortest) / unit) for spell in spells]
    axes.broken_barh(spans, (lane - height / 2, height), color=colour, alpha=alpha)
    for spell in spells:
        if spell.note and len(spells) <= 40:
            axes.text(
                spell.begin / unit, lane, f" {spell.note}", va="center", color=PAPER, zorder=3, clip_on=True
            )


def _number(generator: str) -> tuple[int, str]:
    _, _, number = generator.rpartition("-")
    return (int(number) if number.isdecimal() else 0, generator)
