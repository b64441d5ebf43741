"""A learner that was killed while it loaded DeepSpeed's compiled operator holds up nobody."""

import fcntl
import os
import subprocess
import sys
from pathlib import Path

from run_process import WAIT_S

from actors.environment import learner_environment
from iris_ray.config import Learner

LOAD = "from iris_ray.learner.compiled_ops import load_collectives; load_collectives()"


def test_a_lock_that_was_left_behind_is_removed(monkeypatch) -> None:
    for name, value in learner_environment(Learner()).items():
        monkeypatch.setenv(name, value)
    from iris_ray.learner.compiled_ops import DEFAULT_FOLDER

    folder = Path(os.environ.get("TORCH_EXTENSIONS_DIR", DEFAULT_FOLDER))
    left = folder / "deepspeed_shm_comm" / "lock"
    left.parent.mkdir(parents=True, exist_ok=True)
    with (folder / "iris-ray.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # nobody else is loading it
        left.touch()
    subprocess.run([sys.executable, "-c", LOAD], check=True, timeout=WAIT_S)
    with (folder / "iris-ray.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # a lock that is there now was left
        assert not left.exists()
