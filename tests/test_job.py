"""A run as a job of a Ray cluster that stands, with a module of one's own: real Ray, vLLM and DeepSpeed."""

import json
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from conftest import made_model, own_module
from run_process import BIN, WAIT_S, free_ports
from typer.testing import CliRunner

from iris_ray.cli import app

RECIPE = {
    "run": {"name": "job", "plugins": ["my_game"]},
    "model": made_model(warmup_steps=20),
    "data": {
        "sort_digits": {"examples": 80, "min_digits": 2, "max_digits": 4},
        "holdout": 8,
        "max_prompt_tokens": 32,
        "max_response_tokens": 12,
    },
    "objective": {"name": "exponential", "options": {"beta": 0.2}},
    "alpha": {"schedule": "average", "gap": "lengths", "initial_gap": 0.5, "options": {"gain": 0.5}},
    "schedule": {"iterations": 1, "epochs": 1},
    "generation": {"num_cpus": 0.25, "enforce_eager": True, "max_ahead": 64},
    "learner": {"num_cpus": 0.5, "batch_size": 40},
    "evaluation": {"prompts": 0},
}


@pytest.fixture(scope="module")
def dashboard() -> Iterator[str]:
    """The address of a head's dashboard, a cluster of its own."""
    subprocess.run([BIN / "ray", "get-auth-token", "--generate"], check=True, stdout=subprocess.DEVNULL)
    port, dashboard, client, agent = free_ports(4)
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:  # short, for paths of sockets
        command = [BIN / "ray", "start", "--head", "--block", "--num-cpus=2", f"--temp-dir={folder}"]
        command += [f"--port={port}", f"--dashboard-port={dashboard}", f"--ray-client-server-port={client}"]
        command += [f"--dashboard-agent-listen-port={agent}"]
        head = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        try:
            assert head.stdout
            for line in head.stdout:
                if "Ray runtime started" in line:
                    break
            yield f"http://127.0.0.1:{dashboard}"
        finally:
            # Asked to end, the head would wait for half a minute.
            for process in [*psutil.Process(head.pid).children(recursive=True), head]:
                process.kill()
            head.wait()


@pytest.fixture(scope="module")
def working(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("working")
    (folder / "recipe.yaml").write_text(yaml.safe_dump(RECIPE))
    (folder / "my_game.py").write_text(own_module())
    return folder


def submit(dashboard: str, working: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    command = [BIN / "iris-ray", "submit", *arguments, "--address", dashboard, "--working-dir", working]
    return subprocess.run([*command, "--follow", "--json"], capture_output=True, text=True, timeout=WAIT_S)


@pytest.fixture(scope="module")
def job(dashboard: str, working: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """Folder of a run that was a job, and what the command that submitted it printed."""
    runs = tmp_path_factory.mktemp("runs")
    return runs / "job", submit(dashboard, working, "recipe.yaml", "--set", f"run.folder={runs}")


def asked(command: str, folder: Path, *more: str) -> Any:
    """What a command about the run prints as JSON."""
    done = CliRunner().invoke(app, [command, str(folder), *more, "--json"])
    assert done.exit_code == 0, done.exception
    return json.loads(done.stdout)


def test_a_job_plays_a_run_with_a_module_of_ones_own(job: tuple[Path, Any]) -> None:
    folder, done = job
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert (told["run"], told["folder"]) == ("job", str(folder))
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["status"] == "finished"
    assert summary["objective"] == {"name": "exponential", "options": {"beta": 0.2}, "by_iteration": {}}
    assert summary["iterations"][0]["alpha"] == 1.25
    logs = done.stderr.split("Logs: ")[1].split()[0]
    assert list(Path(logs).glob("worker-*.err"))


def test_a_job_that_shall_go_on_says_that_its_run_is_finished(
    dashboard: str, working: Path, job: tuple[Path, Any]
) -> None:
    done = submit(dashboard, working, "--resume", str(job[0]))
    assert json.loads(done.stdout)["folder"] == str(job[0])
    assert done.returncode == 1
    assert "is finished" in done.stderr, done.stderr


def test_its_logs_outlive_it_on_the_cluster(job: tuple[Path, Any]) -> None:
    processes = asked("logs", job[0])
    roles = [process["role"] for process in processes]
    state = [
        "controller",
        "generator-0",
        "generator-pool",
        "learner",
        "learner",
        "sample-buffer",
        "weight-store",
    ]
    assert roles == state
    assert {process["state"] for process in processes} == {"dead"}
    (generator,) = asked("logs", job[0], "generator-0")
    assert any("EngineCore" in line for line in generator["out"])
    assert len(asked("logs", job[0], "learner", "--tail", "2")[0]["err"]) == 2


def test_a_run_whose_program_is_gone_was_interrupted(job: tuple[Path, Any]) -> None:
    folder, _ = job
    where = json.loads((folder / "summary.json").read_text())["cluster"]
    (folder / "cluster.json").write_text(json.dumps(where))
    try:
        assert asked("status", folder)["state"] == "interrupted"
    finally:
        (folder / "cluster.json").unlink()
    assert asked("status", folder)["state"] == "finished"
