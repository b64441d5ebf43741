"""One cluster, one buffer, and a number of generators."""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import ray

from actors import names
from actors.sample_buffer import SampleBuffer
from benchmarks.control_plane.players import Generators, Learner, busy_seconds, find_process, memory_mib
from benchmarks.control_plane.settings import RUN, Settings
from iris_ray.game import Round

WARM_UP_S = 10.0
TIMEOUT_S = 600


def measure(settings: Settings, generators: int) -> dict[str, Any]:
    """Pairs a second through one buffer, how long its calls took, its memory, its CPU time for each pair.

    `offered_pairs_per_s` is what the generators would write if nothing kept them waiting. All share this
    machine's cores; a buffer with a core of its own takes 10⁶ / `cpu_us_per_pair` pairs a second.
    """
    with TemporaryDirectory() as folder:
        config = settings.config(Path(folder), generators)
        # Enough that the round does not end before its time.
        prompts = settings.batch + int(1.5 * settings.rate * generators * (WARM_UP_S + settings.seconds))
        settings.write_data(Path(folder), prompts)
        ray.init(namespace=names.NAMESPACE, include_dashboard=False, log_to_driver=False, num_cpus=1)
        try:
            buffer = names.start(SampleBuffer, RUN, names.SAMPLE_BUFFER, config)
            opened: Any = buffer.open_round.remote(Round(1, 0, 1.0, 0.0, ""))
            ray.get(opened, timeout=TIMEOUT_S)
            process = find_process("ray::SampleBuffer")
            memory, busy = memory_mib(process), busy_seconds(process)
            parts = np.array_split(np.arange(generators), settings.processes)
            players = [Generators.remote(settings, int(part[0]), len(part)) for part in parts if len(part)]
            playing = [player.play.remote() for player in players]
            learned = Learner.remote().play.remote(settings.seconds, WARM_UP_S)
            row = ray.get(learned, timeout=TIMEOUT_S)
            row |= {"buffer_mib": memory_mib(process)}
            row |= {"buffer_growth_mib": row["buffer_mib"] - memory}
            status: Any = buffer.status.remote()
            written = ray.get(status, timeout=TIMEOUT_S)["written_in_all"]
            row |= {"cpu_us_per_pair": 1e6 * (busy_seconds(process) - busy) / written}
            closed: Any = buffer.close.remote()
            ray.get(closed, timeout=TIMEOUT_S)
            seconds = ray.get(playing, timeout=TIMEOUT_S)
        finally:
            ray.shutdown()
    row |= {"generators": generators, "offered_pairs_per_s": settings.rate * generators}
    for call in ("lease", "add"):
        taken = np.concatenate([each[call] for each in seconds])
        row |= {f"{call}s_per_s": len(taken) / (settings.seconds + WARM_UP_S)}
        row |= {f"{call}_ms_p{q}": 1e3 * float(np.quantile(taken, q / 100)) for q in (50, 99)}
    return row
