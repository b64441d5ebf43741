"""The benchmark: `python -m benchmarks.learner` compares the learner's step with TRL's `DPOTrainer`."""

import importlib.util
import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from benchmarks.learner.machine import machine, versions
from benchmarks.learner.measurement import Say, Settings, measure
from benchmarks.learner.tables import profile_table, report_table
from benchmarks.learner.worker_process import WorkerFailed, WorkerProcess
from benchmarks.learner.workload import TORCH_NAMES, DType, Workload
from benchmarks.options import (
    AsJson,
    Count,
    Hidden,
    Intermediate,
    PromptTokens,
    Repeats,
    Spread,
    check_heads,
)

CURVES = Path("docs/learner-performance/curves.csv")
MODEL = ("parameters", "vocab", "hidden", "intermediate", "layers", "heads", "kv_heads")

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
errors = Console(stderr=True)


@app.command()
def benchmark(
    as_json: AsJson = False,
    curves: Annotated[bool, typer.Option("--curves", help="Measure and draw curves instead.")] = False,
    draw: Annotated[bool, typer.Option("--draw", help="Draw the measured curves again, no more.")] = False,
    profile: Annotated[bool, typer.Option("--profile", help="Tell what our step's time goes to.")] = False,
    hidden: Hidden = 256,
    layers: Count = 4,
    heads: Count = 4,
    kv_heads: Count = 2,
    intermediate: Intermediate = None,
    vocab: Annotated[int, typer.Option(min=3)] = 512,
    prompt_tokens: PromptTokens = 53,
    response_tokens: Annotated[int, typer.Option(min=2, help="Mean length, end token included.")] = 64,
    spread: Spread = 0.5,
    pairs: Annotated[int, typer.Option(min=1, help="Pairs in a batch.")] = 16,
    steps: Annotated[int, typer.Option(min=1, help="Optimiser steps in a block; sides take turns.")] = 8,
    repeats: Repeats = 7,
    threads: Annotated[int | None, typer.Option(min=1, help="All cores unless told.")] = None,
    dtypes: Annotated[str, typer.Option(help="bf16, fp32 or both; curves take bf16 unless told.")] = "",
    compiled: Annotated[bool, typer.Option("--compile/--no-compile", help="learner.compile")] = True,
    peer_compile: Annotated[bool, typer.Option(help="Compiled TRL, too: minutes to start.")] = False,
    zero_stage: Annotated[int, typer.Option(min=0, max=3, help="learner.zero_stage")] = 0,
    results: Annotated[Path, typer.Option(help="CSV file of curves; figures go beside it.")] = CURVES,
) -> None:
    """Pairs per second of our step and of TRL's, in turns on the same tokens, and the matrix peak."""
    if draw:
        _draw(results)
        return
    check_heads(hidden, heads, kv_heads)
    workload = Workload(
        vocab=vocab,
        hidden=hidden,
        intermediate=intermediate or 3 * hidden,
        layers=layers,
        heads=heads,
        kv_heads=kv_heads,
        prompt_tokens=prompt_tokens,
        response_tokens=response_tokens,
        spread=spread,
        pairs=pairs,
    )
    settings = Settings(
        workload=workload,
        threads=threads or len(os.sched_getaffinity(0)),
        steps=steps,
        repeats=repeats,
        compile=compiled,
        zero_stage=zero_stage,
        peer_compile=peer_compile,
    )
    chosen = _dtypes(dtypes or ("bf16" if curves else "bf16,fp32"))
    if not profile and importlib.util.find_spec("trl") is None:
        errors.print('TRL is missing: pip install -e ".[bench]"', markup=False)
        raise typer.Exit(1)
    try:
        with errors.status("starting") as status:
            say: Say = status.update
            if profile:
                _profile(settings, chosen, say)
            elif curves:
                _curves(settings, chosen, results, say)
            else:
                report = _report(settings, chosen, say)
                typer.echo(json.dumps(report, indent=1)) if as_json else Console().print(report_table(report))
    except WorkerFailed as failure:
        errors.print(str(failure), markup=False)
        raise typer.Exit(1) from None


def _dtypes(text: str) -> list[DType]:
    names = text.replace(",", " ").split()
    for unknown in set(names) - set(TORCH_NAMES):
        raise typer.BadParameter(f"{unknown!r} does not exist. There are: {', '.join(TORCH_NAMES)}.")
    return [dtype for dtype in TORCH_NAMES if dtype in names]


def _report(settings: Settings, dtypes: list[DType], say: Say) -> dict[str, Any]:
    workload = asdict(settings.workload)
    return {
        "machine": machine(settings.threads),
        "versions": versions(),
        "model": {key: getattr(settings.workload, key) for key in MODEL},
        "tokens": {key: workload[key] for key in ("prompt_tokens", "response_tokens", "spread")},
        "batch_pairs": settings.workload.pairs,
        "steps_per_block": settings.steps,
        "repeats": settings.repeats,
        "learner": {"compile": settings.compile, "zero_stage": settings.zero_stage},
        "peer_compile": settings.peer_compile,
        "dtypes": {dtype: measure(settings, dtype, say) for dtype in dtypes},
    }


def _curves(settings: Settings, dtypes: list[DType], results: Path, say: Say) -> None:
    from benchmarks.learner.curves import measure_curves

    failures = measure_curves(results, settings, dtypes, say)
    _draw(results)
    for failure in failures:
        errors.print(failure, markup=False)
    if failures:
        raise typer.Exit(1)


def _draw(results: Path) -> None:
    from benchmarks.learner.figures import draw

    for path in draw(results):
        typer.echo(path)


def _profile(settings: Settings, dtypes: list[DType], say: Say) -> None:
    for dtype in dtypes:
        say(f"{dtype}: profiling")
        with WorkerProcess(settings.jobs(dtype)[0]) as worker:
            worker.answer()
            typer.echo(f"\n{dtype}:\n\n{profile_table(worker.ask('profile')['seconds'])}")


if __name__ == "__main__":
    app()
