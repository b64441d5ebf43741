"""Where weights lie on their way into an engine's process."""

import fcntl
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory, gettempdir

SHARED_MEMORY = "/dev/shm"
PREFIX, LOCK = "iris-ray-weights-", "lock"
MAKING_S = 60.0  # in which a new folder surely has its lock


@contextmanager
def shared_folder() -> Iterator[str]:
    """A temporary folder in shared memory, where there is some: no disk takes part.

    What processes left there that were killed is removed first: it would take memory until the next boot.
    """
    parent = Path(SHARED_MEMORY if os.path.isdir(SHARED_MEMORY) else gettempdir())
    _sweep(parent)
    with TemporaryDirectory(prefix=PREFIX, dir=parent) as folder, open(f"{folder}/{LOCK}", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # the kernel lets go of it, however this process ends
        yield folder


def _sweep(parent: Path) -> None:
    for folder in parent.glob(f"{PREFIX}*"):
        with suppress(OSError):  # somebody works there, or was faster, or is another user
            if time.time() - folder.stat().st_mtime < MAKING_S:
                continue
            with open(folder / LOCK, "w") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder)
