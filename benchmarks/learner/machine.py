"""Where the numbers come from."""

import os
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

PACKAGES = ("torch", "transformers", "trl", "accelerate", "deepspeed")


def machine(threads: int) -> dict[str, Any]:
    """The processor and how much of it was used."""
    return {
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)),
        "threads": threads,
        "system": platform.platform(),
    }


def versions() -> dict[str, str]:
    """Versions of what is compared and what it runs on."""
    return {"python": platform.python_version()} | {package: version(package) for package in PACKAGES}


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()
