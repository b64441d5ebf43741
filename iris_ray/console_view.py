"""A run on a terminal: bars while it goes on, a line an iteration."""

import time
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from iris_ray.checkpoints import StoredCheckpoint
from iris_ray.config import RunConfig
from iris_ray.errors import LostActorError, first_line
from iris_ray.evaluation import share
from iris_ray.plugins import configured_objective
from iris_ray.preparation import Prepared
from iris_ray.scratch.warmup import WarmupResult
from iris_ray.view import View

PLAIN_LINE_S = 15  # seconds between progress lines where bars cannot be drawn


@dataclass(frozen=True)
class Bar:
    """How far something is."""

    name: str
    done: int
    total: int
    unit: str
    note: str = ""

    def __str__(self) -> str:
        return f"{self.name} {self.done}/{self.total} {self.unit} {self.note}".rstrip()


class ConsoleView(View):
    """Use as a context manager, so that the bars are cleared at the end."""

    def __init__(self, console: Console):
        self.console = console
        self.bars = Progress(
            TextColumn("{task.description:<12}"),
            BarColumn(),
            TextColumn("{task.completed:.0f}/{task.total:.0f} {task.fields[unit]}"),
            TimeElapsedColumn(),
            TextColumn("{task.fields[note]}"),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self.tasks: dict[str, TaskID] = {}
        self.warmup_score = ""
        self.round = 0
        self.shown = -1
        self.warned: set[tuple[int, int, str]] = set()
        self.learner_starts = 1
        self.deaths = 0
        self.wanted: int | None = None
        self.has_order = True
        self.last_line = time.monotonic()

    def __enter__(self) -> "ConsoleView":
        self.bars.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.bars.stop()

    def prepared(self, config: RunConfig, prepared: Prepared) -> None:
        self.has_order = configured_objective(config).has_order
        source = config.data.path or "made task sort_digits"
        self._print(
            f"[bold]Run {config.run.name}[/bold]: objective {config.objective.name}, "
            f"{config.schedule.iterations} iterations, model {config.model.path or 'made on the spot'} "
            f"with {prepared.parameters / 1e6:.1f} M parameters in {config.model.dtype}"
        )
        self._print(f"Data from {source}. {prepared.data.report.summary()}")

    def warmup(self, step: int, steps: int, loss: float, exact_match: float | None) -> None:
        if exact_match is not None:
            self.warmup_score = f", exact match {share(exact_match)}"
        self._show(Bar("warm-up", step, steps, "steps", f"loss {loss:.3f}{self.warmup_score}"))

    def warmed_up(self, result: WarmupResult) -> None:
        self._clear()
        reached = "" if result.exact_match is None else f", exact match {share(result.exact_match)}"
        self._print(f"Warm-up by SFT: {result.steps} steps in {result.seconds:.0f} s{reached}")

    def resuming(self, checkpoint: StoredCheckpoint | None) -> None:
        where = f"checkpoint {checkpoint.name}" if checkpoint else "the beginning: there is no checkpoint"
        self._print(f"Resuming from {where}")

    def lost(self, error: LostActorError, checkpoint: StoredCheckpoint | None) -> None:
        self._clear()
        self.learner_starts, self.deaths = 1, 0
        self._print(f"[yellow]An actor is lost:[/yellow] {escape(str(error))}")
        self.resuming(checkpoint)

    def tracker_lost(self, name: str, error: Exception) -> None:
        reason = escape(first_line(error))
        self._print(f"[yellow]{name} failed[/yellow] and is told nothing more of this run: {reason}")

    def waiting(self, missing: str) -> None:
        self._print(f"Waiting for nodes of the Ray cluster:\n{escape(missing)}")

    def starting(self, where: dict[str, str | None]) -> None:
        dashboard = f"Ray dashboard: {where['dashboard']}. " if where["dashboard"] else ""
        self._print(f"Starting generators and learner. {dashboard}Logs: {where['logs']}")
        if where.get("gateway"):
            self._print(f"Live page, HTTP and OpenAI-compatible endpoint: {where['gateway']}")

    def update(self, status: dict[str, Any]) -> None:
        self._learner_deaths(status)
        self._generators(status)
        self._finished_iterations(status)
        self._warnings(status)
        if not status["iteration"]:
            ready = sum(generator["state"] == "ready" for generator in status["generators"])
            self._show(Bar("starting", ready, len(status["generators"]), "generators"))
            return
        if status["iteration"] != self.round:
            self._clear()
            self.round = status["iteration"]
        buffer, step = status["buffer"], status["last_step"]
        note = ""
        if status["step"]:
            note = "skipped: not finite" if step["skipped"] else f"loss {step['loss']:.4f}"
        if status["learner_away_s"]:
            note = "the learner died, another one starts"
        self._show(
            Bar("generation", buffer["written"], buffer["pairs"], "pairs", f"{buffer['leased']} under way"),
            Bar("training", status["step"], status["steps"], "steps", note),
        )

    def _learner_deaths(self, status: dict[str, Any]) -> None:
        for start in status["learner_starts"][self.learner_starts :]:
            where = f"goes on from iteration {start['iteration']}, step {start['step']}"
            if not start["iteration"]:
                where = "begins again: there is no checkpoint yet"
            self._print(f"[yellow]The learner died[/yellow] and {where}")
        self.learner_starts = max(self.learner_starts, len(status["learner_starts"]))

    def _generators(self, status: dict[str, Any]) -> None:
        for death in status["deaths"][self.deaths :]:
            self._print(f"[yellow]{death['name']} died[/yellow] and is replaced: {escape(death['reason'])}")
        self.deaths = len(status["deaths"])
        if self.wanted not in (None, status["wanted"]):
            self._print(f"Generators: {self.wanted} -> {status['wanted']}")
        self.wanted = status["wanted"]

    def _finished_iterations(self, status: dict[str, Any]) -> None:
        evaluated = status["evaluated"]
        if evaluated > self.shown == -1:
            self.shown = 0
            self._print(f"Before self-play: exact match {share(status['baseline']['exact_match'])}")
        for entry in status["iterations"][max(self.shown, 0) : max(evaluated, 0)]:
            self.shown = entry["iteration"]
            order = f"α {entry['alpha']:.3f}  " if self.has_order else ""
            self._print(
                f"[bold]Iteration {entry['iteration']}[/bold]  "
                f"{order}gap {entry['gap']:.4f}  loss {entry['loss']:.4f}  "
                f"exact match {share(entry['exact_match'])}  "
                f"{entry['pairs']} pairs at {entry['pairs_per_s']:.1f}/s"
                + (f"  {entry['added']} new demonstrations" if entry.get("added") else "")
            )

    def _warnings(self, status: dict[str, Any]) -> None:
        for warning in status["warnings"]:
            key = (warning["iteration"], warning["step"], warning["kind"])
            if key in self.warned:
                continue  # also if its step was taken again
            self.warned.add(key)
            self._print(
                f"[yellow]Warning[/yellow] (iteration {warning['iteration']}, step {warning['step']}) "
                f"{escape(warning['message'])}"
            )

    def _show(self, *bars: Bar) -> None:
        """Draw the bars; where there is no terminal, say the same in a line now and then."""
        if self.console.is_terminal:
            for bar in bars:
                if bar.name not in self.tasks:
                    self.tasks[bar.name] = self.bars.add_task(bar.name, unit=bar.unit, note="")
                self.bars.update(self.tasks[bar.name], completed=bar.done, total=bar.total, note=bar.note)
        elif time.monotonic() - self.last_line > PLAIN_LINE_S:
            self._print("  " + "; ".join(map(str, bars)))

    def _clear(self) -> None:
        for task in self.tasks.values():
            self.bars.remove_task(task)
        self.tasks = {}

    def _print(self, text: str) -> None:
        self.last_line = time.monotonic()
        self.console.print(text, highlight=False, soft_wrap=True)
