"""Whether a run's ledger, its archive of pairs and its steps are exact."""

from collections import Counter
from typing import Any

import pyarrow.parquet as pq

from benchmarks.soak.game import Run
from iris_ray.run_folder import RunFolder


def audit(run: Run) -> dict[str, Any]:
    """`wrong` says what does not add up; empty if all is exact.

    Every finished iteration must have each step once, its archive each prompt once, and the ledger must have
    committed all of them. A run that was stopped may have trained a round to its end and not yet closed it.
    """
    folder = RunFolder(run.folder)
    summary = folder.read_summary()
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
    numbers, trained = [], Counter[int]()
    for step in folder.read_metrics("step"):
        numbers.append(step["global_step"])
        trained[step["iteration"]] += step["pairs"]
    for iteration in iterations:
        wrong += _round(run, iteration, trained[iteration])
    if numbers != list(range(1, len(numbers) + 1)):
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


def _round(run: Run, iteration: int, trained: int) -> list[str]:
    ids = pq.read_table(run.folder / "samples" / f"iteration-{iteration:03d}.parquet", columns=["prompt_id"])
    prompts = ids["prompt_id"].to_pylist()
    wrong = []
    if not len(set(prompts)) == len(prompts) == run.prompts:
        wrong.append(
            f"iteration {iteration}: {len(prompts)} pairs of {len(set(prompts))} prompts in the archive"
        )
    if trained != run.prompts:
        wrong.append(f"iteration {iteration}: trained on {trained} pairs, not {run.prompts}")
    return wrong
