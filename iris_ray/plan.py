"""The command that tells beforehand what a run will need and do."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from iris_ray.config import RunConfig
from iris_ray.operating import AS_JSON, path_of, plain_table

console = Console()


def plan(
    recipes: Annotated[
        list[Path],
        typer.Argument(
            metavar="RECIPE...",
            help="YAML file with the run's settings, or several: each changes those before it.",
        ),
    ],
    hardware: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="YAML file that describes the machines. By default this one."),
    ] = None,
    measured: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="RUN", help="Folder or name of a run to take speeds from; may be given several times."
        ),
    ] = None,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", metavar="SECTION.KEY=VALUE", help="Change one setting.")
    ] = None,
    as_json: AS_JSON = False,
) -> None:
    """Tell what a run will need and do: memory, split, pairs/s, waiting, and what will be in the way."""
    config = RunConfig.from_yaml(recipes, overrides)
    from iris_ray.planning.hardware import Hardware
    from iris_ray.planning.this_machine import this_machine

    machines = Hardware.from_yaml(hardware) if hardware else this_machine(config)
    from iris_ray.planning.of_recipe import make_planner

    report = make_planner(config, machines, [path_of(run) for run in measured or []]).report()
    if as_json:
        typer.echo(json.dumps(report, indent=1))
    else:
        _print(report)


def _print(report: dict[str, Any]) -> None:
    data, model = report["data"], report["model"]
    for line in (
        f"{report['run']}: {model['parameters'] / 1e6:,.1f} M parameters, {model['trained'] / 1e6:,.1f} M of "
        f"them trained. {data['pairs_per_iteration']:,} pairs an iteration, with {data['prompt_tokens']:.0f} "
        f"tokens of prompt, {data['annotated_tokens']:.0f} annotated, {data['written_tokens']:.0f} written.",
        report["speeds_from"],
    ):
        console.print(line, highlight=False, soft_wrap=True)
    for table in (_memory(report), _splits(report), _sync(report)):
        console.print(table)
    full = ", ".join(f"{name} {count:,}" for name, count in report["saturation_generators"].items())
    console.print(f"Busy all the time from so many full generators: {full}.", highlight=False, soft_wrap=True)
    for warning in report["warnings"]:
        console.print(f"[yellow]•[/yellow] {warning}", highlight=False, soft_wrap=True)


def _memory(report: dict[str, Any]) -> Table:
    """One row a part, in GiB; on GPUs of each GPU, else of each process."""
    sides = report["memory_gib"]
    table = plain_table("memory, GiB", *(f"a {role}" for role in sides))
    for part in dict.fromkeys(part for side in sides.values() for part in side["parts"]):
        table.add_row(
            part, *(f"{s['parts'][part]:,.2f}" if part in s["parts"] else "" for s in sides.values())
        )
    table.add_section()
    table.add_row("in all", *(f"{side['in_all']:,.2f}" for side in sides.values()))
    table.add_row("room", *(f"{side['room']:,.2f}" for side in sides.values()))
    for when, size in report["checkpoint_gib"].items():
        table.add_row(f"checkpoint {when.replace('_', ' ')}", f"{size:,.2f}", "")
    return table


def _splits(report: dict[str, Any]) -> Table:
    sides = {name.replace("_", " "): report[name] for name in ("as_configured", "balanced") if report[name]}
    table = plain_table("expected", *sides)
    rows: dict[str, Callable[[dict[str, Any], dict[str, Any]], str]] = {
        "generators": lambda side, _: f"{side['generators']:,}",
        "learner ranks": lambda side, _: f"{side['learner_ranks']:,}",
        "generation.max_ahead": lambda side, _: f"{side['max_ahead']:,}",
        "pairs/s": lambda _, found: f"{found['pairs_per_s']:,.1f}",
        "learner waits": lambda _, found: f"{found['learner_idle_share']:.0%}",
        "generators idle": lambda _, found: f"{found['generators_idle_share']:.0%}",
        "staleness, versions": lambda _, f: f"{f['staleness_mean']:.1f}, at most {f['staleness_max']}",
        "an iteration, s": lambda _, found: f"{found['iterations'][-1]['seconds']:,.0f}",
        "the run, s": lambda _, found: f"{found['run_seconds']:,.0f}",
    }
    for name, told in rows.items():
        table.add_row(name, *(told(side, side["simulated"]) for side in sides.values()))
    return table


def _sync(report: dict[str, Any]) -> Table:
    transports = report["sync_seconds"]
    table = plain_table("an update, s", *transports)
    rows = {
        "learner blocked": "blocked",
        "made ready beside writing": "ready",
        "engine stands still": "still",
        "probe": "probe",
        "in all": "in_all",
    }
    for name, key in rows.items():
        table.add_row(name, *(f"{seconds[key]:.2f}" for seconds in transports.values()))
    return table
