"""A run whose processes are killed at random, fifty times: real Ray, vLLM and DeepSpeed."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pyarrow.parquet as pq
import pytest
import yaml

KILLS = 50
PROMPTS = 120
ITERATIONS = 40
RECIPE = {
    "model": {
        "dtype": "float32",
        "scratch": {
            "hidden_size": 64,
            "intermediate_size": 128,
            "layers": 2,
            "heads": 2,
            "kv_heads": 1,
            "warmup_steps": 20,
        },
    },
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
        "enforce_eager": True,
        "concurrency": 16,
        "max_ahead": 64,
        "max_failures": KILLS,
    },
    "learner": {"num_cpus": 0.5, "batch_size": 40, "learning_rate": 1e-3, "max_failures": KILLS},
}
RECIPE["run"] = {"name": "chaos", "max_failures": KILLS}
# What a process calls itself, and how often it is the one to be killed.
VICTIMS = {
    "ray::Generator": 19,
    "VLLM::EngineCore": 14,
    "VLLM::Worker": 6,
    "ray::RayTrainWorker": 7,
    "ray::SampleBuffer": 1,
    "ray::WeightStore": 1,
    "ray::Controller": 1,
    "ray::GeneratorPool": 1,
}
assert sum(VICTIMS.values()) == KILLS


@pytest.fixture(scope="module")
def chaos(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, str]]:
    """The folder of the run and what it printed."""
    runs = tmp_path_factory.mktemp("runs")
    (runs / "recipe.yaml").write_text(yaml.safe_dump(RECIPE))
    command = [str(Path(sys.executable).parent / "iris-ray"), "run", str(runs / "recipe.yaml")]
    command += ["--set", f"run.folder={runs}"]
    with (runs / "output.txt").open("w+") as output:
        run = subprocess.Popen(command, stdout=output, stderr=output, start_new_session=True)
        try:
            kill_at_random(run, runs / "chaos" / "metrics.jsonl")
            run.wait(timeout=600)
        finally:
            run.kill()
        yield runs / "chaos", (runs / "output.txt").read_text()


def kill_at_random(run: subprocess.Popen, metrics: Path) -> None:
    """Kill a process of the run, soon or after some progress, again and again."""
    rng = random.Random(0)
    order = [name for name, times in VICTIMS.items() for _ in range(times)]
    rng.shuffle(order)
    wait_for(lambda: steps(metrics) > 0, run)
    for kill, name in enumerate(order):
        if kill % 3 == 0:  # let it get somewhere first
            seen = steps(metrics)
            wait_for(lambda seen=seen: steps(metrics) != seen, run)
        time.sleep(rng.uniform(0, 2))
        wait_for(lambda name=name: victims(run, name), run)
        os.kill(rng.choice(victims(run, name)), signal.SIGKILL)


def victims(run: subprocess.Popen, name: str) -> list[int]:
    found = []
    for process in psutil.Process(run.pid).children(recursive=True):
        try:
            if process.cmdline()[0].split(".")[0] == name:
                found.append(process.pid)
        except (psutil.Error, IndexError):
            continue  # it is just ending
    return found


def steps(metrics: Path) -> int:
    """Where in the file the last step stands: another number whenever one was taken."""
    return metrics.read_text().rfind('"event": "step"') if metrics.exists() else 0


def wait_for(condition, run: subprocess.Popen, seconds: float = 240) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert run.poll() is None, "the run ended before its time"
        assert time.monotonic() < deadline, "nothing happened in time"
        time.sleep(0.05)


def test_the_run_is_finished(chaos: tuple[Path, str]) -> None:
    folder, output = chaos
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["status"] == "finished", output
    assert [entry["iteration"] for entry in summary["iterations"]] == list(range(1, ITERATIONS + 1))
    assert output.count("died") >= KILLS / 2  # deaths in a row of one part are told together


def test_no_pair_is_lost_or_counted_twice(chaos: tuple[Path, str]) -> None:
    folder, _ = chaos
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["ledger"] == {"committed": PROMPTS * ITERATIONS, "lost": 0, "duplicated": 0}
    for iteration in range(1, ITERATIONS + 1):
        written = pq.read_table(folder / "samples" / f"iteration-{iteration:03d}.parquet")
        assert sorted(written["prompt_id"].to_pylist()) == list(range(PROMPTS))
        assert set(written["version"].to_pylist()) == {iteration - 1}


def test_every_step_was_taken_once(chaos: tuple[Path, str]) -> None:
    events = [json.loads(line) for line in (chaos[0] / "metrics.jsonl").read_text().splitlines()]
    taken = [(event["iteration"], event["step"]) for event in events if event["event"] == "step"]
    assert taken == [(i, step) for i in range(1, ITERATIONS + 1) for step in (1, 2, 3)]


def test_no_generator_served_weights_that_were_not_proven(chaos: tuple[Path, str]) -> None:
    events = [json.loads(line) for line in (chaos[0] / "metrics.jsonl").read_text().splitlines()]
    updates = [event for event in events if event["event"] == "update"]
    assert {update["version"] for update in updates} == set(range(ITERATIONS + 1))
    assert all(update["parity_max_abs_diff"] < 1e-4 for update in updates)
