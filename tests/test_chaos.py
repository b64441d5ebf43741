"""A run whose processes are killed at random, fifty times: real Ray, vLLM and DeepSpeed."""

import random
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pyarrow.parquet as pq
import pytest
from conftest import made_model
from run_process import WAIT_S, play

pytestmark = pytest.mark.timeout(3600)  # each generator that is killed has to start anew

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
# What processes call themselves, and how often one of them is killed. The first two are one generator's.
VICTIMS = {
    ("ray::Generator", "VLLM::EngineCore"): 40,
    ("ray::RayTrainWorker",): 4,
    ("ray::SampleBuffer",): 1,
    ("ray::WeightStore",): 1,
    ("ray::Controller",): 1,
    ("ray::GeneratorPool",): 1,
    ("ray::TrainController",): 1,
    ("ray::chaos/learner",): 1,  # the task that waits for it
}
assert sum(VICTIMS.values()) == KILLS
BURST = 25  # kills, before it may get somewhere


class Chaos:
    """A run whose processes are killed, other than the first."""

    def __init__(self, runs: Path):
        self.run = play(RECIPE, runs)
        self.killed: list[str] = []
        self.killed_in = 0  # the iteration that saw the last kill

    def kill_at_random(self) -> None:
        """Kill a process of the run, soon or after some progress, again and again."""
        rng = random.Random(0)
        order = [names for names, times in VICTIMS.items() for _ in range(times)]
        rng.shuffle(order)
        for kill, names in enumerate(order):
            if kill % BURST == 0:
                self.goes_on()
            if kill == 0:  # else it may have to begin anew
                self.wait_for(self.has_checkpoint)
            time.sleep(rng.uniform(0, 1.5))
            found = self.wait_for(lambda names=names: self.run.called(*names))
            name = rng.choice(sorted(found))
            with suppress(psutil.NoSuchProcess):  # it was just ending
                rng.choice(found[name]).kill()
            self.killed.append(name)

    def goes_on(self) -> None:
        """It takes a step."""
        seen = self.last_step()
        self.wait_for(lambda: self.last_step() > seen)  # back to a checkpoint is not on

    def stop(self) -> None:
        """Let it play another iteration, then press Ctrl-C."""
        self.killed_in = self.last_step()[0]
        self.wait_for(lambda: self.last_step()[0] > self.killed_in + 1)
        self.run.press_ctrl_c()

    def has_checkpoint(self) -> bool:
        """Ray Train knows of one."""
        notes = self.run.folder / "checkpoints" / "checkpoint_manager_snapshot.json"
        return notes.exists() and "iteration-" in notes.read_text()

    def last_step(self) -> tuple[int, int]:
        """Iteration and step that were taken last."""
        taken = self.run.events("step")
        return (taken[-1]["iteration"], taken[-1]["step"]) if taken else (0, 0)

    def wait_for(self, condition: Callable[[], Any]) -> Any:
        return self.run.wait_for(condition)


@pytest.fixture(scope="module")
def chaos(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chaos]:
    """The run, when it is over."""
    chaos = Chaos(tmp_path_factory.mktemp("runs"))
    try:
        chaos.kill_at_random()
        chaos.stop()
        yield chaos
    finally:
        chaos.run.kill()


def test_it_went_on_until_it_was_stopped(chaos: Chaos) -> None:
    summary, output = chaos.run.summary(), chaos.run.printed()
    assert summary["status"] == "stopped", output
    assert len(summary["iterations"]) > chaos.killed_in > 0
    assert output.count("died") >= KILLS / 3  # deaths at the same time are told together


def test_every_part_was_killed(chaos: Chaos) -> None:
    assert len(chaos.killed) == KILLS
    assert set(chaos.killed) == {name for names in VICTIMS for name in names}


def test_ctrl_c_stopped_every_process(chaos: Chaos) -> None:
    assert chaos.run.process.returncode == 130, chaos.run.printed()
    assert "Traceback" not in chaos.run.printed()
    deadline = time.monotonic() + WAIT_S
    while left := chaos.run.processes():
        assert time.monotonic() < deadline, left
        time.sleep(0.2)


def test_no_pair_is_lost_or_counted_twice(chaos: Chaos) -> None:
    summary = chaos.run.summary()
    finished = [entry["iteration"] for entry in summary["iterations"]]
    assert finished == list(range(1, len(finished) + 1))
    # The learner may have ended a round that is still open in the books, or the other way round.
    closed = summary["ledger"]["committed"] // PROMPTS
    assert abs(closed - len(finished)) <= 1
    assert summary["ledger"] == {"committed": PROMPTS * closed, "lost": 0, "duplicated": 0}
    for iteration in range(1, closed + 1):
        written = pq.read_table(chaos.run.folder / "samples" / f"iteration-{iteration:03d}.parquet")
        assert sorted(written["prompt_id"].to_pylist()) == list(range(PROMPTS))
        assert set(written["version"].to_pylist()) == {iteration - 1}


def test_every_step_was_taken_once(chaos: Chaos) -> None:
    taken = [(e["iteration"], e["step"]) for e in chaos.run.events("step")]
    assert taken == [(i // STEPS + 1, i % STEPS + 1) for i in range(len(taken))]


def test_no_generator_served_weights_that_were_not_proven(chaos: Chaos) -> None:
    updates = chaos.run.events("update")
    assert {update["version"] for update in updates} >= set(range(chaos.last_step()[0]))
    assert all(update["parity_max_abs_diff"] < 1e-4 for update in updates)
