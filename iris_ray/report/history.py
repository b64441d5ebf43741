"""What a run folder tells of its run."""

import json
import math
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from iris_ray.config import RunConfig
from iris_ray.contracts import PHASES
from iris_ray.errors import RunFolderError
from iris_ray.run_folder import RunFolder

STEP_COLUMNS = (
    "time",
    "iteration",
    "step",
    "alpha",
    "gap",
    "loss",
    "reward_real",
    "reward_synthetic",
    "reward_real_sd",
    "reward_synthetic_sd",
    "ess_real",
    "ess_synthetic",
    "grad_norm",
    "skipped",
    "learning_rate",
    "pairs",
    "truncated",
    "identical",
    "response_tokens",
    "abs_reward_mean",
    "abs_reward_max",
    "staleness_mean",
    "staleness_max",
    *(f"{phase}_seconds" for phase in PHASES),
)

# Of an iteration.
KNOWN_AT_THE_END = (
    "exact_match",
    "reward_real",
    "reward_synthetic",
    "seconds",
    "pairs_per_s",
    "generation_seconds",
    "learner_waited_seconds",
)


@dataclass(frozen=True)
class History:
    """A run up to now. `steps` holds a column a field, NaN where a step has no value; `events` the rest.

    `summary` is empty while the run goes on.
    """

    folder: RunFolder
    config: RunConfig
    summary: Mapping[str, Any]
    steps: Mapping[str, np.ndarray]
    events: Mapping[str, list[dict[str, Any]]]

    @property
    def name(self) -> str:
        return self.config.run.name

    @property
    def status(self) -> str:
        """`finished`, `stopped`, `failed`, or `not ended`: it goes on, or its process was killed."""
        return self.summary.get("status", "not ended")

    def that_began(self) -> "History":
        """The same. Raises `RunFolderError` if there is nothing in it to report on."""
        if not (self.summary or self.events or len(self.steps["time"])):
            raise RunFolderError(
                f"{self.folder.path}: there is nothing to report yet, as metrics.jsonl has no line. Wait "
                "until the run has started its generators, then try again."
            )
        return self

    @cached_property
    def iterations(self) -> list[dict[str, Any]]:
        """Entries as in summary.json, in order; one that is not over has `seconds` None."""
        closed = [*self.events.get("iteration", []), *self.summary.get("iterations", [])]
        entries = {entry["iteration"]: entry for entry in closed}
        numbers = map(int, np.unique(self.steps["iteration"]))
        entries |= {number: self._open(number) for number in numbers if number not in entries}
        return [entries[number] for number in sorted(entries)]

    def _open(self, number: int) -> dict[str, Any]:
        steps = self.steps_of(number)
        alpha, gap, loss = (float(steps[name][-1]) for name in ("alpha", "gap", "loss"))
        return dict.fromkeys(KNOWN_AT_THE_END) | {
            "iteration": number,
            "alpha": alpha,
            "gap": gap,
            "reason": "",
            "loss": None if math.isnan(loss) else loss,
            "pairs": int(np.nansum(steps["pairs"])),
            "truncated": int(np.nansum(steps["truncated"])),
            "skipped_steps": int(np.nansum(steps["skipped"])),
            "learner_seconds": {phase: float(np.nansum(steps[f"{phase}_seconds"])) for phase in PHASES},
        }

    def steps_of(self, iteration: int) -> dict[str, np.ndarray]:
        """The columns of the steps of one iteration."""
        mine = self.steps["iteration"] == iteration
        return {name: column[mine] for name, column in self.steps.items()}

    @cached_property
    def last_steps(self) -> list[int]:
        """Number of the last step of each iteration in `iterations`, counted through from 1."""
        numbers = [entry["iteration"] for entry in self.iterations]
        return np.searchsorted(self.steps["iteration"], numbers, side="right").tolist()

    @property
    def exact_matches(self) -> list[tuple[int, float]]:
        return self.held_out("exact_match")

    def held_out(self, score: str) -> list[tuple[int, float]]:
        """Steps taken and a score of each model that was evaluated, the start model first."""
        found = [(0, self._baseline.get(score))]
        found += zip(self.last_steps, (entry.get(score) for entry in self.iterations), strict=True)
        return [(step, value) for step, value in found if value is not None]

    @property
    def baseline(self) -> float | None:
        return self._baseline.get("exact_match")

    @property
    def _baseline(self) -> Mapping[str, Any]:
        return (self.events.get("baseline") or [self.summary.get("baseline", {})])[-1]

    @property
    def pairs(self) -> int:
        """Pairs trained on so far, all passes together."""
        return sum(entry["pairs"] for entry in self.iterations)

    @property
    def pairs_per_s(self) -> float | None:
        """Over the rounds that are over."""
        over = [entry for entry in self.iterations if entry["seconds"]]
        seconds = sum(entry["seconds"] for entry in over)
        return sum(entry["pairs"] for entry in over) / seconds if seconds else None

    @cached_property
    def times(self) -> np.ndarray:
        """When anything was recorded, in order, in seconds since 1970."""
        events = [event["time"] for kind in self.events.values() for event in kind]
        return np.sort(np.concatenate([self.steps["time"], events]))


def read_history(
    folder: RunFolder, config: RunConfig | None = None, summary: Mapping[str, Any] | None = None
) -> History:
    """Read the run in `folder`, whole or not. Raises `RunFolderError` for metrics that are no JSON lines.

    By default configuration and summary are those in the folder.
    """
    steps, events = _read_metrics(folder)
    history = History(folder, config or folder.read_config(), summary or {}, steps, events)
    if summary is None and folder.summary.exists():
        written = folder.summary.stat().st_mtime
        # A run that was stopped, and goes on again, has still the summary of its stop.
        if not len(history.times) or history.times[-1] <= written:
            return History(folder, history.config, json.loads(folder.summary.read_text()), steps, events)
    return history


def _read_metrics(folder: RunFolder) -> tuple[dict[str, np.ndarray], dict[str, list[dict[str, Any]]]]:
    rows: list[list[float]] = []
    events: defaultdict[str, list[dict[str, Any]]] = defaultdict(list)
    if folder.metrics.exists():
        with folder.metrics.open() as file:
            for number, line in enumerate(file, 1):
                if not line.endswith("\n"):
                    break  # in the middle of being written
                try:
                    event = json.loads(line)
                except ValueError as error:
                    raise RunFolderError(
                        f"{folder.metrics}, line {number}: is not JSON ({error}). Remove the line to read "
                        "the others."
                    ) from error
                if event["event"] == "step":
                    values = map(event.get, STEP_COLUMNS)
                    rows.append([math.nan if value is None else value for value in values])
                else:
                    events[event.pop("event")].append(event)
    table = np.array(rows, dtype=float).reshape(-1, len(STEP_COLUMNS))
    return dict(zip(STEP_COLUMNS, table.T, strict=True)), dict(events)
