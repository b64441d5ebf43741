"""Resident memory of this process, in MiB. Linux only.

`getrusage` would count what the parent process held when it started this one.
"""

from pathlib import Path

PROCESS = Path("/proc/self")


def resident_mib() -> float:
    """What is resident now."""
    return _status("VmRSS")


def peak_mib() -> float:
    """The most that was resident since `forget_peak`."""
    return _status("VmHWM")


def forget_peak() -> None:
    """Count the peak from here on."""
    (PROCESS / "clear_refs").write_text("5")


def _status(key: str) -> float:
    for line in (PROCESS / "status").read_text().splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1]) / 1024
    raise RuntimeError(f"{PROCESS}/status has no {key}.")
