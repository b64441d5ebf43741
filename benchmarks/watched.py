"""A process and all that it starts: how long it lives, and the most memory it holds."""

import os
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.processes import Sample, sample

EVERY_S = 1.0
MOST_SHARE = 0.02  # of the time that may go to looking: reading the memory maps of a run takes a while


@dataclass(frozen=True)
class Watched:
    """`peak_mib`: proportional set size of all processes together; `began` in s since 1970."""

    began: float
    seconds: float
    peak_mib: float


def watch(
    command: list[Any],
    log: Path,
    threads: int,
    each: Callable[[Sample], Any] = lambda _: None,
    **environment: str,
) -> Watched:
    """Run a command to its end; `each` gets a sample a second, or every few seconds of many processes.

    Raises `RuntimeError` with what it printed if it fails.
    """
    environment |= {"OMP_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": "false"}
    began, peak = time.time(), 0.0
    with log.open("w") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, env=os.environ | environment)
        while process.poll() is None:
            looked = time.monotonic()
            each(found := sample(process.pid))
            peak = max(peak, found.mib)
            with suppress(subprocess.TimeoutExpired):
                process.wait(max(EVERY_S, (time.monotonic() - looked) / MOST_SHARE))
    if process.returncode:
        raise RuntimeError(f"{command} failed: {log.read_text()[-4000:]}")
    return Watched(began, time.time() - began, peak)
