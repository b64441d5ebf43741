"""Predicted and measured: `python -m benchmarks.planning.validation` plays short demos and predicts them.

Two runs give the speeds, the others are predicted from them and their recipes alone. Plays what is not there
yet, about a minute and a half each on two cores, and writes `validation.csv` into docs/planning. With
`--predict` it needs the first two alone, plays nothing and prints predictions.
"""

import csv
import subprocess
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from iris_ray.config import RunConfig
from iris_ray.planning.of_recipe import make_planner
from iris_ray.planning.this_machine import this_machine
from iris_ray.run_folder import RunFolder

ROOT = Path(__file__).parents[2]
OUT = ROOT / "docs" / "planning" / "validation.csv"
RECIPE = ROOT / "recipes" / "demo.yaml"
SHORT = (
    "model.scratch.warmup_steps=300",
    "schedule.iterations=3",
    "schedule.prompts_per_iteration=1280",
    "evaluation.prompts=128",
)
WIDER = ("model.scratch.hidden_size=256", "model.scratch.intermediate_size=1024")
DEEPER = (
    "model.scratch.hidden_size=192",
    "model.scratch.intermediate_size=768",
    "model.scratch.layers=6",
    "model.scratch.heads=6",
)
LONGER = (
    "data.sort_digits.min_digits=8",
    "data.sort_digits.max_digits=16",
    "data.max_prompt_tokens=48",
    "data.max_response_tokens=32",
)
GENERATOR_SCORES = "learner.reference=generator"
CALIBRATION = {
    "demo": (),
    "wider": (*WIDER, "generation.concurrency=16", "learner.batch_size=64"),
}
PREDICTED = {
    "online": ("schedule.refresh=8", "schedule.max_staleness=1", GENERATOR_SCORES),
    "two-generators": ("generation.count=2", "learner.batch_size=64"),
    "longer": (
        *LONGER,
        "schedule.epochs=2",
        "schedule.prompts_per_iteration=960",
        "learner.batch_size=16",
    ),
    "deeper-online": (*DEEPER, "schedule.refresh=4", GENERATOR_SCORES, "generation.concurrency=8"),
    "wider-online": (
        *WIDER,
        "schedule.iterations=2",
        "schedule.refresh=8",
        GENERATOR_SCORES,
        "generation.concurrency=32",
        "learner.batch_size=48",
    ),
    "longer-two": (
        *LONGER,
        "schedule.iterations=2",
        "generation.count=2",
        "learner.batch_size=128",
    ),
}
VALUES = ("pairs_per_s", "learner_waits", "generators_idle", "iteration_s")
Row = dict[str, Any]


def settings(name: str, runs: Path) -> list[str]:
    own = (CALIBRATION | PREDICTED)[name]
    return [f"run.name={name}", f"run.folder={runs}", *SHORT, *own]


def play(name: str, runs: Path) -> None:
    overrides = [part for setting in settings(name, runs) for part in ("--set", setting)]
    program = [sys.executable, "-c", "from iris_ray.cli import main; main()"]
    subprocess.run([*program, "run", str(RECIPE), *overrides], check=True, cwd=ROOT)


def predicted(name: str, runs: Path) -> Row:
    config = RunConfig.from_yaml(RECIPE, settings(name, runs))
    measured = [runs / calibration for calibration in CALIBRATION]
    found = make_planner(config, this_machine(config), measured).simulate(config.schedule.iterations)
    return {
        "pairs_per_s": found["pairs_per_s"],
        "learner_waits": found["learner_idle_share"],
        "generators_idle": found["generators_idle_share"],
        "iteration_s": found["iterations"][-1]["seconds"],
    }


def measured(folder: Path) -> Row:
    summary = RunFolder(folder).read_summary()
    rounds = summary["iterations"]
    seconds = sum(entry["seconds"] for entry in rounds)
    return {
        "pairs_per_s": summary["throughput"]["pairs_per_s"],
        "learner_waits": sum(entry["learner_waited_seconds"] for entry in rounds) / seconds,
        "generators_idle": 1 - summary["generators"]["busy_share"],
        "iteration_s": rounds[-1]["seconds"],
    }


def main(
    runs: Annotated[Path, typer.Option(help="Where the runs lie, or will lie.")] = Path("runs/planning"),
    predict: Annotated[bool, typer.Option("--predict", help="Play nothing, print predictions.")] = False,
) -> None:
    if predict:
        for name in PREDICTED:
            print(name, {key: round(value, 3) for key, value in predicted(name, runs).items()})
        return
    for name in CALIBRATION | PREDICTED:
        if not RunFolder(runs / name).read_summary():
            play(name, runs)
    with OUT.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(
            ["run", *(f"{value}_{kind}" for value in VALUES for kind in ("predicted", "measured"))]
        )
        for name in CALIBRATION | PREDICTED:
            told, seen = predicted(name, runs), measured(runs / name)
            writer.writerow([name, *(f"{side[value]:.3g}" for value in VALUES for side in (told, seen))])


if __name__ == "__main__":
    typer.run(main)
