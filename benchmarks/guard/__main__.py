"""The guard: `python -m benchmarks.guard` counts, and compares with what was counted before."""

import json
import os
import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import Annotated

import torch.distributed as dist
import typer
from rich import box
from rich.console import Console
from rich.table import Table

with redirect_stdout(sys.stderr):  # where DeepSpeed may write its lines, from its import on
    from benchmarks.guard.costs import COUNTED, TIMED, all_costs

BASELINE = Path(__file__).parent / "baseline.json"
# So much higher than before a cost may be. What is counted is the same on every machine.
MARGINS = {cost.__name__: 0.1 for cost in COUNTED} | {cost.__name__: 0.5 for cost in TIMED}

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


def grown(counted: dict[str, float], baseline: dict[str, float]) -> list[str]:
    """What costs more than the margin allows, each with both figures."""
    return [
        f"{name}: {counted[name]:.5g} now, {before:.5g} before: {counted[name] / before - 1:+.0%}, "
        f"{MARGINS[name]:.0%} is allowed"
        for name, before in baseline.items()
        if counted[name] > (1 + MARGINS[name]) * before
    ]


@app.command()
def guard(
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    update: Annotated[bool, typer.Option(help="From now on these are the figures to hold.")] = False,
) -> None:
    """Count what pairs, steps, iterations and weights cost; the exit code is 1 if something costs more."""
    os.environ |= {"LOCAL_RANK": "0", "RANK": "0", "WORLD_SIZE": "1"}
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    with redirect_stdout(sys.stderr):
        counted = all_costs()
    if update:
        BASELINE.write_text(json.dumps(counted, indent=1) + "\n")
    baseline = json.loads(BASELINE.read_text())
    failures = grown(counted, baseline)
    if as_json:
        typer.echo(
            json.dumps({"costs": counted, "baseline": baseline, "margins": MARGINS, "grown": failures})
        )
    else:
        table = Table(box=box.SIMPLE_HEAD)
        for column in ("", "before", "now", "what"):
            table.add_column(column, justify="left" if column in ("", "what") else "right")
        for cost in (*COUNTED, *TIMED):
            name, what = cost.__name__, (cost.__doc__ or "").split(".")[0]
            table.add_row(name, f"{baseline[name]:.5g}", f"{counted[name]:.5g}", what)
        Console().print(table, *failures)
    raise typer.Exit(bool(failures))


if __name__ == "__main__":
    app()
