"""No engine outlives its generator."""

import ctypes
import multiprocessing
import signal
import sys

PR_SET_PDEATHSIG = 1


def die_with_parent() -> None:
    """Have the kernel kill this child process once the thread that started it is gone.

    vLLM's processes look after their parent themselves, but one that hangs does not.
    """
    if multiprocessing.parent_process() and sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
