"""The study: `python -m benchmarks.method` plays every cell that has no result yet, then draws it all."""

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import ray
import torch
import typer
from rich.progress import track

from benchmarks.method.cell import LEARNING_RATES, SEEDS, Cell, play, start_weights
from benchmarks.method.methods import MAIN_METHODS, METHODS
from benchmarks.method.results import append, missing
from benchmarks.method.worlds import EARLY_WORLDS, WORLDS

RESULTS = Path("runs/method-study/results.jsonl")
FOLDER = Path(__file__).parents[2] / "docs" / "method-study"

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def study(
    world: Annotated[list[str] | None, typer.Option(help="Only this world; may be repeated.")] = None,
    method: Annotated[list[str] | None, typer.Option(help="Only this method; may be repeated.")] = None,
    seed: Annotated[list[int] | None, typer.Option(help="Only this seed; may be repeated.")] = None,
    results: Annotated[Path, typer.Option(help="Where results are kept and read.")] = RESULTS,
    draw: Annotated[bool, typer.Option(help="Write figures and tables afterwards.")] = True,
) -> None:
    """Play all cells that have no result yet, each a Ray task on one core."""
    for name, known in ((world or [], WORLDS + EARLY_WORLDS), (method or [], METHODS)):
        for unknown in set(name) - set(known):
            raise typer.BadParameter(f"{unknown!r} does not exist. There are: {', '.join(known)}.")
    cells = [
        Cell(*key)
        for key in itertools.product(WORLDS + EARLY_WORLDS, METHODS, LEARNING_RATES, SEEDS)
        if (key[0] in WORLDS or key[1] in MAIN_METHODS)
        and key[0] in (world or key)
        and key[1] in (method or key)
        and key[3] in (seed or key)
    ]
    # Seed by seed, so that a study that was stopped early has whole comparisons.
    todo = sorted(missing(cells, results), key=lambda cell: (cell.seed, cell.world in EARLY_WORLDS))
    typer.echo(f"{len(cells)} cells, {len(todo)} of them to play.")
    if todo:
        ray.init(include_dashboard=False, log_to_driver=False)
        for entry in track(_play_all(todo), "playing", total=len(todo)):
            append(results, entry)
    if draw:
        from benchmarks.method.report import write_report

        write_report(results, FOLDER)
        typer.echo(f"Written: {FOLDER}")


def _play_all(cells: list[Cell]) -> Iterator[dict[str, Any]]:
    """Results as they come; cells of one world and seed share the start weights."""
    start = ray.remote(num_cpus=1)(start_weights)
    game = ray.remote(num_cpus=1)(play)
    starts: dict[tuple[str, int], ray.ObjectRef] = {}
    running: list[ray.ObjectRef] = []
    limit = 2 * int(ray.cluster_resources()["CPU"])
    for cell in cells:
        key = (cell.world, cell.seed)
        if key not in starts:
            starts[key] = start.remote(*key)
        running.append(game.remote(cell, starts[key]))
        while len(running) >= limit:
            done, running = ray.wait(running)
            yield from ray.get(done)
    while running:
        done, running = ray.wait(running)
        yield from ray.get(done)


if __name__ == "__main__":
    torch.set_num_threads(1)
    app()
