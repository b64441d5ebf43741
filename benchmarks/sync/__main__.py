"""The benchmark: `python -m benchmarks.sync` publishes weights and updates running vLLM engines with them."""

import json
import platform
from dataclasses import asdict
from importlib.metadata import version
from typing import Annotated, Any

import typer
from rich.console import Console

from benchmarks.learner.machine import machine
from benchmarks.options import AsJson
from benchmarks.sync.measurement import Row, Settings, measure
from benchmarks.sync.tables import report_table
from benchmarks.sync.workload import SHAPES

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
errors = Console(stderr=True)
ALL = ",".join(map(str, SHAPES))


@app.command()
def benchmark(
    as_json: AsJson = False,
    parameters: Annotated[str, typer.Option(help=f"Millions of parameters, of {ALL}.")] = ALL,
    generators: Annotated[str, typer.Option(help="Numbers of generators that update at once.")] = "1,2,4",
    repeats: Annotated[int, typer.Option(min=1, help="Updates of each row.")] = 5,
    bucket_mib: Annotated[int, typer.Option(min=1, help="sync.bucket_mib")] = 64,
    buffer_mib: Annotated[int, typer.Option(min=2, help="sync.buffer_mib")] = 512,
    transport: Annotated[str, typer.Option(help="sync.transport: object_store or gloo")] = "object_store",
    compiled: Annotated[bool, typer.Option("--compile/--eager", help="vLLM compiles: slow start.")] = False,
) -> None:
    """Seconds from publishing to serving, of standing still, and of a plain copy of the same bytes."""
    sizes = _numbers(parameters)
    for unknown in set(sizes) - set(SHAPES):
        raise typer.BadParameter(f"there is no model of {unknown} M parameters. There are: {ALL}.")
    settings = Settings(_numbers(generators), repeats, bucket_mib, buffer_mib, transport, eager=not compiled)
    rows: list[Row] = []
    with errors.status("starting") as status:
        for size in sizes:
            status.update(f"{size} M: starting {max(settings.generators)} engines")
            rows += measure(settings, size, status.update)
    report: dict[str, Any] = {
        "machine": machine(threads=1),
        "versions": {name: version(name) for name in ("ray", "torch")}
        | {"python": platform.python_version()},
        **asdict(settings),
        "rows": rows,
    }
    typer.echo(json.dumps(report, indent=1)) if as_json else Console().print(report_table(report))


def _numbers(text: str) -> list[int]:
    return [int(word) for word in text.replace(",", " ").split()]


if __name__ == "__main__":
    app()
