"""Cores that belong to one process of a node."""

import fcntl
import os
import tempfile
from pathlib import Path
from typing import IO

import psutil

from iris_ray.errors import ResourceError


class OwnCores:
    """Binds this process, and those that it will start, to cores that no other owner has.

    A core is owned by a lock on a file of this node. The kernel lets go of it when the process ends, however
    it ends. Raises `ResourceError` if fewer than `count` are free.
    """

    def __init__(self, count: int, folder: Path | None = None):
        folder = folder or Path(tempfile.gettempdir()) / f"iris-ray-cores-{os.getuid()}"
        folder.mkdir(exist_ok=True)
        self._locks: list[IO[bytes]] = []
        self.cores: list[int] = []
        allowed = sorted(os.sched_getaffinity(0))
        # The last ones first: the first cores are where everybody else is.
        for core in reversed(allowed):
            if len(self.cores) < count and (lock := _lock(folder / str(core))):
                self._locks.append(lock)
                self.cores.append(core)
        if len(self.cores) < count:
            raise ResourceError(
                f"generation.bind_cores: {count} cores of their own are wanted, and {len(self.cores)} of "
                f"this node's {len(allowed)} are free. Lower generation.count or generation.num_cpus."
            )
        psutil.Process().cpu_affinity(self.cores)


def _lock(path: Path) -> IO[bytes] | None:
    file = path.open("ab")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        return None
    return file
