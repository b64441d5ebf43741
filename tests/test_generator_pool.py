"""Generators that come, go, hang and lie while a run goes on: real Ray, vLLM and DeepSpeed."""

import json
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
from conftest import made_model
from run_process import BIN, WAIT_S, play

from actors import names
from actors.cluster import connect
from actors.steering import live_run
from iris_ray.errors import ConfigError, RunFolderError, UnavailableError

RECIPE = {
    "run": {"name": "pool"},
    "model": made_model(warmup_steps=20),
    "data": {
        "sort_digits": {"examples": 200, "min_digits": 2, "max_digits": 4},
        "holdout": 8,
        "max_prompt_tokens": 32,
        "max_response_tokens": 12,
    },
    "schedule": {"iterations": 100_000, "epochs": 1},
    "generation": {
        "num_cpus": 0.25,
        "enforce_eager": True,
        "concurrency": 16,
        "max_ahead": 64,
        "hang_timeout_s": 15,
    },
    "learner": {"num_cpus": 0.5, "batch_size": 40, "learning_rate": 1e-3},
    "evaluation": {"prompts": 0},
}


class Game:
    """A run that goes on until it is stopped."""

    def __init__(self, folder: Path):
        self.run = play(RECIPE, folder)
        self.folder = self.run.folder
        self.events = self.run.events
        self.wait_for = self.run.wait_for
        self.wait_for(lambda: self.events("step"))

    def came_and_went(self, state: str) -> list[dict[str, Any]]:
        return [event for event in self.events("generator") if event["state"] == state]

    def died(self, reason: str) -> list[dict[str, Any]]:
        return [event for event in self.came_and_went("died") if reason in event["reason"]]

    def scale(self, count: int) -> dict[str, Any]:
        with live_run(self.folder) as live:
            live.scale(count)
            return live.status()

    def address(self) -> str:
        return json.loads((self.folder / "cluster.json").read_text())["address"]

    def goes_on(self) -> None:
        """It takes steps, on pairs that were written after this was asked."""
        iteration = self.events("step")[-1]["iteration"]
        self.wait_for(lambda: self.events("step")[-1]["iteration"] > iteration + 1)


@pytest.fixture(scope="module")
def game(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Game]:
    game = Game(tmp_path_factory.mktemp("runs"))
    try:
        yield game
    finally:
        game.run.kill()


def generators(status: dict[str, Any], state: str) -> list[str]:
    return [each["name"] for each in status["generators"] if each["state"] == state]


def test_it_is_scaled_while_it_runs(game: Game) -> None:
    game.scale(2)
    game.wait_for(lambda: len(game.came_and_went("ready")) == 2)
    game.goes_on()
    oldest = generators(game.scale(1), "ready")[:1]
    game.wait_for(lambda: len(game.came_and_went("drained")) == 1)
    status = game.scale(1)
    assert generators(status, "ready") == oldest
    assert not status["deaths"]
    game.goes_on()
    assert "Generators: 2 -> 1" in game.run.printed()


def test_an_engine_that_hangs_is_replaced_and_leaves_no_process(game: Game) -> None:
    ((engine,),) = game.run.called("VLLM::EngineCore").values()
    workers = engine.children()
    engine.suspend()
    game.wait_for(lambda: game.died("waited 15 s for the engine"))
    game.wait_for(lambda: not any(process.is_running() for process in [engine, *workers]))
    game.goes_on()


def test_weights_that_were_poisoned_never_serve(game: Game) -> None:
    """Every sixteenth weight reaches one generator's engine with another sign."""

    def poison(generator: Any) -> None:
        stage = generator.updates._stage

        async def poisoned(manifest: Any, index: int, folder: Path) -> Any:
            path, tensors = await stage(manifest, index, folder)
            data = bytearray(path.read_bytes())
            data[3::64] = bytes(byte ^ 0x80 for byte in data[3::64])
            path.write_bytes(data)
            return path, tensors

        generator.updates._stage = poisoned

    (name,) = generators(game.scale(1), "ready")
    connect(game.address())
    ray.get(names.find("pool", name).__ray_call__.remote(poison))
    ray.shutdown()
    (died,) = game.wait_for(lambda: game.died("does not serve weights version"))
    assert died["generator"] == name
    version = int(died["reason"].split("version ")[1].split(":")[0])
    proven = [u["version"] for u in game.events("update") if u["generator"] == name]
    assert max(proven) == version - 1
    game.goes_on()


def test_only_what_is_there_can_be_scaled(game: Game) -> None:
    with pytest.raises(UnavailableError, match="There: pool"):
        live_run("other", game.address()).__enter__()
    with pytest.raises(ConfigError, match=r"--address=127\.0\.0\.1:1: no Ray cluster answers there"):
        live_run("pool", "127.0.0.1:1").__enter__()
    with pytest.raises(ConfigError, match="at least one"):
        game.scale(0)


def ordered(game: Game, command: str) -> dict[str, Any]:
    """What a command of the CLI prints as JSON."""
    line = [BIN / "iris-ray", command, "pool", "--folder", game.folder.parent, "--json"]
    done = subprocess.run(line, capture_output=True, text=True, timeout=WAIT_S)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_it_stands_still_while_it_is_paused(game: Game) -> None:
    status = ordered(game, "pause")
    assert status["state"] == "paused"
    steps = len(game.events("step"))
    with live_run(game.folder) as live:
        taken = live.order("checkpoint", timeout=60)["last_checkpoint"]
        assert live.order("checkpoint", timeout=60)["last_checkpoint"] == taken  # of the same step
        time.sleep(3)
        assert live.status()["step"] == status["step"]
        assert len(game.events("step")) == steps
        assert live.order("resume", timeout=60)["state"] == "running"
    game.wait_for(lambda: len(game.events("step")) > steps)
    assert taken.startswith("iteration-")


def test_its_status_tells_what_it_does(game: Game) -> None:
    status = ordered(game, "status")
    assert (status["state"], status["ledger"]["lost"], status["ledger"]["duplicated"]) == ("running", 0, 0)
    assert status["iteration"] >= 1
    assert {"name", "state", "version", "tokens_per_s"} <= status["generators"][0].keys()
    assert status["eta_s"] > 0


def test_it_stops_at_a_checkpoint_when_it_is_asked_to(game: Game) -> None:
    status = ordered(game, "stop")
    assert game.run.process.wait(WAIT_S) == 0, game.run.printed()
    assert ordered(game, "status")["state"] == "stopped"
    kept = [path.name for path in (game.folder / "checkpoints").glob("iteration-*")]
    assert status["last_checkpoint"] in kept
    with pytest.raises(RunFolderError, match="does not play"), live_run(game.folder):
        pass
