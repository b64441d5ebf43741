"""Runs on several nodes, each a raylet of its own: real Ray, vLLM and DeepSpeed. Only Slurm is played."""

import os
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pyarrow.parquet as pq
import pytest
import yaml
from conftest import made_model
from ray.cluster_utils import Cluster
from run_process import BIN, WAIT_S, RunProcess, play

from benchmarks.sessions import name_of
from iris_ray.resources import GIB

ROOT = Path(__file__).parents[1]
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
# What actors are called as processes. The first four hold the run's state.
STATE = {"ray::Controller", "ray::GeneratorPool", "ray::SampleBuffer", "ray::WeightStore"}
GENERATOR, RANK = "ray::Generator", "ray::RayTrainWorker"


def actors_on(raylet: psutil.Process) -> list[str]:
    """What the actors on a node are called as processes: its raylet started them."""
    names = map(name_of, raylet.children())
    return sorted(name for name in names if name in STATE | {GENERATOR, RANK})


@pytest.fixture(scope="module")
def runs(own_ray: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


class Lost:
    """A run that lost the node of its generators, and what was seen where."""

    def __init__(self, runs: Path, nodes: Cluster):
        self.nodes = nodes
        # Before the run, which looks for room as soon as it has read its data.
        self.learner, self.first = self.add("learner", 1), self.add("generators", 2)
        self.run = play(RECIPE, runs, f"run.ray_address={nodes.address}")

    def play(self) -> None:
        head, learner, first = self.nodes.head_node, self.learner, self.first
        self.run.wait_for(lambda: self.run.events("step"))
        (rank,) = [each for each in self.raylet(learner).children() if name_of(each) == RANK]
        rank.suspend()  # else the run might end before it loses anything
        self.before = [self.seen(node) for node in (head, learner, first)]
        second = self.add("generators", 2)
        self.killed_at = time.time()
        self.nodes.remove_node(first, allow_graceful=False)
        self.run.wait_for(lambda: len(self.seen(second)) == 2)
        self.after = [self.seen(node) for node in (head, learner, second)]
        rank.resume()
        assert self.run.process.wait(WAIT_S) == 0, self.run.printed()

    def add(self, resource: str, amount: int) -> Any:
        return self.nodes.add_node(num_cpus=1, memory=8 * GIB, resources={resource: amount})

    def raylet(self, node: Any) -> psutil.Process:
        return psutil.Process(node.all_processes["raylet"][0].process.pid)

    def seen(self, node: Any) -> list[str]:
        return actors_on(self.raylet(node))


@pytest.fixture(scope="module")
def lost(runs: Path) -> Iterator[Lost]:
    nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    try:
        lost = Lost(runs, nodes)
        try:
            lost.play()
            yield lost
        finally:
            lost.run.kill()
    finally:
        nodes.shutdown()


def test_generators_and_learner_play_on_the_nodes_that_have_their_resources(lost: Lost) -> None:
    head, learner, generators = lost.before
    assert set(head) == STATE
    assert learner == [RANK]
    assert generators == [GENERATOR, GENERATOR]


def test_a_lost_node_costs_its_generators_alone(lost: Lost) -> None:
    assert lost.after == lost.before
    reasons = {e["generator"]: e["reason"] for e in lost.run.events("generator") if e["state"] == "died"}
    assert set(reasons) == {"generator-0", "generator-1"}, reasons
    assert lost.run.summary()["resumes"] == 0


def test_the_run_ends_with_every_pair_trained_on_once(lost: Lost) -> None:
    summary = lost.run.summary()
    assert summary["status"] == "finished"
    assert summary["ledger"] == {"committed": PROMPTS * ITERATIONS, "lost": 0, "duplicated": 0}
    for iteration in range(1, ITERATIONS + 1):
        written = pq.read_table(lost.run.folder / "samples" / f"iteration-{iteration:03d}.parquet")
        assert sorted(written["prompt_id"].to_pylist()) == list(range(PROMPTS))
        assert set(written["version"].to_pylist()) == {iteration - 1}
    assert any(event["time"] > lost.killed_at for event in lost.run.events("step"))


# Slurm's two commands, for nodes that are all this machine. `srun` leaves out its own options, and gives each
# node a temporary folder of its own, as other machines have.
SRUN = """#!/usr/bin/env bash
while [[ $1 == --* ]]; do
    [[ $1 == --nodelist=* ]] && node=${1#*=}
    shift
done
SLURM_CPUS_ON_NODE=2 exec "$@" "--temp-dir=$RAY_TMPDIR/$node"
"""
SCONTROL = "#!/usr/bin/env bash\nprintf 'node-%s\\n' 1 2\n"


def test_a_slurm_job_places_its_parts_and_stops_when_slurm_says_so(runs: Path) -> None:
    """A node for the learner, one for generators; Slurm signals the job before its time limit."""
    commands, runs = runs / "slurm" / "bin", runs / "slurm"
    commands.mkdir(parents=True)
    for name, script in (("srun", SRUN), ("scontrol", SCONTROL)):
        (commands / name).write_text(script)
        (commands / name).chmod(0o755)
    # sbatch runs a copy of the script.
    script = shutil.copy(ROOT / "cluster" / "slurm.sh", runs)
    environment = {
        "PATH": f"{commands}:{BIN}:{os.environ['PATH']}",
        "SLURM_JOB_ID": str(os.getpid()),
        "SLURM_JOB_NODELIST": "node-[1-2]",
        "SLURM_CPUS_ON_NODE": "2",
    }
    recipe = runs / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(RECIPE))
    command = ["bash", script, recipe, "--set", f"run.folder={runs}"]
    command += ["--set", "schedule.iterations=100000"]
    run = RunProcess(runs / "nodes", command, **environment)
    try:
        run.wait_for(lambda: run.events("step"))
        raylets = [each for each in run.processes() if each.name() == "raylet"]
        places = [actors_on(raylet) for raylet in raylets]
        run.process.send_signal(signal.SIGUSR1)
        assert run.process.wait(WAIT_S) == 0, run.printed()
        assert run.summary()["status"] == "stopped"
        last = run.events("step")[-1]
        iteration = f"iteration-{last['iteration']:03d}"
        taken = {path.name for path in (run.folder / "checkpoints").glob("**/iteration-*")}
        assert taken & {iteration, f"{iteration}-step-{last['step']:05d}"}  # no step is lost
        _, left = psutil.wait_procs(raylets, timeout=WAIT_S)
        assert not left, f"Ray of the job outlives it: {left}"
    finally:
        run.kill()
    assert {frozenset(names) for names in places} == {frozenset({*STATE, RANK}), frozenset({GENERATOR})}
