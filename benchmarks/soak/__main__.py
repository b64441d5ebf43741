"""The soak: `python -m benchmarks.soak --minutes 60` plays the demo in a loop and does it harm."""

import json
import socket
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import typer
from rich.console import Console

from benchmarks.learner.machine import machine
from benchmarks.options import AsJson
from benchmarks.soak import sampling
from benchmarks.soak.figure import draw
from benchmarks.soak.settings import Settings
from benchmarks.soak.soak import Soak
from benchmarks.soak.tables import report_tables
from benchmarks.soak.verdict import by_fault, by_kind, losses, plain, reasons, sizes
from benchmarks.soak.visitors import totals
from iris_ray.interrupt import hear_signals
from iris_ray.versions import versions

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
errors = Console(stderr=True)
SHORTEST = 1.0


@app.command()
def soak(
    as_json: AsJson = False,
    minutes: Annotated[float, typer.Option(min=SHORTEST, help="From the first step on.")] = 60.0,
    seed: Annotated[int, typer.Option(help="Of what happens, and when.")] = 0,
    gap: Annotated[float, typer.Option(min=1, help="Mean seconds between two faults or orders.")] = 30.0,
    rate: Annotated[float, typer.Option(min=0.1, help="Requests to the gateway, in 1/s.")] = 3.0,
    every: Annotated[float, typer.Option(min=1, help="Seconds between two samples.")] = 5.0,
    generators: Annotated[int, typer.Option(min=1, help="Most that are asked for.")] = 3,
    memory_margin: Annotated[float, typer.Option(help="MiB that a process may gain in an hour.")] = 60.0,
    handles_margin: Annotated[float, typer.Option(help="File handles that it may gain in an hour.")] = 30.0,
    samples: Annotated[Path | None, typer.Option(help="CSV file for all samples.")] = None,
    figure: Annotated[Path | None, typer.Option(help="SVG file for memory and handles over time.")] = None,
    keep: Annotated[Path | None, typer.Option(help="New folder that keeps the runs; a short path.")] = None,
) -> None:
    """Exit code 1 if a ledger is not exact, a process lives on, or something leaks or breaks."""
    hear_signals()  # whoever ends it leaves no run behind
    settings = Settings(minutes, seed, gap, rate, every, generators, memory_margin, handles_margin)
    if keep:
        keep.mkdir(parents=True)
        report = _play(settings, keep.absolute(), samples, figure)
    else:
        with TemporaryDirectory(prefix="soak-", ignore_cleanup_errors=True) as folder:
            report = _play(settings, Path(folder), samples, figure)
    typer.echo(json.dumps(report, indent=1)) if as_json else Console().print(report_tables(report))
    if report["reasons"]:
        raise typer.Exit(1)


def _play(settings: Settings, folder: Path, samples: Path | None, figure: Path | None) -> dict[str, Any]:
    told = Soak(settings, folder, _port(), lambda text: errors.print(text, highlight=False))
    told.play()
    found, taken = told.found(), told.sampler.samples
    if samples:
        sampling.write(taken, samples)
    if figure:
        draw(taken, told.progress.incidents, told.sampler.began, figure)
    report: dict[str, Any] = {
        "machine": machine(threads=1),
        "versions": versions(),
        "settings": asdict(settings),
        "runs": found["runs"],
        "orphans": found["orphans"],
        "problems": found["problems"],
        "faults": by_fault(told.progress.incidents),
        "incidents": [asdict(one) | {"seconds": one.seconds} for one in told.progress.incidents],
        "losses": losses(told.progress),
        "warnings": told.progress.warnings,
        "kinds": [plain(row) for row in by_kind(taken)],
        "sizes": sizes(taken),
        "http": totals(found["visits"]),
    }
    return report | {"reasons": reasons(report, settings)}


def _port() -> int:
    """A free one below those that the system gives away by itself: it is used again after each stop."""
    for port in range(18300, 18400):
        with socket.socket() as tried:
            if tried.connect_ex(("127.0.0.1", port)):
                return port
    raise RuntimeError("no port is free between 18300 and 18399")


if __name__ == "__main__":
    app()
