"""The benchmark: `python -m benchmarks.end_to_end` does the same job in five ways, by turns."""

import json
import sys
from contextlib import redirect_stdout
from dataclasses import asdict
from typing import Annotated, Any, cast

import typer
from rich.console import Console

from benchmarks.end_to_end.measurement import measure, ratios, seconds_to
from benchmarks.end_to_end.settings import DTYPES, WAYS, WHAT, Settings, Way
from benchmarks.end_to_end.tables import report_table
from benchmarks.learner.machine import machine, versions
from benchmarks.options import AsJson, Count, Hidden, Intermediate, check_heads

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
errors = Console(stderr=True)


@app.command()
def benchmark(
    as_json: AsJson = False,
    ways: Annotated[str, typer.Option(help=f"Of {', '.join(WAYS)}.")] = ",".join(WAYS),
    dtypes: Annotated[str, typer.Option(help="fp32, bf16 or both.")] = "bf16,fp32",
    repeats: Annotated[int, typer.Option(min=1, help="Each plays all ways once.")] = 3,
    model: Annotated[
        str | None, typer.Option(help="A folder to start from, instead of a made model.")
    ] = None,
    data: Annotated[
        str | None, typer.Option(help="JSON lines with prompt and response, instead of digits to sort.")
    ] = None,
    vocab: Annotated[int, typer.Option(min=0, help="Rows of the made model's embedding, at least.")] = 4096,
    hidden: Hidden = 128,
    intermediate: Intermediate = None,
    layers: Count = 4,
    heads: Count = 4,
    kv_heads: Count = 2,
    min_digits: Annotated[int, typer.Option(min=1, help="Of a row to sort.")] = 6,
    max_digits: Annotated[int, typer.Option(min=1, help="Of a row to sort.")] = 10,
    iterations: Count = 2,
    pairs: Annotated[int, typer.Option(min=1, help="Of an iteration.")] = 1280,
    batch: Count = 32,
    refresh: Annotated[int, typer.Option(min=1, help="Steps between two opponents, online.")] = 8,
    concurrency: Annotated[int, typer.Option(min=1, help="Responses that an engine writes at a time.")] = 64,
    max_prompt_tokens: Count = 32,
    max_response_tokens: Count = 72,
    exact_match: Annotated[float, typer.Option(min=0, max=1, help="Time until a model reaches this.")] = 0.7,
    seed: int = 0,
) -> None:
    """Pairs a second, time to an exact match, memory, and what starts and boundaries cost."""
    check_heads(hidden, heads, kv_heads)
    chosen, wanted = ways.split(","), dtypes.split(",")
    for given, known in ((chosen, WAYS), (wanted, tuple(DTYPES))):
        if unknown := set(given) - set(known):
            raise typer.BadParameter(f"there is no {', '.join(unknown)}. There are: {', '.join(known)}.")
    settings = Settings(
        model=model,
        data=data,
        vocab=vocab,
        hidden=hidden,
        intermediate=intermediate or 4 * hidden,
        layers=layers,
        heads=heads,
        kv_heads=kv_heads,
        min_digits=min_digits,
        max_digits=max_digits,
        iterations=iterations,
        pairs=pairs,
        batch=batch,
        refresh=refresh,
        concurrency=concurrency,
        max_prompt_tokens=max_prompt_tokens,
        max_response_tokens=max_response_tokens,
        seed=seed,
    )
    # Libraries log to stdout, which is the report's.
    with errors.status("starting") as status, redirect_stdout(sys.stderr):
        rows = measure(settings, cast(list[Way], chosen), wanted, repeats, status.update)
    report: dict[str, Any] = {
        "machine": machine(threads=1),
        "versions": versions(),
        "settings": asdict(settings),
        "ways": {way: WHAT[way] for way in chosen},
        "exact_match_wanted": exact_match,
        "rows": [row | {"seconds_to_exact_match": seconds_to(row, exact_match)} for row in rows],
        "ratios": ratios(rows),
    }
    typer.echo(json.dumps(report, indent=1)) if as_json else Console().print(report_table(report))


if __name__ == "__main__":
    app()
