"""Folders for weights on their way: none is left for good, and none is taken from who works there."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from iris_ray.generation import shared_memory
from iris_ray.generation.shared_memory import MAKING_S, shared_folder

HOLDER = """
import sys, time
from iris_ray.generation import shared_memory
shared_memory.SHARED_MEMORY = sys.argv[1]
with shared_memory.shared_folder() as folder:
    print(folder, flush=True)
    time.sleep(600)
"""


def test_what_a_killed_process_left_goes_and_what_a_living_one_has_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared_memory, "SHARED_MEMORY", str(tmp_path))
    command = [sys.executable, "-c", HOLDER, str(tmp_path)]
    holder = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout
        held = Path(holder.stdout.readline().strip())
        (held / "bucket").write_bytes(b"weights")

        def later() -> list[Path]:
            """What lies there after somebody else had a folder, long after the last change."""
            old = held.stat().st_mtime - 2 * MAKING_S
            os.utime(held, (old, old))
            with shared_folder() as mine:
                assert Path(mine).is_dir()
            return list(tmp_path.iterdir())

        assert later() == [held]
        assert (held / "bucket").exists()
        holder.kill()
        holder.wait()
        assert later() == []
    finally:
        holder.kill()
        holder.wait()
