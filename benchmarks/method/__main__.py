"""The study: `python -m benchmarks.method` plays every cell that has no result yet, then draws them all."""

import itertools
import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any

import ray
import torch
import typer
from rich.progress import track

from benchmarks.method.cell import ITERATIONS, LEARNING_RATES, SEEDS, Cell, play, start_weights
from benchmarks.method.methods import MAIN_METHODS, METHODS
from benchmarks.method.report import write_report
from benchmarks.method.results import Row, append, cell_of, load, missing, values
from benchmarks.method.worlds import EARLY_WORLDS, WORLDS

RESULTS = Path("docs/method-study/cells.csv")

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def study(
    world: Annotated[list[str] | None, typer.Option(help="Only this world; may be repeated.")] = None,
    method: Annotated[list[str] | None, typer.Option(help="Only this method; may be repeated.")] = None,
    seed: Annotated[list[int] | None, typer.Option(help="Only this seed; may be repeated.")] = None,
    again: Annotated[
        bool, typer.Option("--again", help="Play the cells again and compare; write nothing.")
    ] = False,
    results: Annotated[Path, typer.Option(help="CSV file of results; figures go beside it.")] = RESULTS,
) -> None:
    """Play the cells that have no result yet, each a Ray task on one core; then draw figures and tables."""
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
    todo = sorted(
        cells if again else missing(cells, results), key=lambda cell: (cell.seed, cell.world in EARLY_WORLDS)
    )
    typer.echo(f"{len(cells)} cells, {len(todo)} of them to play.")
    played = track(_play_all(todo), "playing", total=len(todo)) if todo else ()
    if again:
        _compare(played, load(results))
        return
    for entry in played:
        append(results, entry)
    write_report(results)
    typer.echo(f"Figures and tables: {results.parent}")


def _compare(played: Iterable[dict[str, Any]], stored: dict[Cell, Row]) -> None:
    """Print each cell's final KL beside the stored one."""
    for entry in played:
        cell, last = cell_of(entry), f"kl_{ITERATIONS}"
        now, then = values(entry).get(last, math.inf), stored.get(cell, {}).get(last, math.nan)
        typer.echo(
            f"{cell.world}, {cell.method}, {cell.learning_rate:.0e}, seed {cell.seed}: "
            f"KL {now:.6g}, stored {then:.6g}"
        )


def _play_all(cells: list[Cell]) -> Iterator[dict[str, Any]]:
    """Results as they come; cells of one world and seed share the start weights."""
    ray.init(include_dashboard=False, log_to_driver=False)
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
