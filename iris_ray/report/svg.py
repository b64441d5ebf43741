"""Figures as inline SVG that takes the page's colours, in light, dark and print."""

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import matplotlib as mpl
from markupsafe import Markup, escape
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

# Drawn in marker colours, which the page's style sheet gives their meaning.
INK, FAINT, GRID, PAPER = "#010101", "#020202", "#030303", "#040404"
SERIES = ("#0a0001", "#0a0002", "#0a0003", "#0a0004", "#0a0005", "#0a0006", "#0a0007", "#0a0008")
REAL, SYNTHETIC, THIRD, ALARM = SERIES[0], SERIES[1], SERIES[2], SERIES[4]
VARIABLES = {INK: "ink", FAINT: "faint", GRID: "grid", PAPER: "paper"} | {
    colour: f"series-{number}" for number, colour in enumerate(SERIES, 1)
}

# Fonts are the page's, a style sheet in a figure would hold for the whole page, the rest is room.
SHORTER = (
    (r"<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->", ""),
    (r"font-family: [^;\"]*(; )?", ""),
    (r"xlink:href", "href"),
    (r"\s*\n\s*", " "),
    (r"> <", "><"),
)
STYLE: dict[Any, Any] = {
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "iris-ray",  # the same run gives the same page
    "font.size": 8.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": FAINT,
    "axes.labelcolor": FAINT,
    "axes.titlecolor": FAINT,
    "axes.titlesize": 8.5,
    "axes.titlelocation": "left",
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.formatter.useoffset": False,
    "axes.formatter.limits": (-3, 4),
    "axes.unicode_minus": True,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "xtick.color": FAINT,
    "ytick.color": FAINT,
    "text.color": INK,
    "legend.frameon": False,
    "legend.borderaxespad": 0,
    "legend.handlelength": 1.2,
    "legend.columnspacing": 1.2,
    "lines.linewidth": 1.4,
    "patch.linewidth": 0,
}


@contextmanager
def drawing(width: float, height: float) -> Iterator[Figure]:
    """A figure of so many inches, in the style of the page while the block runs."""
    with mpl.rc_context(STYLE):
        yield Figure((width, height), layout="constrained")


def inline_svg(figure: Figure, name: str, label: str) -> Markup:
    """The figure as an element of the page; `label` says in words what it shows.

    `name` keeps its ids apart from those of other figures.
    """
    file = io.StringIO()
    FigureCanvasSVG(figure).print_svg(file, metadata={"Date": None, "Creator": None})
    _, _, svg = file.getvalue().partition("<svg")
    _, _, svg = svg.partition(">")  # its own head: sizes in points, and namespaces that a page does not need
    for pattern, shorter in SHORTER:
        svg = re.sub(pattern, shorter, svg, flags=re.DOTALL)
    svg = re.sub(r' d="[^"]+"', lambda path: re.sub(r"(\.\d\d)\d+", r"\1", path[0]), svg)
    referenced = set(re.findall(r'(?:href="|url\()#([^")]+)', svg))
    svg = re.sub(
        r' id="([^"]+)"',
        lambda found: f' id="{name}-{found[1]}"' if found[1] in referenced else "",
        svg,
    )
    svg = re.sub(r'(href="|url\()#', rf"\g<1>#{name}-", svg)
    for colour, variable in VARIABLES.items():
        svg = svg.replace(colour, f"var(--{variable})")
    width, height = (72 * size for size in figure.get_size_inches())
    box = f"0 0 {width:g} {height:g}"
    return Markup(f'<svg viewBox="{box}" role="img" aria-label="{escape(label)}">{svg.strip()}')
