"""A run's status for people and tools, while it goes on and afterwards."""

from typing import Any

from iris_ray.reachable import knock
from iris_ray.run_folder import RunFolder

CONNECT_TIMEOUT_S = 1


def live_status(run: str, status: dict[str, Any]) -> dict[str, Any]:
    """What `iris-ray status` tells of a run that goes on, in plain JSON types.

    `status` comes from its actors. Times are in seconds, rates in 1/s, `staleness_max` in versions.
    """
    last, step = status["iterations"][-1:] or [{}], status["last_step"]
    buffer = status["buffer"]
    return {
        "run": run,
        "state": run_state(status),
        "iteration": status["iteration"],
        "iterations": status["planned"],
        "step": status["step"],
        "steps": status["steps"],
        "alpha": status["alpha"],
        "gap": status["gap"],
        "loss": step.get("loss"),
        "exact_match": last_score(status["baseline"], status["iterations"]),
        "eta_s": _eta(status),
        "generators_wanted": status["wanted"],
        "generators": status["generators"],
        "deaths": len(status["deaths"]),
        "buffer": {key: buffer[key] for key in ("pairs", "written", "leased", "ahead")},
        "staleness_max": last[0].get("staleness_max"),
        "ledger": buffer["ledger"],
        "warnings": len(status["warnings"]),
        "last_checkpoint": status["last_checkpoint"],
    }


def folder_status(folder: RunFolder) -> dict[str, Any]:
    """The same as far as a run's folder tells; `playing` stands for all states of a run that goes on.

    Of one that was killed the folder tells that it plays, so its cluster is looked for.
    """
    summary = folder.read_summary()
    entries = summary.get("iterations", [])
    state, error = summary.get("status", "interrupted"), summary.get("error")
    if folder.cluster.exists():
        address = folder.read_where().get("address")
        state, error = "playing", None
        if address and not _answers(address):
            state, error = "interrupted", f"its Ray cluster, {address}, does not answer from here"
    return {
        "run": folder.path.name,
        "state": state,
        "iteration": entries[-1]["iteration"] if entries else 0,
        "iterations": folder.read_config().schedule.iterations,
        "step": 0,
        "exact_match": last_score(summary.get("baseline", {}), entries),
        "generators": [],
        "ledger": summary.get("ledger"),
        "error": error,
    }


def _answers(address: str) -> bool:
    try:
        knock(address, CONNECT_TIMEOUT_S)
    except (OSError, ValueError):
        return False
    return True


def run_state(status: dict[str, Any]) -> str:
    """Of a run that goes on: `starting`, `running`, `paused` or `stopping`."""
    if status["stopping"]:
        return "stopping"
    if status["paused"]:
        return "paused"
    return "running" if status["iteration"] else "starting"


def _eta(status: dict[str, Any]) -> float | None:
    """Seconds to the end, as finished iterations took on average; `None` before the first is over."""
    took = [entry["seconds"] for entry in status["iterations"] if entry["seconds"]]
    if not took or not status["steps"]:
        return None
    left = status["planned"] - status["iteration"] + 1 - status["step"] / status["steps"]
    return max(left, 0) * sum(took) / len(took)


def last_score(baseline: dict[str, Any], iterations: list[dict[str, Any]]) -> float | None:
    """Of the last model that was evaluated."""
    scores = [entry.get("exact_match") for entry in (baseline, *iterations)]
    return next((score for score in reversed(scores) if score is not None), None)
