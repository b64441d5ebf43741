"""The timeline drawn: a lane for the writing, one for the learner, one for each generator."""

from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from iris_ray.report.svg import ALARM, INK, PAPER, REAL, SYNTHETIC, THIRD, drawing, inline_svg
from iris_ray.report.timeline import Spell, Timeline

UNITS = ((3600, "hours"), (60, "minutes"), (1, "seconds"))
MOST_NOTES = 40  # spells of a lane that are few enough to be numbered


def timeline_svg(line: Timeline) -> Markup:
    """The picture as an element of the page."""
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
        if spell.note and len(spells) <= MOST_NOTES:
            axes.text(
                spell.begin / unit, lane, f" {spell.note}", va="center", color=PAPER, zorder=3, clip_on=True
            )


def _number(generator: str) -> tuple[int, str]:
    _, _, number = generator.rpartition("-")
    return (int(number) if number.isdecimal() else 0, generator)
