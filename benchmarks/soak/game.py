"""The runs: one after the other, gone on with after each stop."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psutil
import yaml

from benchmarks.kinds import kind_of
from benchmarks.sessions import kill, of_session
from benchmarks.soak.settings import prompts, recipe

IRIS_RAY = Path(sys.executable).with_name("iris-ray")
END_S = 60.0  # in which all that a program started must be gone
AGENTS_END_S = 180.0  # Ray's agents too
STOP_S = 180.0


@dataclass
class Run:
    """One run folder, and the exit codes with which its program ended each time."""

    folder: Path
    prompts: int
    ends: list[int] = field(default_factory=list)


class Game:
    """The program that plays, and what it started. Ray's files lie in `folder`, too."""

    def __init__(self, folder: Path, port: int):
        self.folder = folder
        self.port = port
        self.runs: list[Run] = []
        self.orphans: list[str] = []
        self.away: list[list[float]] = []  # from, until: nobody listened at the gateway, for good reason
        self.process: subprocess.Popen[bytes]
        self.leaders: list[int] = []  # of sessions, one for each program
        self.temporary = folder / "ray"
        self.temporary.mkdir()

    @property
    def run(self) -> Run:
        return self.runs[-1]

    @property
    def ends(self) -> int:
        """How often a program ended so far."""
        return sum(len(run.ends) for run in self.runs)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def begin(self, endless: bool) -> None:
        """Start another run."""
        name = f"demo-{len(self.runs) + 1}"
        settings = recipe(name, self.folder, self.port, endless)
        path = self.folder / f"{name}.yaml"
        path.write_text(yaml.safe_dump(settings))
        self.runs.append(Run(self.folder / name, prompts(settings)))
        self._start(path)

    def resume(self) -> None:
        self._start("--resume", self.run.folder)

    def _start(self, *words: Any) -> None:
        if not self.away or self.away[-1][1] < float("inf"):
            self.away.append([time.time(), float("inf")])
        # Short, for paths of sockets; and so that no other cluster of the machine is joined.
        environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
        environment |= {"RAY_TMPDIR": str(self.temporary)}
        with self.output.open("ab") as output:
            self.process = subprocess.Popen(
                [IRIS_RAY, "run", *words],
                stdout=output,
                stderr=output,
                start_new_session=True,
                env=environment,
            )
        self.leaders.append(self.process.pid)

    @property
    def output(self) -> Path:
        return self.folder / f"{self.run.folder.name}.txt"

    def answers(self) -> bool:
        """Whether the gateway tells a status. The first time after a start its absence is over."""
        if self.away[-1][1] < float("inf"):
            return True
        with suppress(httpx.HTTPError):
            if httpx.get(f"{self.url}/status", timeout=5).status_code == 200:
                self.away[-1][1] = time.time()
                return True
        return False

    def token(self) -> str:
        path = self.run.folder / "gateway.token"
        return path.read_text().strip() if path.exists() else ""

    def ended(self) -> int:
        """Take note that the program ended; returns its exit code. What it leaves behind is an orphan."""
        code = self.process.wait()
        self.run.ends.append(code)
        self._absent(time.time())
        # Ray's agents report to a cluster that is gone, and give up a minute or so later.
        self._expect_gone(END_S, ("agents",))
        return code

    def _expect_gone(self, seconds: float, but: Sequence[str] = ()) -> None:
        """What lives on after so many seconds is an orphan, and killed."""
        deadline = time.monotonic() + seconds
        while (left := self._left(but)) and time.monotonic() < deadline:
            time.sleep(0.5)
        self.orphans += [f"{process.pid}: {command}" for process, command in left]
        while left := self._left(but):
            kill([process for process, _ in left])

    def _left(self, but: Sequence[str]) -> list[tuple[psutil.Process, str]]:
        left = []
        for process in self.processes():
            with suppress(psutil.Error):
                command = process.cmdline()
                if kind_of(command) not in but:
                    left.append((process, " ".join(command).strip()[:100]))
        return left

    def interrupt(self, number: signal.Signals) -> int:
        """Ctrl-C, which reaches all of the foreground, or SIGKILL for the program alone."""
        self._absent(time.time())
        if number is signal.SIGINT:
            os.killpg(self.process.pid, number)
        else:
            self.process.send_signal(number)
        return self._wait()

    def stop(self) -> int:
        """By the command `iris-ray stop`; raises `RuntimeError` with what it said if it failed."""
        self._absent(time.time())
        done = subprocess.run(
            [IRIS_RAY, "stop", self.run.folder, "--timeout", str(STOP_S)],
            capture_output=True,
            text=True,
            timeout=2 * STOP_S,
            env=os.environ | {"RAY_TMPDIR": str(self.temporary)},
        )
        if done.returncode and self.process.poll() is None:
            raise RuntimeError(f"iris-ray stop failed: {done.stderr[-1000:]}")
        return self._wait()

    def _wait(self) -> int:
        try:
            self.process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self.orphans.append(f"{self.process.pid}: the program did not end in {STOP_S:g} s")
            self.process.kill()
        return self.ended()

    def _absent(self, since: float) -> None:
        if self.away[-1][1] < float("inf"):
            self.away.append([since, float("inf")])

    def processes(self) -> list[psutil.Process]:
        """All that live of what the programs started."""
        return of_session(*self.leaders)

    def close(self) -> None:
        """End all that is left; what is no more to be expected then is an orphan, agents included."""
        if not self.runs:
            return
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        self._expect_gone(AGENTS_END_S)
