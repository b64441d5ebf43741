"""Memory, file handles and threads of all processes, every few seconds."""

import csv
import os
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import psutil

from benchmarks.kinds import kind_of
from benchmarks.soak.game import Game

SHARED, FOLDER, LOGS = "shared memory", "run folders", "Ray's folder"


class Sample(NamedTuple):
    """`seconds` since the begin. `pss_mib`, `own_mib`: proportional and unique set size of a process.

    `started` in s since 1970: where so many die, numbers of processes come again. Of what is no process
    (`pid` 0) `pss_mib` is its size: all that lies in /dev/shm of the machine, which is Ray's object store and
    whatever others put there; the run folders; Ray's logs and sockets.
    """

    seconds: float
    kind: str
    pid: int
    started: float
    pss_mib: float
    own_mib: float
    handles: int
    threads: int


class Sampler(threading.Thread):
    """Takes samples until it is stopped."""

    def __init__(self, game: Game, every_s: float, began: float):
        super().__init__(daemon=True)
        self.game = game
        self.every_s = every_s
        self.began = began
        self.samples: list[Sample] = []
        self.over = threading.Event()

    def run(self) -> None:
        while not self.over.wait(self.every_s):
            seconds = time.time() - self.began
            for process in self.game.processes():
                with suppress(psutil.Error):
                    self.samples.append(_sample(process, seconds))
            for kind, measure in self._sizes().items():
                self.samples.append(Sample(seconds, kind, 0, 0.0, measure() / (1 << 20), 0.0, 0, 0))

    def stop(self) -> None:
        """Also say of each process from its begin on what it turned out to be."""
        self.over.set()
        self.join()
        known = {(sample.pid, sample.started): sample.kind for sample in self.samples}
        self.samples = [
            sample._replace(kind=known[sample.pid, sample.started]) if sample.pid else sample
            for sample in self.samples
        ]

    def _sizes(self) -> dict[str, Callable[[], float]]:
        runs = [run.folder for run in self.game.runs]
        return {
            SHARED: lambda: psutil.disk_usage("/dev/shm").used,
            FOLDER: lambda: sum(map(_size, runs)),
            LOGS: lambda: _size(self.game.temporary),
        }


def _sample(process: psutil.Process, seconds: float) -> Sample:
    with process.oneshot():
        memory = process.memory_full_info()
        return Sample(
            seconds,
            kind_of(process.cmdline()),
            process.pid,
            process.create_time(),
            memory.pss / (1 << 20),
            memory.uss / (1 << 20),
            process.num_fds(),
            process.num_threads(),
        )


def _size(folder: Path) -> int:
    total = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            with suppress(OSError):
                total += os.lstat(os.path.join(parent, name)).st_size
    return total


def write(samples: list[Sample], path: Path) -> None:
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(Sample._fields)
        for sample in samples:
            writer.writerow([round(value, 2) if isinstance(value, float) else value for value in sample])
