"""A run in a process of its own, for tests that look at it, steer it or kill parts of it."""

import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import yaml
from conftest import metric_events

from benchmarks.sessions import kill, name_of, of_session

BIN = Path(sys.executable).parent
# For what a slow machine does in its own time: it ends a test that would wait forever, and measures nothing.
WAIT_S = 900


def free_ports(count: int) -> list[int]:
    """Of this machine. Nothing keeps them until they are used; the system itself gives others."""
    ports: list[int] = []
    while len(ports) < count:
        port = random.randrange(20_000, 32_000)
        with socket.socket() as tried, suppress(OSError):
            tried.bind(("127.0.0.1", port))
            ports.append(port)
    return ports


class RunProcess:
    """The process and all that it starts, which is one session."""

    def __init__(self, folder: Path, command: list[Any], **environment: str):
        """`folder` is the run's; what the process prints lies beside it."""
        self.folder = folder
        self._output = folder.parent / f"{folder.name}-{time.monotonic_ns()}.txt"
        with self._output.open("w") as output:
            self.process = subprocess.Popen(
                command,
                stdout=output,
                stderr=output,
                start_new_session=True,
                env=os.environ | environment,
            )

    def events(self, kind: str | None = None) -> list[dict[str, Any]]:
        return metric_events(self.folder, kind)

    def summary(self) -> dict[str, Any]:
        return json.loads((self.folder / "summary.json").read_text())

    def printed(self) -> str:
        return self._output.read_text()

    def wait_for(self, condition: Callable[[], Any], seconds: float = WAIT_S, pause: float = 0.1) -> Any:
        """What `condition` returns once that is true; fails if it takes too long or the run ends."""
        deadline = time.monotonic() + seconds
        while not (result := condition()):
            assert self.process.poll() is None, f"the run ended before its time: {self.printed()}"
            assert time.monotonic() < deadline, f"nothing happened in {seconds} s: {self.printed()}"
            time.sleep(pause)
        return result

    def processes(self) -> list[psutil.Process]:
        """All of the session that live."""
        return of_session(self.process.pid)

    def called(self, *names: str) -> dict[str, list[psutil.Process]]:
        """Those of some names, as `ray::Generator`, by name."""
        found: dict[str, list[psutil.Process]] = {}
        for process in self.processes():
            if (name := name_of(process)) in names:
                found.setdefault(name, []).append(process)
        return found

    def press_ctrl_c(self) -> int:
        """Returns the exit status."""
        # A terminal sends it to every process of its foreground group.
        os.killpg(self.process.pid, signal.SIGINT)
        return self.process.wait(WAIT_S)

    def kill(self) -> None:
        """All that is left of it."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)  # at once, before anybody looks for the others
        while left := self.processes():
            kill(left)
        self.process.wait()


def play(recipe: dict[str, Any], runs: Path, *overrides: str, **environment: str) -> RunProcess:
    """Start a run of `recipe`, which names it, in a folder of `runs`."""
    path = runs / f"{recipe['run']['name']}.yaml"
    path.write_text(yaml.safe_dump(recipe))
    settings = [word for each in (f"run.folder={runs}", *overrides) for word in ("--set", each)]
    return RunProcess(runs / recipe["run"]["name"], [BIN / "iris-ray", "run", path, *settings], **environment)


def resume(folder: Path, **environment: str) -> RunProcess:
    return RunProcess(folder, [BIN / "iris-ray", "run", "--resume", folder], **environment)
