"""A run's status for people and tools, while it goes on and afterwards."""

from typing import Any

from iris_ray.run_folder import RunFolder


def live_status(run: str, iterations: int, status: dict[str, Any]) -> dict[str, Any]:
    """What `iris-ray status` tells of a run that goes on, in plain JSON types.

    `status` comes from its actors. Times are in seconds, rates in 1/s, `staleness_max` in versions.
    """
    last, step = status["iterations"][-1:] or [{}], status["last_step"]
    scores = [entry["exact_match"] for entry in (status["baseline"], *status["iterations"])]
    known = [score for score in scores if score is not None]
    buffer = status["buffer"]
    return {
        "run": run,
        "state": run_state(status),
        "iteration": status["iteration"],
        "iterations": iterations,
        "step": status["step"],
        "steps": status["steps"],
        "alpha": status["alpha"],
        "gap": status["gap"],
        "loss": step.get("loss"),
        "exact_match": known[-1] if known else None,
        "eta_s": _eta(iterations, status),
        "generators_wanted": status["wanted"],
        "generators": status["generators"],
        "deaths": len(status["deaths"]),
        "buffer": {key: buffer[key] for key in ("pairs", "written", "leased", "ahead")},
        "staleness_max": last[0].get("staleness_max"),
        "ledger": buffer["ledger"],
        "warnings": len(status["warnings"]),
        "last_checkpoint": status["last_checkpoint"],
    }


def finished_status(folder: RunFolder) -> dict[str, Any]:
    """The same of a run that no longer plays, as far as its folder tells."""
    summary = folder.read_summary()
    entries = summary.get("iterations", [])
    scores = [
        entry["exact_match"] for entry in (summary.get("baseline", {}), *entries) if "exact_match" in entry
    ]
    return {
        "run": folder.path.name,
        "state": summary.get("status", "interrupted"),
        "iteration": entries[-1]["iteration"] if entries else 0,
        "iterations": folder.read_config().schedule.iterations,
        "step": 0,
        "exact_match": scores[-1] if scores else None,
        "generators": [],
        "ledger": summary.get("ledger"),
        "error": summary.get("error"),
    }


def run_state(status: dict[str, Any]) -> str:
    """Of a run that goes on: `starting`, `running`, `paused` or `stopping`."""
    if status["stopping"]:
        return "stopping"
    if status["paused"]:
        return "paused"
    return "running" if status["iteration"] else "starting"


def _eta(iterations: int, status: dict[str, Any]) -> float | None:
    """Seconds to the end, as finished iterations took on average; `None` before the first is over."""
    took = [entry["seconds"] for entry in status["iterations"] if entry["seconds"]]
    if not took or not status["steps"]:
        return None
    left = iterations - status["iteration"] + 1 - status["step"] / status["steps"]
    return max(left, 0) * sum(took) / len(took)
