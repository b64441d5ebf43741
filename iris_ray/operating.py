"""The commands that look at runs and steer them."""

import json
import os
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer
from rich import box
from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.table import Table

from iris_ray.errors import ConfigError
from iris_ray.evaluation import share
from iris_ray.progress import folder_status
from iris_ray.run_folder import RunFolder

if TYPE_CHECKING:
    from actors.steering import LiveRun

operating = typer.Typer()
console = Console()
Answer = TypeVar("Answer")
Status = dict[str, Any]
REFRESH_S = 1.0
WORDS = ("run", "generator", "state", "process", "node", "last line")  # columns; others hold numbers
ENDED = ("finished", "stopped", "failed", "interrupted")

RUN = Annotated[str, typer.Argument(metavar="RUN", help="Folder of the run, or its name.")]
FOLDER = Annotated[Path, typer.Option("--folder", help="Where run folders lie.")]
ADDRESS = Annotated[
    str | None,
    typer.Option(help="Ray cluster that the run plays on. By default what its folder says."),
]
AS_JSON = Annotated[bool, typer.Option("--json", help="Print JSON.")]
TIMEOUT = Annotated[float, typer.Option(help="Seconds to wait for the learner to do it.")]
RUNS = Path("runs")


@operating.command(epilog="Example: iris-ray status demo --watch")
def status(
    run: RUN,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Go on showing it until Ctrl-C.")] = False,
    as_json: AS_JSON = False,
    folder: FOLDER = RUNS,
    address: ADDRESS = None,
) -> None:
    """How a run stands: its step, its generators, its ledger."""
    if watch and as_json:
        raise ConfigError("--watch and --json: choose one of them.")
    from actors.steering import joined, status_now

    path = path_of(run, folder)
    found = RunFolder(path)
    known = address is None and found.config.exists()
    if known and (now := folder_status(found))["state"] != "playing":
        _show(now, as_json, found)
        return
    with joined(path, address):
        if watch:
            _watch(lambda: status_now(found, known))
        else:
            _show(status_now(found, known), as_json, found)


@operating.command(epilog="Example: iris-ray runs --json")
def runs(
    as_json: AS_JSON = False,
    folder: FOLDER = RUNS,
) -> None:
    """The runs that have a folder here, and how each ended or that it goes on."""
    found = sorted(path.parent for path in folder.glob("*/config.yaml"))
    rows = [folder_status(RunFolder(path)) for path in found]
    if as_json:
        typer.echo(json.dumps(rows, indent=1))
        return
    table = plain_table("run", "state", "iteration", "exact match")
    for row in rows:
        table.add_row(
            row["run"], row["state"], f"{row['iteration']}/{row['iterations']}", share(row["exact_match"])
        )
    console.print(table if rows else f"No runs in {folder}.")


@operating.command(
    epilog="Example: iris-ray submit recipes/demo.yaml --address http://127.0.0.1:8265 "
    "--set run.folder=/shared/runs --follow"
)
def submit(
    recipes: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="[RECIPE]...",
            help="YAML file with the run's settings, or several: each changes those before it.",
        ),
    ] = None,
    resume: Annotated[
        Path | None,
        typer.Option("--resume", metavar="FOLDER", help="Go on with this run instead: its folder there."),
    ] = None,
    address: Annotated[str, typer.Option(help="The cluster's dashboard.")] = "http://127.0.0.1:8265",
    overrides: Annotated[
        list[str] | None, typer.Option("--set", metavar="SECTION.KEY=VALUE", help="Change one setting.")
    ] = None,
    working_dir: Annotated[Path, typer.Option(help="Folder whose code and recipes go along.")] = Path(),
    runtime_env: Annotated[
        Path | None,
        typer.Option(help="YAML file with a Ray runtime environment: what stays behind, variables."),
    ] = None,
    follow: Annotated[bool, typer.Option("--follow", help="Show what it prints until it ends.")] = False,
    as_json: AS_JSON = False,
) -> None:
    """Play a run as a job of a Ray cluster."""
    from iris_ray.submission import Jobs

    if bool(recipes) == (resume is not None):
        raise ConfigError("iris-ray submit: name a recipe, or with --resume a run's folder, one of the two.")
    jobs = Jobs(address)
    if resume:
        job = jobs.resume(resume, overrides or [], working_dir, runtime_env)
    else:
        job = jobs.submit(recipes or [], overrides or [], working_dir, runtime_env)
    if as_json:
        typer.echo(json.dumps(asdict(job), indent=1))
    else:
        told = f"Job {job.id} plays {job.run}.\nDashboard: {job.dashboard}\nRun folder: {job.folder}"
        console.print(told, highlight=False, soft_wrap=True)
    if follow and (failure := jobs.follow(job, lambda text: typer.echo(text, nl=False, err=as_json))):
        typer.echo(f"Job {job.id}: {failure}", err=True)
        raise typer.Exit(1)


@operating.command(epilog="Example: iris-ray doctor --address 10.0.0.1:6379")
def doctor(
    address: Annotated[str | None, typer.Option(help="Ray cluster that runs shall join.")] = None,
    folder: FOLDER = RUNS,
    as_json: AS_JSON = False,
) -> None:
    """Check this machine, and say what to mend. Exit code 1 if runs cannot work as it is."""
    from iris_ray.doctor import examine

    findings = examine(folder, address)
    if as_json:
        typer.echo(json.dumps([asdict(finding) for finding in findings], indent=1))
    else:
        marks = {
            "ok": "[green]ok[/green]",
            "warning": "[yellow]warning[/yellow]",
            "error": "[red]error[/red]",
        }
        table = Table(box=None, show_header=False, pad_edge=False)
        for finding in findings:
            text = escape(finding.found) + (f"\n[bold]{escape(finding.fix)}[/bold]" if finding.fix else "")
            table.add_row(marks[finding.level], finding.check, text)
        console.print(table)
    if any(finding.level == "error" for finding in findings):
        raise typer.Exit(1)


@operating.command(epilog="Example: iris-ray scale demo 4")
def scale(
    run: RUN,
    generators: Annotated[int, typer.Argument(help="How many generators it should have.")],
    as_json: AS_JSON = False,
    folder: FOLDER = RUNS,
    address: ADDRESS = None,
) -> None:
    """Change a run's number of generators while it goes on."""

    def scaled(live: "LiveRun") -> Status:
        live.scale(generators)
        return live.status()

    _show(_at_run(run, folder, address, scaled), as_json)


def _ordering(order: Any, done: str) -> Callable[..., None]:
    """The command that gives an order; it says `done` once the learner has obeyed."""

    def command(
        run: RUN,
        timeout: TIMEOUT = 600,
        as_json: AS_JSON = False,
        folder: FOLDER = RUNS,
        address: ADDRESS = None,
    ) -> None:
        now = _at_run(run, folder, address, lambda live: live.order(order, timeout))
        if as_json:
            typer.echo(json.dumps(now, indent=1))
            return
        where = f"iteration {now['iteration']}, step {now['step']}"
        at = path_of(run, folder) if address is None else "FOLDER"
        told = done.format(run=run, where=where, checkpoint=now["last_checkpoint"], folder=at)
        console.print(told, highlight=False, soft_wrap=True)

    return command


for _order, _help, _done in (
    (
        "pause",
        "Let a run stand still before its next step: its actors stay.",
        "{run} is paused at {where}. To go on: iris-ray resume {run}",
    ),
    ("resume", "Let a paused run go on.", "{run} goes on from {where}."),
    ("checkpoint", "Take a checkpoint before the next step.", "{run}: checkpoint {checkpoint} is taken."),
    (
        "stop",
        "End a run before its next step, with a checkpoint to go on from.",
        "{run} stops at checkpoint {checkpoint}. To go on later: iris-ray run --resume {folder}",
    ),
):
    operating.command(_order, help=_help, epilog=f"Example: iris-ray {_order} demo")(_ordering(_order, _done))


def _at_run(run: str, folder: Path, address: str | None, action: "Callable[[LiveRun], Answer]") -> Answer:
    """Do something with a run that goes on."""
    from actors.steering import live_run

    path = path_of(run, folder)
    with live_run(path, address) as live:
        return action(live)


def path_of(run: str | Path, folder: Path = RUNS) -> Path:
    """Folder of the run: as it is named, or of that name in `folder`."""
    named = Path(run)
    return named if len(named.parts) > 1 or (named / "config.yaml").exists() else folder / named


def _watch(look: Callable[[], Status]) -> None:
    with Live(console=console, auto_refresh=False) as shown:
        while True:
            now = look()
            shown.update(status_table(now), refresh=True)
            if now["state"] in ENDED:
                return
            time.sleep(REFRESH_S)


def _show(now: Status, as_json: bool, folder: RunFolder | None = None) -> None:
    if as_json:
        typer.echo(json.dumps(now, indent=1))
        return
    console.print(status_table(now))
    if folder and now["state"] in ("interrupted", "stopped"):
        at = os.path.relpath(folder.path)
        console.print(f"To go on: iris-ray run --resume {at}", highlight=False, soft_wrap=True)


def status_table(now: Status) -> Table:
    """A run's status as two tables, one below the other."""
    facts = Table(box=None, show_header=False, pad_edge=False)
    facts.add_column(style="dim")
    facts.add_column()
    facts.add_row("run", f"{now['run']}: {now['state']}")
    steps = f", step {now['step']}/{now['steps']}" if "steps" in now else ""
    facts.add_row("iteration", f"{now['iteration']}/{now['iterations']}{steps}")
    for name, form in (("alpha", "{:.3f}"), ("gap", "{:.4f}"), ("loss", "{:.4f}"), ("eta_s", "{:.0f} s")):
        if now.get(name) is not None:
            facts.add_row({"alpha": "α", "eta_s": "left"}.get(name, name), form.format(now[name]))
    facts.add_row("exact match", share(now["exact_match"]))
    if buffer := now.get("buffer"):
        told = f"{buffer['written']}/{buffer['pairs']} pairs written, {buffer['ahead']} ahead of the learner"
        facts.add_row("buffer", told)
        facts.add_row("staleness", f"{now['staleness_max']} versions at most")
    if ledger := now.get("ledger"):
        facts.add_row("ledger", ", ".join(f"{count} {name}" for name, count in ledger.items()))
    for name in ("warnings", "deaths", "last_checkpoint", "error"):
        if now.get(name):
            facts.add_row(name.replace("_", " "), str(now[name]))
    page = Table.grid()
    page.add_row(facts)
    if now["generators"]:
        table = plain_table("generator", "state", "version", "tokens/s")
        for generator in now["generators"]:
            state = generator["state"] if generator["placed"] else "waits for resources"
            version = "" if generator["version"] is None else str(generator["version"])
            table.add_row(generator["name"], state, version, f"{generator['tokens_per_s']:.0f}")
        page.add_row(table)
    return page


def plain_table(*columns: str) -> Table:
    """A table with little frame, numbers on the right."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        table.add_column(column, justify="left" if column in WORDS else "right")
    return table
