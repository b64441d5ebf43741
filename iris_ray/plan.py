"""The command that tells beforehand what a run will need and do."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from iris_ray.config import RunConfig
from iris_ray.operating import AS_JSON, plain_table

console = Console()


def plan(
    recipe: Annotated[Path, typer.Argument(help="YAML file with the run's settings.")],
    hardware: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="YAML file that describes the machines. By default this one."),
    ] = None,
    measured: Annotated[
        list[Path] | None,
        typer.Option(metavar="RUN", help="Folder of a run to take speeds from; may be given several times."),
    ] = None,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", metavar="SECTION.KEY=VALUE", help="Change one setting.")
    ] = None,
    as_json: AS_JSON = False,
) -> None:
    """Tell what a run will need and do: memory, split, pairs/s, waiting, and what will be in the way."""
    config = RunConfig.from_yaml(recipe, overrides)
    from iris_ray.planning.hardware import Hardware
    from iris_ray.planning.this_machine import this_machine

    machines = Hardware.from_yaml(hardware) if hardware else this_machine(config)
    from iris_ray.planning.planner import make_planner

    report = make_planner(config, machines, measured or []).report()
    if as_json:
        typer.echo(json.dumps(report, indent=1))
    else:
        _print(report)


def _print(report: dict[str, Any]) -> None:
    data, model = report["data"], report["model"]
    console.print(
        f"{report['run']}: {model['parameters'] / 1e6:,.1f} M parameters, {model['trained'] / 1e6:,.1f} M trained. "
        f"{data['pairs_per_iteration']:,} pairs an iteration; tokens of prompt {data['prompt_tokens']:.0f}, "
        f"annotated {data['annotated_tokens']:.0f}, written {data['written_tokens']:.0f}.",
        highlight=False,
        soft_wrap=True,
    )
    console.print(report["speeds_from"], highlight=False, soft_wrap=True)
    console.print(_memory(report))
    console.print(_splits(report))
    console.print(_sync(report))
    full = ", ".join(f"{name} {count:,}" for name, count in report["saturation_generators"].items())
    console.print(f"Busy all the time from so many full generators: {full}.", highlight=False, soft_wrap=True)
    for warning in report["warnings"]:
        console.print(f"[yellow]•[/yellow] {warning}", highlight=False, soft_wrap=True)


def _memory(report: dict[str, Any]) -> Table:
    table = plain_table("memory, GiB", "in all", "room", "of which")
    table.columns[3].justify = "left"
    for role, each in report["memory_gib"].items():
        parts = ", ".join(f"{name} {size:.1f}" for name, size in each["parts"].items())
        mark = "" if each["fits"] else " [red]does not fit[/red]"
        table.add_row(role, f"{each['in_all']:.1f}", f"{each['room']:.1f}", parts + mark)
    sizes = report["checkpoint_gib"]
    within = f"within an iteration {sizes['within_an_iteration']:.1f}"
    table.add_row("checkpoint", f"{sizes['between_iterations']:.1f}", "", within)
    return table


def _splits(report: dict[str, Any]) -> Table:
    table = plain_table("split", "generators", "ranks", "pairs/s", "learner waits", "generators idle")
    for column in ("s an iteration", "s in all", "staleness"):
        table.add_column(column, justify="right")
    for name in ("as_configured", "balanced"):
        side = report[name]
        if side is None:
            continue
        found = side["simulated"]
        table.add_row(
            name.replace("_", " "),
            f"{side['generators']:,}",
            f"{side['learner_ranks']:,}",
            f"{found['pairs_per_s']:,.1f}",
            f"{found['learner_idle_share']:.0%}",
            f"{found['generators_idle_share']:.0%}",
            f"{found['iterations'][-1]['seconds']:,.0f}",
            f"{found['run_seconds']:,.0f}",
            f"{found['staleness_mean']:.1f}, at most {found['staleness_max']}",
        )
    return table


def _sync(report: dict[str, Any]) -> Table:
    names = ("learner blocked", "made ready beside writing", "engine stands still", "probe", "in all")
    table = plain_table("an update, s", *names)
    for transport, seconds in report["sync_seconds"].items():
        table.add_row(transport, *(f"{seconds[key]:.2f}" for key in seconds))
    return table
