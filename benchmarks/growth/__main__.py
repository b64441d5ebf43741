"""The benchmark: `python -m benchmarks.growth` varies one thing at a time and measures the whole service."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from benchmarks.growth.figures import draw
from benchmarks.growth.measurement import measure
from benchmarks.growth.points import CURVES, Job, Point, points
from benchmarks.growth.results import Results, load
from benchmarks.growth.tables import markdown
from benchmarks.growth.trends import seconds, trends
from benchmarks.learner.machine import machine, versions
from benchmarks.options import AsJson

RESULTS = Path("docs/growth")

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
errors = Console(stderr=True)


@app.command()
def benchmark(
    as_json: AsJson = False,
    curves: Annotated[str, typer.Option(help="What is varied, one at a time.")] = ",".join(CURVES),
    values: Annotated[str, typer.Option(help="Only these; of iterations, any numbers.")] = "",
    results: Annotated[Path, typer.Option(help="Folder of CSV files and figures.")] = RESULTS,
    only_draw: Annotated[bool, typer.Option("--figures", help="Draw what was measured, no more.")] = False,
    as_markdown: Annotated[bool, typer.Option("--markdown", help="Print it as Markdown, no more.")] = False,
) -> None:
    """Measure what is not in the CSV file yet, draw figures, tell all that was measured."""
    chosen = curves.split(",")
    if unknown := set(chosen) - set(CURVES):
        raise typer.BadParameter(f"there is no {', '.join(unknown)}. There are: {', '.join(CURVES)}.")
    if not all(value.isdecimal() and int(value) for value in values.split(",") if value):
        raise typer.BadParameter(f"--values {values}: write whole numbers above 0, with commas between.")
    found, failures = Results(results), []
    if not (only_draw or as_markdown):
        failures = _measure(found, list(points(chosen, [int(value) for value in values.split(",") if value])))
    if as_markdown:
        typer.echo(markdown(found))
    else:
        drawn = draw(found)
        if as_json:
            typer.echo(json.dumps(_report(found, chosen), indent=1))
        else:
            typer.echo("\n".join([markdown(found), "", *map(str, drawn)]))
    for failure in failures:
        errors.print(failure, markup=False)
    if failures:
        raise typer.Exit(1)


def _measure(results: Results, wanted: list[Point]) -> list[str]:
    """Returns what failed, one line each. A job that stands on several curves is measured once."""
    known = {(row["curve"], int(row["value"])): row for row in load(results.points)}
    todo = [point for point in wanted if (point.curve, point.value) not in known]
    jobs: dict[Job, dict[str, Any]] = {
        point.job: known[point.curve, point.value]
        for point in points(list(CURVES), [])
        if (point.curve, point.value) in known
    }
    failures = []
    with errors.status("starting") as status:
        for number, point in enumerate(todo, 1):
            status.update(f"{number} of {len(todo)}: {point.curve} {point.value:,}")
            try:
                row, course = (jobs[point.job], []) if point.job in jobs else measure(point)
                results.add(row | {"curve": point.curve, "value": point.value}, course)
                jobs[point.job] = row
            except RuntimeError as failure:
                failures.append(f"{point.curve} {point.value}: {failure}")
    return failures


def _report(results: Results, curves: list[str]) -> dict[str, Any]:
    rows = {curve: [_numbers(row) for row in results.rows(curve)] for curve in curves}
    courses = {row["value"]: load(results.course(row["value"])) for row in rows.get("iterations", [])}
    return {
        "machine": machine(threads=1),
        "versions": versions(),
        "curves": rows,
        "trends": {
            iterations: {"seconds_first": seconds(course)[0], "seconds_last": seconds(course)[1]}
            | {"parts": trends(course)}
            for iterations, course in courses.items()
        },
    }


def _numbers(row: dict[str, str]) -> dict[str, Any]:
    return {name: text if name == "curve" else json.loads(text) for name, text in row.items()}


if __name__ == "__main__":
    app()
