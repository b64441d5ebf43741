"""The command `iris-ray`."""

import json
import logging
import os
import shlex
import sys
import warnings
from importlib.metadata import version
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

from iris_ray.config import RunConfig
from iris_ray.errors import ConfigError, IrisRayError, RunStopped
from iris_ray.harness.command import evaluate
from iris_ray.interrupt import hear_signals
from iris_ray.logs import logs
from iris_ray.operating import operating, path_of
from iris_ray.plan import plan

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.add_typer(operating)
app.command(epilog="Example: iris-ray logs demo generator-0 --follow")(logs)
app.command("eval", epilog="Example: iris-ray eval runs/demo --task gsm8k:5")(evaluate)
app.command(epilog="Example: iris-ray plan recipes/demo.yaml --measured runs/demo")(plan)
console = Console()

STOPPED_BY_USER = 130


def _tell_version(asked: bool) -> None:
    if asked:
        typer.echo(f"iris-ray {version('iris-ray')}")
        raise typer.Exit


@app.callback()
def options(
    _version: Annotated[
        bool,
        typer.Option("--version", is_eager=True, callback=_tell_version, help="Tell the version and exit."),
    ] = False,
) -> None:
    """Self-play fine-tuning of language models on Ray."""


@app.command(epilog="Example: iris-ray run recipes/demo.yaml --set run.name=second --set generation.count=2")
def run(
    recipes: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="[RECIPE]...",
            help="YAML file with the run's settings, or several: each changes those before it.",
        ),
    ] = None,
    resume: Annotated[
        Path | None,
        typer.Option("--resume", metavar="RUN", help="Go on with this run instead: its folder or name."),
    ] = None,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", metavar="SECTION.KEY=VALUE", help="Change one setting.")
    ] = None,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Check everything, tell what the run would do, start nothing."),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="With --dry-run: print JSON.")] = False,
) -> None:
    """Play a whole self-play run and print what it did."""
    if bool(recipes) == (resume is not None):
        raise ConfigError("iris-ray run: name a recipe, or with --resume a run, one of the two.")
    if as_json and not dry_run:
        raise ConfigError("--json: goes with --dry-run. A run itself leaves summary.json in its folder.")
    if dry_run:
        if not recipes:
            raise ConfigError("--dry-run: looks at a recipe, and --resume has none. Leave one of them out.")
        _dry_run(RunConfig.from_yaml(recipes, overrides), as_json)
        return
    from iris_ray.console_view import ConsoleView
    from iris_ray.report import results_table
    from iris_ray.self_play import SelfPlay

    if recipes:
        play = SelfPlay(RunConfig.from_yaml(recipes, overrides))
    else:
        assert resume is not None
        play = SelfPlay.resume(path_of(resume), overrides)
    hear_signals()
    try:
        with ConsoleView(console) as play.view:
            summary = play.run()
    except KeyboardInterrupt as stop:
        if not play.config.folder.exists():
            console.print("Stopped before anything was done.")
            raise typer.Exit(STOPPED_BY_USER) from None
        console.print("Stopped. All actors have ended; the run folder keeps what was done.")
        console.print(f"To go on: {shlex.join([_called(), 'run', '--resume', str(play.config.folder)])}")
        if isinstance(stop, RunStopped):
            return  # as it was asked to
        raise typer.Exit(STOPPED_BY_USER) from None
    console.print()
    console.print(results_table(summary))
    if recipes:
        _print_next_steps(play.config, recipes, overrides or [])


@app.command(epilog="Example: iris-ray export runs/demo --checkpoint 2")
def export(
    run_folder: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of the run, or its name.")],
    checkpoint: Annotated[
        int | None,
        typer.Option(metavar="ITERATION", help="Its newest checkpoint. By default the newest of all."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="By default in exports/ of the run folder.")
    ] = None,
    adapter: Annotated[bool, typer.Option("--adapter", help="The LoRA adapter alone, not merged.")] = False,
) -> None:
    """Make a model in Hugging Face format of a run's checkpoint."""
    from iris_ray.export import export_checkpoint

    folder = export_checkpoint(path_of(run_folder), checkpoint, out, adapter=adapter)
    console.print(f"The model lies in {folder}", highlight=False, soft_wrap=True)
    how = f"To load it: transformers.AutoModelForCausalLM.from_pretrained({str(folder)!r})"
    console.print(how, highlight=False, soft_wrap=True)


@app.command(epilog="Example: iris-ray report runs/demo runs/space")
def report(
    runs: Annotated[
        list[Path], typer.Argument(metavar="RUN...", help="Folder or name of a run, or of several.")
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="By default report.html in the run's folder, or comparison.html here for several runs.",
        ),
    ] = None,
    score: Annotated[
        bool, typer.Option("--score", help="Shade sample pairs by log-ratio however large the model is.")
    ] = False,
) -> None:
    """Write the page of a run, also while it goes on, or one that compares several runs."""
    from iris_ray.report import rewrite_report, write_comparison

    runs = [path_of(run) for run in runs]
    if len(runs) == 1:
        page = rewrite_report(runs[0], out, score=score)
    elif score:
        raise ConfigError("--score: shades the pairs of one run. Name one run, or leave --score out.")
    else:
        page = write_comparison(runs, out or Path("comparison.html"))
    console.print(f"The page lies in {page}", highlight=False, soft_wrap=True)


def _dry_run(config: RunConfig, as_json: bool) -> None:
    from iris_ray.dry_run import dry_run
    from iris_ray.dry_run_view import print_dry_run

    plan = dry_run(config)
    if as_json:
        typer.echo(json.dumps(plan, indent=1))
    else:
        console.print(config.to_yaml(), highlight=False)
        print_dry_run(plan, console)


def _called() -> str:
    """How to call this program again; without its path if that lies elsewhere, as in a job of Ray."""
    path = os.path.relpath(sys.argv[0])
    return Path(path).name if path.startswith(os.pardir) else path


def _print_next_steps(config: RunConfig, recipes: list[Path], overrides: list[str]) -> None:
    kept = [override for override in overrides if not override.startswith(("run.name=", "run.seed="))]
    settings = [word for override in kept for word in ("--set", override)]
    again = shlex.join([_called(), "run", *map(str, recipes), *settings])
    folder = config.folder
    console.print(
        f"Run folder: {folder}\n"
        "  final/         the model, in Hugging Face format\n"
        "  samples/       the written pairs\n"
        "  metrics.jsonl  every step\n"
        "  report.html    all of it as a page\n"
        "What to try next:\n"
        f"  another seed    {again} --set run.name=seed-1 --set run.seed=1\n"
        f"  two generators  {again} --set run.name=two --set generation.count=2\n"
        f"  go on from here {again} --set run.name=more --set model.scratch=null \\\n"
        f"                    --set {shlex.quote(f'model.path={folder}/final')}",
        highlight=False,
        soft_wrap=True,
    )


def main() -> None:
    """Entry point: what the user can mend is told in words, everything else keeps its traceback."""
    # Warnings of libraries are for their log files; the Ray workers keep theirs.
    warnings.filterwarnings("ignore")
    logging.getLogger("DeepSpeed").addFilter(lambda record: record.levelno >= logging.ERROR)
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    sys.path.insert(
        0, os.getcwd()
    )  # for plug-ins that lie where the run is started, here and in Ray's workers
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    # At an address Ray does not look for the token by itself, and the cluster refuses to talk.
    if (Path.home() / ".ray" / "auth_token").exists():
        os.environ.setdefault("RAY_AUTH_MODE", "token")
    try:
        app()
    except IrisRayError as error:
        Console(stderr=True).print(f"[bold red]Error:[/bold red] {escape(str(error))}", soft_wrap=True)
        sys.exit(1)
