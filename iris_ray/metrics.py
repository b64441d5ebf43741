"""The metrics of a run: names, units and labels in one place, and where in its status the values stand.

They reach Prometheus by way of Ray (`actors/run_metrics.py`), which puts `ray_` before each name. The tables
of docs/metrics.md are made by `python -m iris_ray.metrics`.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from iris_ray.contracts import PHASES
from iris_ray.progress import last_score

Status = Mapping[str, Any]
"""A run's status, as its actors tell it."""
Values = Mapping[str, float | None]
"""One for each value of a metric's label."""

GENERATOR_STATES = ("starting", "ready", "draining", "failed")


@dataclass(frozen=True)
class Metric:
    """`read` finds the value in a status, or with `label` the values; `None` while there is none.

    Every metric has the label `run`, too. A name that ends in `_total` is a counter: it never falls, also
    where the run goes back to a checkpoint. All others are gauges.
    """

    name: str
    help: str  # ASCII, which is all that Ray takes
    read: Callable[[Status], float | Values | None]
    label: str | None = None

    @property
    def is_counter(self) -> bool:
        return self.name.endswith("_total")

    @property
    def labels(self) -> tuple[str, ...]:
        return ("run", self.label) if self.label else ("run",)

    def samples(self, run: str, status: Status) -> Iterator[tuple[dict[str, str], float]]:
        """What is known by now, each value with its labels."""
        found = self.read(status)
        by_label = found.items() if isinstance(found, Mapping) else [("", found)]
        for value_of_label, value in by_label:
            if value is not None:
                yield dict(zip(self.labels, (run, value_of_label), strict=False)), float(value)


def _at(*path: str) -> Callable[[Status], Any]:
    """What stands there, `None` if nothing does."""

    def read(found: Any) -> Any:
        for key in path:
            found = found.get(key, {})
        return None if found == {} else found

    return read


def _sides(name: str) -> Callable[[Status], Values]:
    return lambda s: {side: s["last_step"].get(f"{name}_{side}") for side in ("real", "synthetic")}


def _prompts(s: Status) -> Values:
    return {state: s["buffer"][state] for state in ("unleased", "leased", "written")}


def _in_all(name: str) -> Callable[[Status], float]:
    return lambda s: sum(entry[name] for entry in s["iterations"])


def _waited(s: Status) -> float | None:
    ended = [entry for entry in s["iterations"] if entry["seconds"]]
    return ended[-1]["learner_waited_seconds"] / ended[-1]["seconds"] if ended else None


def _phases(s: Status) -> Values:
    return {phase: sum(entry["learner_seconds"][phase] for entry in s["iterations"]) for phase in PHASES}


def _states(s: Status) -> Values:
    return {state: sum(each["state"] == state for each in s["generators"]) for state in GENERATOR_STATES}


def _generators(name: str) -> Callable[[Status], Values]:
    return lambda s: {each["name"]: each[name] for each in s["generators"]}


def _updates(name: str) -> Callable[[Status], Values]:
    return lambda s: {each["name"]: s["sync"].get(each["name"], {}).get(name) for each in s["generators"]}


METRICS: dict[str, tuple[Metric, ...]] = {
    "The game": (
        Metric("iris_iteration", "The open iteration, from 1; 0 before the first one", _at("iteration")),
        Metric("iris_iterations", "Iterations that are planned", _at("planned")),
        Metric("iris_step", "Optimiser steps taken in the open iteration", _at("step")),
        Metric("iris_steps", "Optimiser steps that the open iteration has", _at("steps")),
        Metric("iris_alpha", "Order alpha of the open iteration", _at("alpha")),
        Metric("iris_gap_nats", "Gap behind it, per token or response (`alpha.gap_per`)", _at("gap")),
        Metric(
            "iris_exact_match_ratio",
            "Share of held-out prompts that the model evaluated last answers exactly",
            lambda s: last_score(s["baseline"], s["iterations"]),
        ),
        Metric("iris_warnings", "Warnings so far", lambda s: len(s["warnings"])),
    ),
    "The learner": (
        Metric("iris_loss", "Loss of the last step, in the objective's unit", _at("last_step", "loss")),
        Metric(
            "iris_reward_nats",
            "Mean log-ratio of the last step's annotated (`real`) and written (`synthetic`) responses",
            _sides("reward"),
            "side",
        ),
        Metric(
            "iris_effective_samples", "Responses that carry the last step's gradient", _sides("ess"), "side"
        ),
        Metric("iris_gradient_norm", "Of the last step, before clipping", _at("last_step", "grad_norm")),
        Metric("iris_learning_rate", "Of the last step", _at("last_step", "learning_rate")),
        Metric(
            "iris_response_tokens",
            "Mean length of the last step's responses",
            _at("last_step", "response_tokens"),
        ),
        Metric(
            "iris_staleness_versions",
            "By how many versions the oldest that wrote some of a trained pair lay behind, in this iteration",
            lambda s: s["iterations"][-1]["staleness_max"] if s["iterations"] else None,
        ),
        Metric("iris_trained_pairs_total", "Pairs trained on, in every pass", _in_all("pairs")),
        Metric("iris_skipped_steps", "Steps skipped as not finite", _in_all("skipped_steps")),
        Metric(
            "iris_learner_waited_ratio",
            "Share of the last ended iteration in which it waited for batches",
            _waited,
        ),
        Metric(
            "iris_learner_seconds_total",
            "What it spent its time on, by phases of a step",
            _phases,
            "phase",
        ),
        Metric(
            "iris_learner_restarts",
            "Learners that died so far",
            lambda s: max(len(s["learner_starts"]) - 1, 0),
        ),
    ),
    "The sample buffer": (
        Metric("iris_round_pairs", "Pairs of the open round: unleased, leased or written", _prompts, "state"),
        Metric("iris_ahead_pairs", "Written pairs that the learner has not come to", _at("buffer", "ahead")),
        Metric(
            "iris_ledger_pairs",
            "Pairs of all ended rounds: committed, lost or duplicated",
            _at("buffer", "ledger"),
            "state",
        ),
    ),
    "The generators": (
        Metric(
            "iris_generators", "Generators that are starting, ready, draining or failed", _states, "state"
        ),
        Metric("iris_generators_wanted", "How many there should be", _at("wanted")),
        Metric("iris_generator_deaths", "Generators that were replaced", lambda s: len(s["deaths"])),
        Metric(
            "iris_generator_version", "Version of the weights it serves", _generators("version"), "generator"
        ),
        Metric(
            "iris_generator_requests",
            "Requests under way in its engine",
            _generators("requests"),
            "generator",
        ),
        Metric(
            "iris_generator_tokens_total",
            "Response tokens written",
            _generators("generated_tokens"),
            "generator",
        ),
        Metric(
            "iris_generator_busy_seconds_total",
            "Time with requests under way",
            _generators("busy_seconds"),
            "generator",
        ),
    ),
    "Weight updates": (
        Metric("iris_weight_updates_total", "Updates, each one proven", _updates("updates"), "generator"),
        Metric("iris_weight_update_seconds_total", "Time they took", _updates("seconds"), "generator"),
        Metric(
            "iris_weight_update_paused_seconds_total",
            "Time in which the engine stood still for them",
            _updates("paused_seconds"),
            "generator",
        ),
        Metric(
            "iris_weight_parity_nats",
            "Largest difference to the learner's log-prob of a token, after the last update",
            _updates("parity_max_abs_diff"),
            "generator",
        ),
    ),
}


def tables() -> str:
    """All metrics as Markdown, under the names that Prometheus knows them by."""
    parts = []
    for title, metrics in METRICS.items():
        rows = [f"| `ray_{m.name}` | {f'`{m.label}`' if m.label else ''} | {m.help} |" for m in metrics]
        parts.append("\n".join([f"### {title}\n", "| metric | label | |", "|---|---|---|", *rows]))
    return "\n\n".join(parts) + "\n"


if __name__ == "__main__":
    print(tables(), end="")
