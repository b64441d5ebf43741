"""A run on a cluster of several nodes, one of which is lost: real raylets, vLLM and DeepSpeed."""

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pyarrow.parquet as pq
import pytest
import yaml
from conftest import made_model, metric_events
from ray.cluster_utils import Cluster

from iris_ray.resources import GIB

PROMPTS = 120
ITERATIONS = 4
RECIPE = {
    "run": {"name": "nodes"},
    "model": made_model(warmup_steps=20),
    "data": {
        "sort_digits": {"examples": PROMPTS, "min_digits": 2, "max_digits": 4},
        "holdout": 8,
        "max_prompt_tokens": 32,
        "max_response_tokens": 12,
    },
    "schedule": {"iterations": ITERATIONS, "epochs": 1},
    "generation": {
        "count": 2,
        "num_cpus": 0.25,
        "resources": {"generators": 1},
        "enforce_eager": True,
        "concurrency": 16,
        "max_ahead": 64,
    },
    "learner": {"num_cpus": 0.5, "resources": {"learner": 1}, "batch_size": 40, "learning_rate": 1e-3},
    "evaluation": {"prompts": 0},
}
# The actors that hold the run's state, beside the driver; and what they and the others are called as processes.
STATE = {"ray::Controller", "ray::GeneratorPool", "ray::SampleBuffer", "ray::WeightStore"}
GENERATOR, RANK = "ray::Generator", "ray::RayTrainWorker"
COMPUTE = {GENERATOR, RANK}


class Lost:
    """A run that lost the node of its generators, and what was seen where."""

    def __init__(self, runs: Path, nodes: Cluster):
        self.folder = runs / "nodes"
        self.nodes = nodes
        (runs / "recipe.yaml").write_text(yaml.safe_dump(RECIPE))
        command = [str(Path(sys.executable).parent / "iris-ray"), "run", str(runs / "recipe.yaml")]
        command += ["--set", f"run.folder={runs}", "--set", f"run.ray_address={nodes.address}"]
        self.output = (runs / "output.txt").open("w+")
        self.process = subprocess.Popen(command, stdout=self.output, stderr=self.output)

    def play(self) -> None:
        head = self.nodes.head_node
        learner = self.add("learner", 1)
        first = self.add("generators", 2)
        self.wait_for(lambda: self.events("step"))
        self.before = [actors_on(node) for node in (head, learner, first)]
        second = self.add("generators", 2)
        self.killed_at = time.time()
        self.nodes.remove_node(first, allow_graceful=False)
        self.wait_for(lambda: [GENERATOR] * 2 == actors_on(second))
        self.after = [actors_on(node) for node in (head, learner, second)]
        assert self.process.wait(timeout=120) == 0, self.printed()

    def add(self, resource: str, amount: int) -> Any:
        return self.nodes.add_node(num_cpus=1, memory=8 * GIB, resources={resource: amount})

    def events(self, kind: str) -> list[dict[str, Any]]:
        return metric_events(self.folder, kind)

    def wait_for(self, condition: Callable[[], Any], seconds: float = 240) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, f"nothing happened in time: {self.printed()}"
            assert self.process.poll() is None, self.printed()
            time.sleep(0.1)

    def printed(self) -> str:
        self.output.seek(0)
        return self.output.read()


def actors_on(node: Any) -> list[str]:
    """What the actors on a node are called as processes: its raylet started them."""
    raylet = psutil.Process(node.all_processes["raylet"][0].process.pid)
    names = []
    for process in raylet.children():
        try:
            names.append(process.cmdline()[0].split(".")[0])
        except (psutil.Error, IndexError):
            continue  # it is just ending
    return sorted(name for name in names if name in STATE | COMPUTE)


@pytest.fixture(scope="module")
def lost(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lost]:
    subprocess.run([Path(sys.executable).parent / "ray", "get-auth-token", "--generate"], check=True)
    with tempfile.TemporaryDirectory(dir="/tmp") as temporary, pytest.MonkeyPatch.context() as patch:
        # So that no other run on this machine joins this cluster. Short, for paths of sockets.
        patch.setenv("RAY_TMPDIR", temporary)
        nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
        lost = Lost(tmp_path_factory.mktemp("runs"), nodes)
        try:
            lost.play()
            yield lost
        finally:
            lost.process.kill()
            lost.output.close()
            nodes.shutdown()


def test_generators_and_learner_play_on_the_nodes_that_have_their_resources(lost: Lost) -> None:
    head, learner, generators = lost.before
    assert set(head) == STATE
    assert learner == [RANK]
    assert generators == [GENERATOR, GENERATOR]


def test_a_lost_node_costs_its_generators_alone(lost: Lost) -> None:
    assert lost.after == lost.before
    reasons = {e["generator"]: e["reason"] for e in lost.events("generator") if e["state"] == "died"}
    assert set(reasons) == {"generator-0", "generator-1"}, reasons
    assert "went back" not in lost.printed()


def test_the_run_ends_with_every_pair_trained_on_once(lost: Lost) -> None:
    summary = json.loads((lost.folder / "summary.json").read_text())
    assert summary["status"] == "finished"
    assert summary["resumes"] == 0
    assert summary["ledger"] == {"committed": PROMPTS * ITERATIONS, "lost": 0, "duplicated": 0}
    for iteration in range(1, ITERATIONS + 1):
        written = pq.read_table(lost.folder / "samples" / f"iteration-{iteration:03d}.parquet")
        assert sorted(written["prompt_id"].to_pylist()) == list(range(PROMPTS))
        assert set(written["version"].to_pylist()) == {iteration - 1}
    assert any(event["time"] > lost.killed_at for event in lost.events("step"))
