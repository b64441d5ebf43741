"""A run whose processes are killed at random, fifty times: real Ray, vLLM and DeepSpeed."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pyarrow.parquet as pq
import pytest
import yaml
from conftest import made_model, metric_events

pytestmark = pytest.mark.timeout(1800)  # each generator that is killed has to start anew

KILLS = 50
PROMPTS = 120
STEPS = 3  # of an iteration
RECIPE = {
    "model": made_model(warmup_steps=20),
    "data": {
        "sort_digits": {"examples": PROMPTS, "min_digits": 2, "max_digits": 4},
        "holdout": 8,
        "max_prompt_tokens": 32,
        "max_response_tokens": 12,
    },
    "schedule": {"iterations": 100_000, "epochs": 1},
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
    "ray::Generator": 26,
    "VLLM::EngineCore": 10,
    "VLLM::Worker": 4,
    "ray::RayTrainWorker": 6,
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
            folder = runs / "chaos"
            kill_at_random(run, folder)
            finished = last_step(folder)[0]
            wait_for(lambda: last_step(folder)[0] > finished + 1, run)
            os.killpg(run.pid, signal.SIGINT)
            run.wait(timeout=120)
        finally:
            run.kill()
        yield folder, (runs / "output.txt").read_text()


def kill_at_random(run: subprocess.Popen, folder: Path) -> None:
    """Kill a process of the run, soon or after some progress, again and again."""
    rng = random.Random(0)
    order = [name for name, times in VICTIMS.items() for _ in range(times)]
    rng.shuffle(order)
    wait_for(lambda: last_step(folder) > (0, 0), run)
    for kill, name in enumerate(order):
        if kill % 8 == 0:  # let it get somewhere first
            seen = last_step(folder)
            wait_for(lambda seen=seen: last_step(folder) != seen, run)
        time.sleep(rng.uniform(0, 1.5))
        found = wait_for(lambda name=name: victims(run, name), run)
        with suppress(ProcessLookupError):  # it was just ending
            os.kill(rng.choice(found), signal.SIGKILL)


def victims(run: subprocess.Popen, name: str) -> list[int]:
    found = []
    for process in psutil.Process(run.pid).children(recursive=True):
        try:
            if process.cmdline()[0].split(".")[0] == name:
                found.append(process.pid)
        except (psutil.Error, IndexError):
            continue  # it is just ending
    return found


def last_step(folder: Path) -> tuple[int, int]:
    """Iteration and step that were taken last."""
    taken = metric_events(folder, "step")
    return (taken[-1]["iteration"], taken[-1]["step"]) if taken else (0, 0)


def wait_for(condition, run: subprocess.Popen, seconds: float = 240) -> Any:
    deadline = time.monotonic() + seconds
    while not (result := condition()):
        assert run.poll() is None, "the run ended before its time"
        assert time.monotonic() < deadline, "nothing happened in time"
        time.sleep(0.05)
    return result


def test_it_went_on_until_it_was_stopped(chaos: tuple[Path, str]) -> None:
    folder, output = chaos
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["status"] == "stopped", output
    assert len(summary["iterations"]) >= 3
    assert output.count("died") >= KILLS / 3  # deaths at the same time are told together


def test_no_pair_is_lost_or_counted_twice(chaos: tuple[Path, str]) -> None:
    folder, _ = chaos
    summary = json.loads((folder / "summary.json").read_text())
    finished = [entry["iteration"] for entry in summary["iterations"]]
    assert finished == list(range(1, len(finished) + 1))
    # A round may be trained to its end and not yet closed in the books.
    closed = summary["ledger"]["committed"] // PROMPTS
    assert closed in (len(finished), len(finished) - 1)
    assert summary["ledger"] == {"committed": PROMPTS * closed, "lost": 0, "duplicated": 0}
    for iteration in range(1, closed + 1):
        written = pq.read_table(folder / "samples" / f"iteration-{iteration:03d}.parquet")
        assert sorted(written["prompt_id"].to_pylist()) == list(range(PROMPTS))
        assert set(written["version"].to_pylist()) == {iteration - 1}


def test_every_step_was_taken_once(chaos: tuple[Path, str]) -> None:
    taken = [(e["iteration"], e["step"]) for e in metric_events(chaos[0], "step")]
    assert taken == [(i // STEPS + 1, i % STEPS + 1) for i in range(len(taken))]


def test_no_generator_served_weights_that_were_not_proven(chaos: tuple[Path, str]) -> None:
    updates = metric_events(chaos[0], "update")
    assert {update["version"] for update in updates} >= set(range(last_step(chaos[0])[0]))
    assert all(update["parity_max_abs_diff"] < 1e-4 for update in updates)
