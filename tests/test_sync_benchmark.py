"""Weight updates end to end: real Ray, a real vLLM engine, and the numbers that the benchmark prints."""

import asyncio
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import ray
from conftest import run_config
from run_process import WAIT_S

from actors.weight_updates import WeightUpdates
from iris_ray.errors import UpdateError
from iris_ray.weights.manifest import Bucket, Probe, TensorSpec, WeightManifest, WeightsLost

ROOT = Path(__file__).parent.parent
SPECS = [TensorSpec("a", "float32", (300_000,), 0, 1_200_000)]


def test_the_benchmark_updates_engines_whose_log_probs_are_the_publisher_s() -> None:
    # A buffer of two buckets: part of the weights travels while the engine stands still.
    options = "--json --parameters 3 --generators 1 --repeats 2 --bucket-mib 1 --buffer-mib 2"
    run = subprocess.run(
        [sys.executable, "-m", "benchmarks.sync", *options.split()], cwd=ROOT, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    report = json.loads(run.stdout)
    (row,) = report["rows"]
    assert row["generators"] == 1
    assert row["bytes"] == 2 * row["parameters"] == pytest.approx(6e6, rel=0.1)
    for name in ("publish_to_serving_s", "paused_s", "copy_s", "probe_s", "bytes_per_s"):
        assert 0 < row[f"{name}_min"] <= row[name] <= row[f"{name}_max"]
    # A difference of two times: on a busy machine, products alone may have been the slower ones.
    assert row["learner_blocked_s_min"] <= row["learner_blocked_s"] <= row["learner_blocked_s_max"]
    assert row["learner_blocked_s_min"] < row["publish_to_serving_s_max"]
    assert row["paused_s"] < row["publish_to_serving_s"]
    assert 0 < row["parity_max_abs_diff"] < 0.05


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, object_store_memory=200 << 20)
    yield
    ray.shutdown()


@ray.remote(num_cpus=0)
class Learner:
    def put(self) -> list[ray.ObjectRef]:
        return [ray.put([np.zeros(1_200_000, dtype=np.uint8)])]


@ray.remote(num_cpus=0)
def never() -> None:
    time.sleep(3600)


def fetch(reference: ray.ObjectRef, timeout_s: float) -> None:
    """Fetch a bucket as `load` does. No engine takes part before the bytes are there."""
    manifest = WeightManifest(3, [Bucket(reference, SPECS)], Probe([], []))
    updates = WeightUpdates(run_config(sync={"timeout_s": timeout_s}), None, "generator-5", None)  # type: ignore[arg-type]

    async def bounded() -> None:
        async with updates._bounded():
            updates._wait_for(manifest, 0, "out of Ray's object store")
            await updates._fetch(manifest, 0)

    asyncio.run(bounded())


def test_weights_of_a_learner_that_died_are_lost_and_nobody_waits(cluster: None) -> None:
    learner = Learner.remote()  # type: ignore[attr-defined]
    (reference,) = ray.get(learner.put.remote())
    fetch(reference, timeout_s=WAIT_S)
    (unread,) = ray.get(learner.put.remote())
    ray.kill(learner)

    def fetch_until_ray_knows() -> None:
        for _ in range(100):
            fetch(unread, timeout_s=WAIT_S)
            time.sleep(0.2)

    with pytest.raises(WeightsLost, match="generator-5 could not get weights version 3"):
        fetch_until_ray_knows()


def test_a_wait_ends_and_says_what_it_waited_for(cluster: None) -> None:
    waiting = never.remote()
    with pytest.raises(UpdateError, match="waited for bucket 1 of 1 of weights version 3 out of Ray's"):
        fetch(waiting, timeout_s=1)
    ray.cancel(waiting, force=True)
