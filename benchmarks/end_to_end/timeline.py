"""Where the time of a run went: `python -m benchmarks.end_to_end.timeline RUN --figure FILE`."""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, NamedTuple

import matplotlib as mpl
import matplotlib.pyplot as plt
import typer
from matplotlib.axes import Axes

from benchmarks.style import STYLE
from iris_ray.contracts import PHASES
from iris_ray.report.history import History, read_history
from iris_ray.report.timeline import timeline
from iris_ray.run_folder import RunFolder

# In the order in which a step takes them; with the colours of the picture.
COLOURS = {
    "between": "tab:pink",
    "checkpoint": "tab:cyan",
    "wait": "0.85",
    "fetch": "0.65",
    "score": "tab:olive",
    "forward": "tab:green",
    "backward": "tab:blue",
    "publish": "tab:red",
    "optimizer": "tab:purple",
    "other": "0.4",
}
WRITING, LOADING = "tab:orange", "tab:red"

mpl.rcParams.update(STYLE)
app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


class Block(NamedTuple):
    """A phase of the learner, in seconds since the first generator was ready."""

    phase: str
    begin: float
    end: float


def blocks(history: History) -> Iterator[Block]:
    """The learner's phases one after the other, each step's laid out to end when it was recorded."""
    steps, zero = history.steps, history.times[0]
    for row, time in enumerate(steps["time"]):
        end = time - zero
        for phase in reversed(COLOURS):
            seconds = steps[f"{phase}_seconds"][row]
            yield Block(phase, end - seconds, end)
            end -= seconds


def shares(history: History) -> dict[str, float]:
    """Seconds of each phase in all steps, the longest first."""
    seconds = {phase: float(history.steps[f"{phase}_seconds"].sum()) for phase in PHASES}
    return dict(sorted(seconds.items(), key=lambda item: -item[1]))


@app.command()
def show(
    run: Path,
    figure: Annotated[Path | None, typer.Option(help="An SVG of the whole run, and of a part.")] = None,
    begin: Annotated[float, typer.Option(help="Where the part begins, in s.")] = 4.0,
    seconds: Annotated[float, typer.Option(help="How long the part is.")] = 6.0,
) -> None:
    """The learner's phases as a Markdown table, and a picture of them beside the generators."""
    history = read_history(RunFolder(run))
    spent = shares(history)
    typer.echo("| the learner | s | share |\n|---|---:|---:|")
    for phase, each in spent.items():
        typer.echo(f"| {phase} | {each:.1f} | {each / sum(spent.values()):.0%} |")
    if figure:
        _draw(history, figure, begin, seconds)


def _draw(history: History, path: Path, begin: float, seconds: float) -> None:
    figure, (whole, part) = plt.subplots(2, 1, figsize=(11, 4.2))
    _lanes(whole, history, 0, history.times[-1] - history.times[0])
    _lanes(part, history, begin, begin + seconds)
    part.set_xlabel("seconds since the first generator was ready")
    names = [name for name, spent in shares(history).items() if spent > 0]
    handles = [plt.Rectangle((0, 0), 1, 1, color=COLOURS[name]) for name in COLOURS if name in names]
    labels = [name for name in COLOURS if name in names]
    handles += [plt.Rectangle((0, 0), 1, 1, color=colour) for colour in (WRITING, LOADING)]
    figure.legend(handles, [*labels, "writes", "loads"], loc="lower center", ncols=6, frameon=False)
    figure.tight_layout(rect=(0, 0.1, 1, 1))
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Date": None}, dpi=150)


def _lanes(axes: Axes, history: History, begin: float, end: float) -> None:
    line = timeline(history)
    assert line is not None
    shown = [block for block in blocks(history) if block.end > begin and block.begin < end]
    for phase, colour in COLOURS.items():
        bars = [(block.begin, block.end - block.begin) for block in shown if block.phase == phase]
        # Thousands of bars make a large file as lines, and a small one as pixels.
        axes.broken_barh(bars, (-0.35, 0.7), facecolors=colour, linewidth=0, rasterized=True)
    writing = [(spell.begin, spell.end - spell.begin) for spell in line.writing]
    axes.broken_barh(writing, (0.65, 0.7), facecolors=WRITING)
    loads = [spell for updates in line.updates.values() for spell in updates]
    shortest = (end - begin) / 300  # to be seen
    bars = [(spell.begin, max(shortest, spell.end - spell.begin)) for spell in loads]
    axes.broken_barh(bars, (0.8, 0.4), facecolors=LOADING)
    axes.set_yticks([0, 1], ["learner", "generators"])
    axes.set_xlim(begin, end)


if __name__ == "__main__":
    app()
