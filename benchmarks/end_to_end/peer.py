"""The sequential loop that people write: all responses of an iteration, then training on them, by turns."""

import json
import sys
from pathlib import Path
from typing import Any

from benchmarks.end_to_end.ours import Row
from benchmarks.end_to_end.settings import Settings, Start, Way
from benchmarks.watched import watch


def play(settings: Settings, way: Way, dtype: str, start: Start, name: str) -> tuple[Row, list[Path]]:
    """Returns what it took, and the model that each iteration made. Each phase has all cores."""
    import os

    folder = start.folder / name
    folder.mkdir()
    settings.save(folder / "settings.json")
    command: list[Any] = [sys.executable, "-m", "benchmarks.end_to_end.loop"]
    command += [way, dtype, start.model, start.data, folder]
    cores = len(os.sched_getaffinity(0))
    watched = watch(command, folder / "log.txt", threads=cores)
    phases = json.loads((folder / "phases.json").read_text())
    begin, end = phases[0]["ready"], phases[-1]["trained"]
    writing = sum(phase["written"] - phase["ready"] for phase in phases)
    training = sum(phase["trained"] - phase["training"] for phase in phases)
    seconds = end - begin
    row = {
        "pairs": settings.rows,
        "seconds": seconds,
        "start_s": begin - watched.began,
        "end_s": watched.began + watched.seconds - end,
        "boundary_s": (seconds - writing - training) / max(1, len(phases) - 1),
        "writing_s": writing,
        "training_s": training,
        "generators_idle_share": 1 - writing / seconds,
        "learner_idle_share": 1 - training / seconds,
        "peak_mib": watched.peak_mib,
        "iteration_ends_s": [phase["trained"] - begin for phase in phases],
    }
    return row, [folder / f"model-{number}" for number in range(1, settings.iterations + 1)]
