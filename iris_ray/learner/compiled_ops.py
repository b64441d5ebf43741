"""Operators for ranks on CPUs, which torch compiles where they are first used."""

import fcntl
import hashlib
import os
import platform
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from torch.utils import cpp_extension

from iris_ray.search_path import PATH

# What torch compiles for one installation does not fit another.
DEFAULT_FOLDER = Path.home() / ".cache" / "iris-ray" / hashlib.sha256(sys.prefix.encode()).hexdigest()[:12]


def load_collectives() -> None:
    """DeepSpeed's operator for ranks that talk through memory: DeepSpeed finds it there."""
    from deepspeed.comm.torch import build_shm_op  # only ranks need DeepSpeed

    with _alone():
        build_shm_op()


def compiled_library(name: str, sources: Sequence[Path], flags: Sequence[str]) -> Path:
    """The shared library made of C++ `sources` for this machine's processor."""
    # A home folder may serve machines of several kinds.
    processor = hashlib.sha256(_processor().encode()).hexdigest()[:12]
    name = f"{name}_{processor}"
    with _alone() as folder:
        (folder / name).mkdir(exist_ok=True)
        cpp_extension.load(
            name,
            [str(source) for source in sources],
            extra_cflags=["-O3", "-march=native", *flags],
            extra_ldflags=list(flags),
            build_directory=str(folder / name),
            is_python_module=False,
        )
        return folder / name / f"{name}.so"


@contextmanager
def _alone() -> Iterator[Path]:
    """The folder of compiled operators, while no other process compiles there.

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
        yield folder


def _processor() -> str:
    """What tells kinds of processors apart."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    telling = ("model name", "flags", "CPU part", "Features")
    return platform.machine() + "".join(sorted({line for line in lines if line.startswith(telling)}))
