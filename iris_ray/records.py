"""What happened in a run, collected as it happens."""

import math
import time
from dataclasses import asdict, fields
from statistics import fmean, median
from typing import Any

from iris_ray.config import Alpha
from iris_ray.contracts import PHASES, StepReport, Update
from iris_ray.data.report import Added
from iris_ray.diagnostics import Diagnostics, Finding
from iris_ray.game import Round
from iris_ray.gap import PairMeans
from iris_ray.run_folder import RunFolder

OF_GENERATORS = ("generator", "update")  # events


class Records:
    """Writes each event to metrics.jsonl and keeps what status and summary need."""

    def __init__(self, folder: RunFolder, order: Alpha | None):
        self.folder = folder
        self.baseline: dict[str, Any] = {"exact_match": None}
        self.iterations: list[dict[str, Any]] = []
        self.evaluated_iteration = -1
        self.opened = time.monotonic()
        self.steps = 0
        self.step = 0
        self.round: Round | None = None
        self.last_step: dict[str, Any] = {}
        self.diagnostics = Diagnostics(order)
        self.warnings: list[dict[str, Any]] = []
        self.resumes = 0
        self.sync: dict[str, dict[str, float]] = {}

    def round_opened(self, round_: Round, steps: int) -> None:
        self.round, self.steps, self.step, self.opened = round_, steps, 0, time.monotonic()
        self.iterations.append(
            {
                "iteration": round_.iteration,
                "alpha": round_.alpha,
                "gap": round_.gap,
                "reason": round_.reason,
                "loss": None,
                "exact_match": None,
                "added": 0,
                "steps": 0,
                "pairs": 0,
                "truncated": 0,
                "skipped_steps": 0,
                "staleness_max": 0,
                "seconds": None,
                "generation_seconds": None,
                "learner_waited_seconds": None,
                "learner_seconds": dict.fromkeys(PHASES, 0.0),
            }
        )

    def added(self, added: Added) -> None:
        """More demonstrations came before the round that has just opened."""
        current = self.iterations[-1]
        current["added"] = added.rows
        self.folder.append_metrics("added", {"iteration": current["iteration"], **asdict(added)})
        self._warn(
            [Finding("refused", f"{name} was not taken in. {why}") for name, why in added.refused.items()]
        )

    def order_set(self, round_: Round) -> None:
        """The open round's order was set anew, after its first batch was seen."""
        self.round = round_
        self.iterations[-1] |= {"alpha": round_.alpha, "gap": round_.gap, "reason": round_.reason}

    def stepped(self, report: StepReport, staleness: list[int], seconds: dict[str, float]) -> None:
        """A step was taken on pairs whose opponents lay `staleness` versions behind the newest.

        Since the one before, the learner spent `seconds` in each of its phases.
        """
        self.step += 1
        current = self.iterations[-1]
        current["steps"] += 1
        current["pairs"] += report.pairs
        current["truncated"] += report.truncated
        current["skipped_steps"] += report.skipped
        # JSON has no words for what is not finite.
        self.last_step = {
            name: None if isinstance(value, float) and not math.isfinite(value) else value
            for name, value in asdict(report).items()
        }
        where = self.where() | {"global_step": self.steps_until(current["iteration"])}
        order = {"alpha": current["alpha"], "gap": current["gap"]}
        current["staleness_max"] = max(current["staleness_max"], *staleness)
        stale = {"staleness_mean": fmean(staleness), "staleness_max": max(staleness)}
        so_far = current["learner_seconds"]
        current["learner_seconds"] = {phase: so_far[phase] + seconds.get(phase, 0.0) for phase in PHASES}
        spent_in = {f"{phase}_seconds": seconds.get(phase, 0.0) for phase in PHASES}
        self.folder.append_metrics("step", where | order | self.last_step | stale | spent_in)
        assert self.round is not None
        if not report.skipped:
            self._warn(self.diagnostics.stepped(self.round, report))

    def round_written(self) -> None:
        """The opponent has answered every prompt; training on the answers began long before."""
        current = self.iterations[-1]
        if current["generation_seconds"] is not None:
            return  # known from before the checkpoint that the run went back to
        current["generation_seconds"] = time.monotonic() - self.opened
        self.folder.append_metrics("written", {"iteration": current["iteration"]})

    def round_closed(self, end: PairMeans) -> None:
        """Training against the opponent is over; its successor is not evaluated yet."""
        current = self.iterations[-1]
        current["learner_waited_seconds"] = current["learner_seconds"]["wait"]
        current["seconds"] = time.monotonic() - self.opened
        current["loss"] = end.loss
        current["reward_real"], current["reward_synthetic"] = end.reward_real, end.reward_synthetic
        current["pairs_per_s"] = current["pairs"] / current["seconds"]

    def evaluated(self, iteration: int, scores: dict[str, float | None]) -> None:
        """The model that `iteration` made was evaluated; 0 is the baseline."""
        self.evaluated_iteration = iteration
        if iteration == 0:
            self.baseline |= scores
            self.folder.append_metrics("baseline", self.baseline)
        else:
            entry = self.iterations[iteration - 1]
            entry |= scores
            where = {"global_step": self.steps_until(iteration)}
            self.folder.append_metrics("iteration", entry | where)

    def updated(self, update: Update) -> None:
        self.folder.append_metrics("update", asdict(update))
        self._add(update)

    def _add(self, update: Update) -> None:
        sync = self.sync.setdefault(update.generator, {"updates": 0, "seconds": 0, "paused_seconds": 0})
        sync["updates"] += 1
        sync["seconds"] += update.seconds
        sync["paused_seconds"] += update.paused_seconds
        sync["parity_max_abs_diff"] = update.parity_max_abs_diff

    def generator(self, name: str, state: str, reason: str | None) -> None:
        """A generator came or went; `reason` if it died."""
        self.folder.append_metrics("generator", {"generator": name, "state": state, "reason": reason})

    def _warn(self, findings: list[Finding]) -> None:
        for finding in findings:
            warning = {"iteration": self.iterations[-1]["iteration"], "step": self.step, **asdict(finding)}
            self.warnings.append(warning)
            self.folder.append_metrics("warning", warning)

    def state_dict(self) -> dict[str, Any]:
        """All that was collected, in plain JSON types, and how much of metrics.jsonl belongs to it."""
        # Copies, as the records go on changing.
        return {
            "baseline": dict(self.baseline),
            "iterations": [dict(entry) for entry in self.iterations],
            "evaluated_iteration": self.evaluated_iteration,
            "round": self.round and asdict(self.round),
            "seconds": time.monotonic() - self.opened,
            "steps": self.steps,
            "step": self.step,
            "last_step": dict(self.last_step),
            "diagnostics": self.diagnostics.state_dict(),
            "warnings": list(self.warnings),
            "resumes": self.resumes,
            "metrics_bytes": self.folder.metrics_bytes(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state_dict` was taken, in new records or in these; what came after is forgotten.

        The steps after it will be taken again, so they are cut off metrics.jsonl as well. What generators did
        stays: they did not go back.
        """
        self.folder.cut_metrics(state["metrics_bytes"], keep=OF_GENERATORS)
        self.baseline = dict(state["baseline"])
        self.iterations = [dict(entry) for entry in state["iterations"]]
        self.sync = {}
        for line in self.folder.read_metrics("update"):
            self._add(Update(**{field.name: line[field.name] for field in fields(Update)}))
        self.evaluated_iteration = state["evaluated_iteration"]
        self.round = Round(**state["round"]) if state["round"] else None
        self.opened = time.monotonic() - state["seconds"]  # so that only time of a living run counts
        self.steps, self.step, self.last_step = state["steps"], state["step"], dict(state["last_step"])
        self.diagnostics.load_state_dict(state["diagnostics"])
        self.warnings = list(state["warnings"])
        self.resumes = max(self.resumes, state["resumes"]) + 1  # that it happened is not forgotten
        where = self.where()
        self.folder.append_metrics("resumed", where | {"global_step": self.steps_until(where["iteration"])})

    def steps_until(self, iteration: int) -> int:
        """Steps that were taken in all iterations up to this one."""
        return sum(entry["steps"] for entry in self.iterations[:iteration])

    def where(self) -> dict[str, int]:
        """The step that was taken last."""
        return {"iteration": self.round.iteration if self.round else 0, "step": self.step}

    def status(self) -> dict[str, Any]:
        return self.where() | {
            "alpha": self.round.alpha if self.round else None,
            "gap": self.round.gap if self.round else None,
            "steps": self.steps,
            "evaluated": self.evaluated_iteration,
            "baseline": self.baseline,
            "iterations": self.iterations,
            "last_step": self.last_step,
            "warnings": self.warnings,
            "sync": self.sync,
        }

    def summary(self) -> dict[str, Any]:
        """The run's part of summary.json that the controller knows."""
        finished = [entry for entry in self.iterations if entry["seconds"]]
        seconds = sum(entry["seconds"] for entry in finished)
        updates = list(self.folder.read_metrics("update"))
        taken, paused = ([update[name] for update in updates] for name in ("seconds", "paused_seconds"))
        return {
            "iterations": finished,
            "warnings": self.warnings,
            "resumes": self.resumes,
            "baseline": self.baseline,
            "sync": {
                "updates": len(updates),
                "parity_max_abs_diff": max((u["parity_max_abs_diff"] for u in updates), default=None),
                "seconds_median": median(taken) if updates else None,
                "paused_seconds_median": median(paused) if updates else None,
            },
            "pairs_per_s": sum(entry["pairs"] for entry in finished) / seconds if seconds else None,
        }
