"""What a program's processes hold, by the part of a run that they are."""

import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from benchmarks import kinds

MIB = 1 << 20
KINDS = ("driver", "buffer", "controller", "learner", "generators", "rest")
PARTS = {"generator": "generators", "engine": "generators"}


@dataclass(frozen=True)
class Sample:
    """At `time`, in s since 1970. `mib`: proportional set size of all processes together.

    By kind: `private_mib`, memory without what lies in files and without shared memory, and open file
    `handles`.
    """

    time: float
    mib: float
    private_mib: dict[str, float]
    handles: dict[str, int]


def sample(pid: int) -> Sample:
    """What process `pid`, the driver, and all that it started hold now."""
    whole, private, handles = 0.0, dict.fromkeys(KINDS, 0.0), dict.fromkeys(KINDS, 0)
    with suppress(psutil.Error):
        for process in [root := psutil.Process(pid), *root.children(recursive=True)]:
            with suppress(psutil.Error, OSError):  # it ended meanwhile
                kind = "driver" if process.pid == pid else kind_of(process.cmdline())
                mapped = _mapped_mib(process.pid)
                whole += mapped["Pss"]
                private[kind] += mapped["Pss_Anon"]
                handles[kind] += process.num_fds()
    return Sample(time.time(), whole, private, handles)


def kind_of(command: list[str]) -> str:
    """Of a process with this command line; "rest" is Ray, and the run's smaller actors."""
    kind = kinds.kind_of(command)
    kind = PARTS.get(kind, kind)
    return kind if kind in KINDS else "rest"


def _mapped_mib(pid: int) -> dict[str, float]:
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
    fields = (line.split() for line in lines)
    return {name.rstrip(":"): int(amount) * 1024 / MIB for name, amount, *_ in fields}
