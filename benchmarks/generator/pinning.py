"""Which core a process runs on."""

import os


def pin(core: int) -> None:
    """Bind all threads of this process, and with them what it starts later, to one core."""
    for thread in os.listdir("/proc/self/task"):
        os.sched_setaffinity(int(thread), {core})
