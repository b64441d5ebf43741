"""Cores of one's own: real processes."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

OWNER = """
import os, sys, time
from pathlib import Path
from iris_ray.generation.cores import OwnCores
try:
    own = OwnCores(int(sys.argv[1]), Path(sys.argv[2]))
    print(sorted(own.cores), sorted(os.sched_getaffinity(0)), flush=True)
except Exception as error:
    print(error, flush=True)
time.sleep(600)
"""
CORES = sorted(os.sched_getaffinity(0))


@pytest.fixture
def start(tmp_path: Path) -> Iterator:
    processes = []

    def start(count: int) -> tuple[subprocess.Popen, str]:
        command = [sys.executable, "-c", OWNER, str(count), str(tmp_path)]
        processes.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
        return processes[-1], processes[-1].stdout.readline().strip()

    yield start
    for process in processes:
        process.kill()


def test_owners_share_no_core(start):
    printed = [start(1)[1] for _ in CORES]
    assert printed == [f"[{core}] [{core}]" for core in reversed(CORES)]
    assert "1 cores of their own are wanted, and 0 of this node's" in start(1)[1]


def test_a_core_is_free_again_when_its_owner_was_killed(start):
    everything = f"{CORES} {CORES}"
    owner, printed = start(len(CORES))
    assert printed == everything
    os.kill(owner.pid, signal.SIGKILL)
    owner.wait()
    assert start(len(CORES))[1] == everything
