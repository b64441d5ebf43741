"""Throughput and idle time against the number of generators: `python -m benchmarks.planning.scaling`.

Simulated, nothing of it measured: a model of 8 B parameters on GPUs that `hardware.yaml` beside this file
describes. Adds what is missing to `scaling.csv` in docs/planning, and draws it. Takes some minutes.
"""

import csv
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
import typer
from rich.console import Console
from transformers import LlamaConfig

from benchmarks.style import STYLE
from iris_ray.config import RunConfig
from iris_ray.planning.hardware import Hardware, MadeUpData
from iris_ray.planning.of_recipe import make_planner
from iris_ray.planning.planner import Planner

HERE = Path(__file__).parent
OUT = HERE.parents[1] / "docs" / "planning"
TABLE = OUT / "scaling.csv"
GENERATORS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 10_000)
CONCURRENCY = 64
# Pairs of the iteration: so many times all places of the engines, within bounds.
TIMES_FULL, LEAST_PAIRS, MOST_PAIRS = 8, 8192, 655_360
LEARNERS = {"64 ranks": 64, "512 ranks": 512}
MOST_BESIDE = {"64 ranks": 1024, "512 ranks": 10_000}  # the small learner sets the pace long before
COLUMNS = (
    "learner",
    "generators",
    "pairs_per_s",
    "learner_idle",
    "generators_idle",
    "buffer_busy",
    "pool_busy",
)
Row = dict[str, Any]


def planner(folder: Path, generators: int, ranks: int, prompts: int) -> Planner:
    config = RunConfig.from_dict(
        {
            "run": {"name": "scaling"},
            "model": {"path": str(folder)},
            "data": {"path": "made-up", "max_prompt_tokens": 1024, "max_response_tokens": 1024},
            "schedule": {"iterations": 1, "epochs": 1},
            "generation": {"num_gpus": 1, "count": generators, "concurrency": CONCURRENCY},
            "learner": {
                "num_gpus": 1,
                "workers": ranks,
                "batch_size": 1024,
                "zero_stage": 3,
                "gradient_checkpointing": True,
                "reference": "generator",
            },
            "evaluation": {"prompts": 0},
        }
    )
    hardware = Hardware.from_yaml(HERE / "hardware.yaml")
    data = MadeUpData(prompts=prompts, prompt_tokens=200, response_tokens=300)
    found = make_planner(config, hardware.model_copy(update={"data": data}), [])
    return found.with_split(generators, ranks)


def simulate(say: Any) -> Iterator[Row]:
    """All that is not in the file yet, the fewest generators first."""
    known = {(row["learner"], int(row["generators"])) for row in load()}
    with TemporaryDirectory() as name:
        LlamaConfig(
            architectures=["LlamaForCausalLM"],
            hidden_size=4096,
            intermediate_size=14336,
            num_hidden_layers=32,
            num_attention_heads=32,
            num_key_value_heads=8,
            vocab_size=128256,
            max_position_embeddings=8192,
        ).save_pretrained(name)
        for generators, (learner, ranks) in product(GENERATORS, LEARNERS.items()):
            if (learner, generators) in known or generators > MOST_BESIDE[learner]:
                continue
            say(f"{learner}, {generators} generators")
            prompts = min(max(LEAST_PAIRS, TIMES_FULL * CONCURRENCY * generators), MOST_PAIRS)
            found = planner(Path(name), generators, ranks, prompts).simulate()
            yield {
                "learner": learner,
                "generators": generators,
                "pairs_per_s": found["pairs_per_s"],
                "learner_idle": found["learner_idle_share"],
                "generators_idle": found["generators_idle_share"],
                "buffer_busy": found["busy_share"]["sample buffer"],
                "pool_busy": found["busy_share"]["generator pool"],
            }


def load() -> list[Row]:
    if not TABLE.exists():
        return []
    with TABLE.open(newline="") as file:
        return list(csv.DictReader(file))


def draw(rows: list[Row], path: Path) -> None:
    mpl.rcParams.update(STYLE)
    figure, (rates, idle, busy) = plt.subplots(1, 3, figsize=(12, 3.4))
    for learner, style in zip(LEARNERS, ("-", ":"), strict=True):
        here = [row for row in rows if row["learner"] == learner]
        counts = [int(row["generators"]) for row in here]
        for axis, column, color, label in (
            (rates, "pairs_per_s", "tab:green", "pairs/s"),
            (idle, "learner_idle", "tab:blue", "learner"),
            (idle, "generators_idle", "tab:orange", "generators"),
            (busy, "buffer_busy", "tab:red", "sample buffer"),
            (busy, "pool_busy", "tab:purple", "generator pool"),
        ):
            values = [float(row[column]) for row in here]
            axis.plot(counts, values, color=color, linestyle=style, marker="o", markersize=2.5,
                      label=f"{label}, {learner}")  # fmt: skip
    titles = ("pairs per second", "share of the time idle", "share of the time busy")
    for axis, title in zip((rates, idle, busy), titles, strict=True):
        axis.set_title(f"{title} (simulated)")
        axis.set_xlabel("generators")
        axis.set_xscale("log")
        axis.legend(frameon=False, fontsize=7)
    rates.set_yscale("log")
    idle.set_ylim(0, 1)
    busy.set_ylim(0, 1.05)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


def main() -> None:
    OUT.mkdir(parents=True, exist_ok=True)
    if not TABLE.exists():
        TABLE.write_text(",".join(COLUMNS) + "\n")
    with Console(stderr=True).status("starting") as status:
        for row in simulate(status.update):
            with TABLE.open("a", newline="") as file:
                values = [f"{value:.4g}" if isinstance(value, float) else value for value in row.values()]
                csv.writer(file, lineterminator="\n").writerow(values)
    draw(load(), OUT / "scaling.svg")


if __name__ == "__main__":
    typer.run(main)
