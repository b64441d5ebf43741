"""What was measured, as Markdown tables of the documentation."""

from benchmarks.growth.results import Results, load
from benchmarks.growth.trends import seconds, trends
from benchmarks.processes import KINDS

TITLES = {
    "generators": "generators",
    "length": "tokens of a response",
    "model": "parameters, millions",
    "batch": "pairs of a batch",
    "dataset": "prompts",
    "iterations": "iterations",
}
SPEED = {
    "pairs/s": ("pairs_per_s", ".1f"),
    "start, s": ("start_s", ".1f"),
    "of it data, s": ("prepare_s", ".1f"),
    "boundary, s": ("boundary_s", ".2f"),
    "iteration, s": ("iteration_s", ".2f"),
}
MEMORY = {
    "all, MiB": ("peak_mib", ",.0f"),
    **{kind: (f"{kind}_mib", ",.0f") for kind in KINDS},
    "object store": ("store_mib", ",.1f"),
    "handles": ("handles", ",.0f"),
}


def markdown(results: Results) -> str:
    """Two tables for each curve that has points, and one for each long run."""
    parts = []
    for curve, title in TITLES.items():
        if not (rows := results.rows(curve)):
            continue
        parts.append(f"### {title.capitalize()}")
        for columns in (SPEED, MEMORY):
            cells = [
                [f"{int(row['value']):,}", *(format(float(row[c]), style) for c, style in columns.values())]
                for row in rows
            ]
            parts.append(_table([title, *columns], cells))
        if curve == "iterations":
            parts += [_course(results, int(row["value"])) for row in rows]
    return "\n\n".join(parts)


def _course(results: Results, iterations: int) -> str:
    course = load(results.course(iterations))
    first, last = seconds(course)
    heads = ["", "MiB at the end", "gained in 1,000", "handles", "gained in 1,000"]
    cells = [
        [
            str(row["part"]),
            f"{row['mib']:,.1f}",
            f"{row['mib_per_1000']:+,.1f}",
            *([f"{row['handles']:,}", f"{row['handles_per_1000']:+,.1f}"] if "handles" in row else ["", ""]),
        ]
        for row in trends(course)
    ]
    text = f"{iterations:,} iterations. One takes {first:.2f} s at first, {last:.2f} s at last."
    return f"{text}\n\n{_table(heads, cells)}"


def _table(heads: list[str], rows: list[list[str]]) -> str:
    rule = ["---:" if head != "" else "---" for head in heads]
    return "\n".join(f"| {' | '.join(row)} |" for row in (heads, rule, *rows))
