"""Whether a run's ledger, its archive of pairs and its steps are exact."""

import json
from typing import Any

import pyarrow.parquet as pq

from benchmarks.soak.game import Run


def audit(run: Run) -> dict[str, Any]:
    """`wrong` says what does not add up; empty if all is exact.

    Every finished iteration must have each step once, its archive each prompt once, and the ledger must have
    committed all of them. A run that was stopped may have trained a round to its end and not yet closed it.
    """
    summary = _json(run, "summary.json")
    iterations = [entry["iteration"] for entry in summary.get("iterations", [])]
    ledger = summary.get("ledger") or {}
    wrong = []
    if not ledger:
        wrong.append(f"no ledger in summary.json; status {summary.get('status')}: {summary.get('error')}")
    if ledger.get("lost") or ledger.get("duplicated"):
        wrong.append(f"ledger {ledger}")
    closed = (
        {len(iterations)} if summary.get("status") == "finished" else {len(iterations), len(iterations) - 1}
    )
    expected = {run.prompts * max(count, 0) for count in closed}
    if ledger and ledger["committed"] not in expected:
        wrong.append(f"ledger {ledger}: {' or '.join(map(str, sorted(expected)))} pairs were to be committed")
    if iterations != list(range(1, len(iterations) + 1)):
        wrong.append(f"finished iterations {iterations}")
    for iteration in iterations:
        wrong += _round(run, iteration)
    steps = [(one["iteration"], one["step"], one["global_step"]) for one in _events(run, "step")]
    if [number for *_, number in steps] != list(range(1, len(steps) + 1)):
        wrong.append("metrics.jsonl does not have every step once, in order")
    return {
        "run": run.folder.name,
        "status": summary.get("status", "killed"),
        "ends": run.ends,
        "iterations": len(iterations),
        "expected": max(expected),
        "ledger": ledger,
        "exact": not wrong,
        "wrong": wrong,
    }


def _round(run: Run, iteration: int) -> list[str]:
    ids = pq.read_table(run.folder / "samples" / f"iteration-{iteration:03d}.parquet", columns=["prompt_id"])
    prompts = ids["prompt_id"].to_pylist()
    trained = sum(one["pairs"] for one in _events(run, "step") if one["iteration"] == iteration)
    wrong = []
    if not len(set(prompts)) == len(prompts) == run.prompts:
        wrong.append(
            f"iteration {iteration}: {len(prompts)} pairs of {len(set(prompts))} prompts in the archive"
        )
    if trained != run.prompts:
        wrong.append(f"iteration {iteration}: trained on {trained} pairs, not {run.prompts}")
    return wrong


def _json(run: Run, name: str) -> dict[str, Any]:
    path = run.folder / name
    found: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    return found


def _events(run: Run, kind: str) -> list[dict[str, Any]]:
    path = run.folder / "metrics.jsonl"
    lines = path.read_text().split("\n")[:-1] if path.exists() else []
    return [event for event in map(json.loads, lines) if event["event"] == kind]
