"""Where weights lie on their way into an engine's process."""

import os
from tempfile import TemporaryDirectory

SHARED_MEMORY = "/dev/shm"


def shared_folder() -> TemporaryDirectory[str]:
    """A temporary folder in shared memory, where there is some: no disk takes part."""
    return TemporaryDirectory(dir=SHARED_MEMORY if os.path.isdir(SHARED_MEMORY) else None)
