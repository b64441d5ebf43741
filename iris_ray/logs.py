"""The command that shows what a run's processes wrote."""

import json
from dataclasses import asdict
from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text

from iris_ray.errors import ConfigError
from iris_ray.operating import ADDRESS, AS_JSON, FOLDER, RUN, RUNS, path_of, plain_table

console = Console()


def logs(
    run: RUN,
    role: Annotated[
        str | None, typer.Argument(help="Such as generator-0 or learner. By default the last line of each.")
    ] = None,
    tail: Annotated[int, typer.Option("--tail", "-n", min=1, help="Last lines to show.")] = 100,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Go on with new lines until Ctrl-C.")
    ] = False,
    as_json: AS_JSON = False,
    folder: FOLDER = RUNS,
    address: ADDRESS = None,
) -> None:
    """What a run's processes wrote, also after its end as long as the Ray cluster stands."""
    if follow and as_json:
        raise ConfigError("--follow and --json: choose one of them.")
    from actors import run_logs
    from actors.steering import joined

    path = path_of(run, folder)
    with joined(path, address):
        processes = run_logs.processes(path.name, role)
        if follow:
            living = [process for process in processes if process.state != "dead"]
            if not living:
                raise ConfigError("--follow: nothing more is written there. Leave it out to see what was.")
            for process, line in run_logs.follow(living, tail):
                typer.echo(f"{process.role} {process.pid} | {line}")
            return
        wrote = [(process, process.wrote(tail if role else 1)) for process in processes]
    if as_json:
        typer.echo(json.dumps([asdict(process) | lines for process, lines in wrote], indent=1))
    elif role:
        for process, lines in wrote:
            for stream in filter(lines.get, lines):
                typer.echo(
                    f"==> {role}, process {process.pid} on {process.node}, {process.state}: {stream} <=="
                )
                typer.echo("\n".join(lines[stream]))
    else:
        shown = plain_table("process", "state", "pid", "node", "last line")
        for process, lines in wrote:
            last = Text("".join((lines["out"] or lines["err"])[-1:]), no_wrap=True, overflow="ellipsis")
            shown.add_row(process.role, process.state, str(process.pid), process.node, last)
        console.print(shown)
