"""A run of this service, as a user starts it."""

import os
import sys
from pathlib import Path
from typing import Any

import yaml

from benchmarks.end_to_end.settings import Settings, Start, Way
from benchmarks.watched import watch
from iris_ray.export import export_checkpoint
from iris_ray.run_folder import RunFolder

Row = dict[str, Any]


def play(settings: Settings, way: Way, dtype: str, start: Start, name: str) -> tuple[Row, list[Path]]:
    """Returns what it took, and the model that each iteration made."""
    recipe = start.folder / f"{name}.yaml"
    recipe.write_text(yaml.safe_dump(settings.recipe(way, dtype, start, name)))
    program = Path(sys.executable).parent / "iris-ray"
    command = [program, "run", recipe]
    if way == "one_core":
        command = ["taskset", "--cpu-list", str(max(os.sched_getaffinity(0))), *command]
    watched = watch(command, start.folder / f"{name}.log", threads=1)
    folder = RunFolder(start.folder / name)
    steps = list(folder.read_metrics("step"))
    # It begins where the other ways do: with an engine that is ready to write.
    begin = next(e["time"] for e in folder.read_metrics("generator") if e["state"] == "ready")
    last = {step["iteration"]: step["time"] for step in steps}
    iterations = folder.read_summary()["iterations"]
    inside = sum(entry["seconds"] for entry in iterations)
    seconds = steps[-1]["time"] - begin
    waited = sum(entry["learner_waited_seconds"] for entry in iterations)
    row = {
        "pairs": sum(entry["pairs"] for entry in iterations),
        "seconds": seconds,
        "start_s": begin - watched.began,
        "end_s": watched.began + watched.seconds - steps[-1]["time"],
        "boundary_s": (seconds - inside) / max(1, len(iterations) - 1),
        "writing_s": sum(entry["generation_seconds"] for entry in iterations),
        "training_s": inside - waited,
        "generators_idle_share": 1 - folder.read_summary()["generators"]["busy_share"],
        "learner_idle_share": waited / inside,
        "peak_mib": watched.peak_mib,
        "iteration_ends_s": [last[number] - begin for number in sorted(last)],
    }
    models = [export_checkpoint(folder.path, number) for number in sorted(last)]
    return row, models
