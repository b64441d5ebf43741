"""The commands that look at runs, and what a status is made of; test_generator_pool has those that steer."""

import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from actors.cluster import connect
from iris_ray.cli import app
from iris_ray.config import RunConfig
from iris_ray.errors import ConfigError, RunFolderError
from iris_ray.operating import path_of
from iris_ray.progress import folder_status, live_status
from iris_ray.run_folder import RunFolder

LIVE: dict[str, Any] = {
    "planned": 5,
    "iteration": 2,
    "step": 3,
    "steps": 12,
    "alpha": 1.02,
    "gap": 0.04,
    "baseline": {"exact_match": 0.25},
    "iterations": [
        {"seconds": 40.0, "exact_match": 0.5, "staleness_max": 0},
        {"seconds": None, "exact_match": None, "staleness_max": 1},
    ],
    "last_step": {"loss": -0.1},
    "warnings": [],
    "deaths": [],
    "wanted": 1,
    "generators": [
        {"name": "generator-0", "state": "ready", "placed": True, "version": 1, "tokens_per_s": 9.0}
    ],
    "buffer": {"pairs": 96, "written": 40, "leased": 16, "ahead": 16, "ledger": {"committed": 96}},
    "paused": False,
    "stopping": False,
    "last_checkpoint": "iteration-001",
}


def run_folder(runs: Path, name: str, **summary: Any) -> RunFolder:
    values = {"run": {"name": name, "folder": str(runs)}, "model": {"path": "a"}, "data": {"path": "b"}}
    folder = RunFolder.create(RunConfig.from_dict(values))
    if summary:
        folder.write_summary({"run": name, **summary})
    return folder


def invoke(*arguments: str) -> Any:
    return CliRunner().invoke(app, list(arguments))


@pytest.mark.parametrize(
    ("changed", "state"),
    [
        ({}, "running"),
        ({"iteration": 0}, "starting"),
        ({"paused": True}, "paused"),
        ({"paused": True, "stopping": True}, "stopping"),
    ],
)
def test_the_state_of_a_run_that_goes_on(changed, state):
    assert live_status("demo", LIVE | changed)["state"] == state


def test_the_time_left_follows_finished_iterations():
    # 3 of 12 steps of the second iteration are done: 3.75 iterations of 40 s are left
    assert live_status("demo", LIVE)["eta_s"] == pytest.approx(150)
    first = LIVE | {"iterations": LIVE["iterations"][1:], "iteration": 1}
    assert live_status("demo", first)["eta_s"] is None


def test_the_last_model_that_was_evaluated_counts():
    status = live_status("demo", LIVE)
    assert (status["exact_match"], status["loss"], status["staleness_max"]) == (0.5, -0.1, 1)
    assert json.loads(json.dumps(status)) == status


def test_a_finished_run_has_a_status_too(tmp_path):
    iterations = [{"iteration": 1, "exact_match": 0.5}, {"iteration": 2, "exact_match": 0.75}]
    folder = run_folder(tmp_path, "done", status="finished", iterations=iterations, ledger={"lost": 0})
    status = folder_status(folder)
    assert (status["state"], status["iteration"], status["exact_match"]) == ("finished", 2, 0.75)
    printed = invoke("status", "done", "--folder", str(tmp_path), "--json")
    assert json.loads(printed.stdout) == status
    assert "done: finished" in invoke("status", str(folder.path)).stdout


def test_runs_are_listed_with_how_they_stand(tmp_path):
    run_folder(tmp_path, "failed", status="failed", error="no luck")
    run_folder(tmp_path, "killed")
    playing = run_folder(tmp_path, "playing")
    playing.cluster.write_text("{}")
    rows = json.loads(invoke("runs", "--folder", str(tmp_path), "--json").stdout)
    states = {row["run"]: row["state"] for row in rows}
    assert states == {"failed": "failed", "killed": "interrupted", "playing": "playing"}
    assert "No runs in" in invoke("runs", "--folder", str(tmp_path / "nothing")).stdout


@pytest.mark.parametrize("command", ["pause", "resume", "checkpoint", "stop"])
def test_a_run_that_does_not_play_cannot_be_steered(tmp_path, command):
    run_folder(tmp_path, "done", status="finished")
    error = invoke(command, "done", "--folder", str(tmp_path)).exception
    assert isinstance(error, RunFolderError)
    assert "does not play" in str(error)


def test_a_run_that_was_killed_with_its_cluster(tmp_path):
    killed = run_folder(tmp_path, "killed", status="stopped")  # and was gone on with
    killed.cluster.write_text(json.dumps({"address": "127.0.0.1:1", "dashboard": None}))
    answer = invoke("status", "killed", "--folder", str(tmp_path))
    assert answer.exit_code == 0
    assert "killed: interrupted" in answer.stdout
    assert "its Ray cluster, 127.0.0.1:1, does not answer from here" in " ".join(answer.stdout.split())
    assert "To go on: iris-ray run --resume" in answer.stdout
    status = json.loads(invoke("status", "killed", "--folder", str(tmp_path), "--json").stdout)
    assert json.loads(invoke("runs", "--folder", str(tmp_path), "--json").stdout) == [status]
    error = invoke("stop", "killed", "--folder", str(tmp_path)).exception
    assert isinstance(error, RunFolderError)
    assert "does not answer from here. If the run is over: iris-ray run --resume" in str(error)


@pytest.mark.parametrize("command", ["status", "stop", "logs"])
@pytest.mark.parametrize("run", ["nosuch", "runs/nosuch"])
def test_a_run_that_is_not_there(tmp_path, monkeypatch, command, run):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")  # whatever runs on this machine
    error = invoke(command, run).exception
    assert isinstance(error, RunFolderError)
    assert "nosuch: there is no run of this name in runs. 'iris-ray runs' lists those that" in str(error)


@pytest.mark.parametrize("address", ["ray://127.0.0.1:10001", "http://127.0.0.1:8265"])
def test_neither_a_client_nor_a_dashboard_joins_a_cluster(monkeypatch, address):
    with pytest.raises(ConfigError, match=f"run.ray_address={address}: neither .* HOST:PORT"):
        connect(address)
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(ConfigError, match=f"RAY_ADDRESS={address}: neither"):
        connect(None)


def test_every_command_finds_a_run_by_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = run_folder(tmp_path / "runs", "done", status="finished").path
    assert "runs/done/report.html" in "".join(invoke("report", "done").stdout.split())
    for arguments in (["run", "--resume"], ["export"], ["eval", "--task", "x"]):
        error = str(invoke(*arguments, "done").exception)
        assert "runs/done" in error, arguments
        assert "holds no run" not in error, arguments
    assert path_of(folder) == folder


def test_the_logs_of_a_run_whose_cluster_is_gone(tmp_path):
    where = {"address": "127.0.0.1:1", "logs": "/somewhere/logs"}
    run_folder(tmp_path, "done", status="finished", cluster=where)
    error = invoke("logs", "done", "--folder", str(tmp_path)).exception
    assert isinstance(error, RunFolderError)
    assert "Its logs may still lie in /somewhere/logs on its nodes" in str(error)
    assert "--resume" not in str(error)


def test_watching_and_json_do_not_go_together(tmp_path):
    run_folder(tmp_path, "done", status="finished")
    for command, flag in (("status", "--watch"), ("logs", "--follow")):
        error = invoke(command, "done", "--folder", str(tmp_path), flag, "--json").exception
        assert isinstance(error, ConfigError)


def test_the_version_is_told():
    assert invoke("--version").stdout == f"iris-ray {version('iris-ray')}\n"


@pytest.mark.parametrize("what", [[], ["recipes/demo.yaml", "--resume", "/runs/demo"]])
def test_a_job_plays_a_recipe_or_goes_on_with_a_run(what):
    error = invoke("submit", *what).exception
    assert isinstance(error, ConfigError)
    assert "one of the two" in str(error)


def test_a_job_needs_a_dashboard():
    error = invoke("submit", "recipes/demo.yaml", "--address", "http://127.0.0.1:1").exception
    assert isinstance(error, ConfigError)
    assert "no Ray dashboard answers there" in str(error)
