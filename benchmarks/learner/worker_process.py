"""The parent's end of a worker."""

import json
import os
import subprocess
import sys
import tempfile
from types import TracebackType
from typing import Any

from actors.environment import learner_environment
from benchmarks.learner.job import Job
from iris_ray.config import Learner

ENDING_S = 20


class WorkerFailed(Exception):
    """A worker ended before its time; the message has the end of what it printed."""


class WorkerProcess:
    """One side in a process of its own. Sides take turns: only the one that was asked computes."""

    def __init__(self, job: Job):
        self.job = job
        self._log = tempfile.TemporaryFile("w+")  # noqa: SIM115, closed by __exit__
        environment = {
            "OMP_NUM_THREADS": str(job.threads),
            "TOKENIZERS_PARALLELISM": "false",
            "HF_HUB_OFFLINE": "1",
            "TQDM_DISABLE": "1",
            "PATH": f"{os.path.dirname(sys.executable)}{os.pathsep}{os.environ['PATH']}",
        }
        if job.side == "ours":
            environment |= learner_environment(Learner(num_cpus=job.threads))  # as an actor has it
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.learner.worker", job.to_json()],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            env=os.environ | environment,
        )

    def __enter__(self) -> "WorkerProcess":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        if kind is not None:
            self._process.kill()
        self._process.stdin.close()
        try:
            self._process.wait(ENDING_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()
        self._log.close()

    def ask(self, request: str) -> dict[str, Any]:
        """The worker's answer to `request`. Raises `WorkerFailed`."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(f"{request}\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            self._fail()
        return self.answer()

    def answer(self) -> dict[str, Any]:
        """The next answer; the first one comes unasked, once the side is built."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            self._fail()
        values: dict[str, Any] = json.loads(line)
        return values

    def _fail(self) -> None:
        status = self._process.wait()
        self._log.seek(0)
        tail = "".join(self._log.readlines()[-15:])
        raise WorkerFailed(f"the worker '{self.job.name}' ended with status {status}:\n{tail}")
