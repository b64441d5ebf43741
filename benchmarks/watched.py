"""A process and all that it starts: how long it lives, and the most memory it holds."""

import os
import subprocess
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

EVERY_S = 1.0


@dataclass(frozen=True)
class Watched:
    """`peak_mib`: proportional set size of all processes together; `began` in s since 1970."""

    began: float
    seconds: float
    peak_mib: float


def watch(command: list[Any], log: Path, threads: int) -> Watched:
    """Run a command to its end. Raises `RuntimeError` with what it printed if it fails."""
    environment = os.environ | {"OMP_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": "false"}
    began, peak = time.time(), 0.0
    with log.open("w") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, env=environment)
        while process.poll() is None:
            peak = max(peak, _memory_mib(process.pid))
            with suppress(subprocess.TimeoutExpired):
                process.wait(EVERY_S)
    if process.returncode:
        raise RuntimeError(f"{command} failed: {log.read_text()[-4000:]}")
    return Watched(began, time.time() - began, peak)


def _memory_mib(pid: int) -> float:
    total = 0
    with suppress(psutil.Error):
        for process in [root := psutil.Process(pid), *root.children(recursive=True)]:
            with suppress(psutil.Error):
                total += process.memory_full_info().pss
    return total / (1 << 20)
