"""One point: a run from its start to its end, and what it took."""

import json
import sys
from bisect import bisect_right
from collections.abc import Sequence
from itertools import groupby, pairwise
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import yaml

from benchmarks.growth.points import Job, Point
from benchmarks.growth.start import make_model, write_rows
from benchmarks.processes import KINDS, MIB, Sample
from benchmarks.watched import watch
from iris_ray.run_folder import RunFolder

Row = dict[str, Any]
MEMORIES = tuple(f"{kind}_mib" for kind in KINDS)
HANDLES = tuple(f"{kind}_handles" for kind in KINDS)
COLUMNS = (
    *("curve", "value", "parameters", "prompts", "iterations", "pairs", "batch"),
    *("pairs_per_s", "response_tokens", "prepare_s", "start_s", "boundary_s", "iteration_s"),
    *("peak_mib", *MEMORIES, "store_mib", "handles"),
)
COURSE = ("iteration", "seconds", "store_mib", *MEMORIES, *HANDLES)


def measure(point: Point) -> tuple[Row, list[Row]]:
    """The point's row, and one of its course for each iteration. Raises `RuntimeError` if the run fails."""
    with TemporaryDirectory() as name:
        folder = Path(name)
        data, model, recipe, store = (folder / n for n in ("data.jsonl", "model", "run.yaml", "store.jsonl"))
        write_rows(point.job, data)
        parameters = make_model(point.job, model)
        recipe.write_text(yaml.safe_dump(point.job.recipe(folder, model, data)))
        samples: list[Sample] = []
        watched = watch(
            [sys.executable, "-m", "benchmarks.growth.play", recipe, store],
            folder / "log.txt",
            threads=1,
            each=samples.append,
            # What `datasets` keeps of the rows goes with them, and no run finds another's.
            HF_DATASETS_CACHE=str(folder / "datasets"),
        )
        steps = list(RunFolder(folder / "run").read_metrics("step"))
        told = [json.loads(line) for line in store.read_text().splitlines()]
    row = {
        "curve": point.curve,
        "value": point.value,
        "parameters": parameters,
        "prepare_s": next(line["time"] for line in told if "prepared" in line) - watched.began,
        "start_s": steps[0]["time"] - watched.began,
        "peak_mib": watched.peak_mib,
        "handles": max(sum(each.handles.values()) for each in samples),
        "store_mib": max(line.get("store_bytes", 0.0) for line in told) / MIB,
    }
    row |= {f"{kind}_mib": max(each.private_mib[kind] for each in samples) for kind in KINDS}
    return row | _of_job(point.job) | _of_steps(steps), _course(steps, samples, told)


def _of_job(job: Job) -> Row:
    return {
        "prompts": job.prompts,
        "iterations": job.iterations,
        "pairs": job.iterations * job.pairs,
        "batch": job.batch,
    }


def _of_steps(steps: Sequence[dict[str, Any]]) -> Row:
    """Speed within iterations, from the first step's end to the last one's; and what lies between them."""
    rounds = [list(some) for _, some in groupby(steps, lambda step: step["iteration"])]
    stepping = sum(some[-1]["time"] - some[0]["time"] for some in rounds)
    between = [after[0]["time"] - before[-1]["time"] for before, after in pairwise(rounds)]
    whole = [after[0]["time"] - before[0]["time"] for before, after in pairwise(rounds)]
    return {
        "pairs_per_s": sum(step["pairs"] for some in rounds for step in some[1:]) / stepping,
        "response_tokens": sum(s["response_tokens"] * s["pairs"] for s in steps)
        / sum(s["pairs"] for s in steps),
        "boundary_s": median(between),
        "iteration_s": median(whole),
    }


def _course(
    steps: Sequence[dict[str, Any]], samples: Sequence[Sample], told: Sequence[dict[str, Any]]
) -> list[Row]:
    """How things stood when each iteration took its last step, and how long it took since the one before."""
    ends = [list(some)[-1] for _, some in groupby(steps, lambda step: step["iteration"])]
    stores = [line for line in told if "store_bytes" in line]
    rows = []
    for before, end in zip([None, *ends], ends, strict=False):
        found: Sample = _last(samples, [each.time for each in samples], end["time"])
        store = _last(stores, [line["time"] for line in stores], end["time"])
        rows.append(
            {
                "iteration": end["iteration"],
                "seconds": end["time"] - before["time"] if before else "",
                "store_mib": store["store_bytes"] / MIB,
                **{f"{kind}_mib": found.private_mib[kind] for kind in KINDS},
                **{f"{kind}_handles": found.handles[kind] for kind in KINDS},
            }
        )
    return rows


def _last(values: Sequence[Any], times: Sequence[float], until: float) -> Any:
    return values[max(0, bisect_right(times, until) - 1)]
