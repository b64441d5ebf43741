"""The benchmark: `python -m benchmarks.control_plane` plays with many generators that only sleep."""

import json
import platform
from dataclasses import asdict
from importlib.metadata import version
from typing import Annotated

import typer
from rich.console import Console

from benchmarks.control_plane.measurement import measure
from benchmarks.control_plane.settings import Settings
from benchmarks.control_plane.tables import report_table
from benchmarks.learner.machine import machine
from benchmarks.options import AsJson, Count

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
errors = Console(stderr=True)


@app.command()
def benchmark(
    as_json: AsJson = False,
    generators: Annotated[str, typer.Option(help="Numbers of generators, one run each.")] = "10,100,300,1000",
    rate: Annotated[float, typer.Option(min=0.01, help="Pairs a second that a generator writes.")] = 10.0,
    seconds: Annotated[
        float, typer.Option(min=1, help="Measured in each run, after 10 s of warm-up.")
    ] = 20.0,
    processes: Annotated[int, typer.Option(min=1, help="That the generators share.")] = 2,
    prompt_tokens: Count = 64,
    response_tokens: Count = 128,
    batch: Count = 1024,
    concurrency: Annotated[int, typer.Option(min=1, help="generation.concurrency")] = 16,
) -> None:
    """Pairs a second through one sample buffer: real Ray actors and calls, no model anywhere."""
    settings = Settings(rate, seconds, processes, prompt_tokens, response_tokens, batch, concurrency)
    rows = []
    for count in map(int, generators.split(",")):
        with errors.status(f"{count} generators"):
            rows.append(measure(settings, count))
    report = {
        "machine": machine(threads=1),
        "versions": {"ray": version("ray"), "python": platform.python_version()},
        **asdict(settings),
        "rows": rows,
    }
    typer.echo(json.dumps(report, indent=1)) if as_json else Console().print(report_table(report))


if __name__ == "__main__":
    app()
