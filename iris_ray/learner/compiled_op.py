"""DeepSpeed's operator for ranks on CPUs, which torch compiles where it is first used."""

import fcntl
import hashlib
import os
import sys
from pathlib import Path

from deepspeed.comm.torch import build_shm_op

from iris_ray.search_path import PATH

# What torch compiles for one installation does not fit another.
DEFAULT_FOLDER = Path.home() / ".cache" / "iris-ray" / hashlib.sha256(sys.prefix.encode()).hexdigest()[:12]


def load_compiled_op() -> None:
    """Compile it, unless that was done, and load it: DeepSpeed finds it there.

    Torch keeps others out by a file that it removes at the end. A process that is killed meanwhile leaves the
    file, and all that come later wait for ever. So nobody goes there without a lock that the kernel frees:
    who holds it knows that a file which is there was left behind.
    """
    os.environ["PATH"] = PATH
    folder = Path(os.environ.setdefault("TORCH_EXTENSIONS_DIR", str(DEFAULT_FOLDER)))
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "iris-ray.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for left in folder.glob("*/lock"):
            left.unlink()
        build_shm_op()
