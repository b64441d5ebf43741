"""Curves in TensorBoard, W&B (offline) and MLflow (SQLite): each is read back by its own package."""

import json
import struct
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from conftest import SECONDS, run_config
from mlflow import MlflowClient
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from wandb.proto.wandb_internal_pb2 import Record

from iris_ray.config import RunConfig
from iris_ray.contracts import StepReport, Update
from iris_ray.errors import ConfigError
from iris_ray.game import Round
from iris_ray.preparation import check_names
from iris_ray.records import Records
from iris_ray.run_folder import RunFolder
from iris_ray.tracking import Tracking
from iris_ray.tracking.follower import Follower
from iris_ray.view import View

STEP = StepReport(
    loss=0.0,
    reward_real=0.5,
    reward_synthetic=-0.5,
    reward_real_sd=0.25,
    reward_synthetic_sd=0.75,
    ess_real=3.0,
    ess_synthetic=2.0,
    grad_norm=None,  # not finite, which no tracker takes
    skipped=False,
    learning_rate=1e-3,
    pairs=4,
    truncated=1,
    identical=2,
    response_tokens=5.0,
)
UPDATE = Update("generator-0", 0, seconds=0.5, paused_seconds=0.25, parity_max_abs_diff=1e-6)


class Losses(View):
    """Keeps which trackers were lost."""

    def __init__(self) -> None:
        self.lost: list[tuple[str, Exception]] = []

    def tracker_lost(self, name: str, error: Exception) -> None:
        self.lost.append((name, error))


def configuration(tmp_path: Path, **tracking: dict[str, Any]) -> RunConfig:
    return run_config(
        run={"folder": str(tmp_path / "runs"), "name": "first"},
        generation={"autoscale": {"maximum": 2}},  # more settings than MLflow takes at once
        model={"path": "a", "lora": {}},
        tracking=tracking,
    )


def all_trackers(tmp_path: Path) -> RunConfig:
    mlflow = {"uri": f"sqlite:///{tmp_path}/mlflow.db"}
    return configuration(tmp_path, wandb={"mode": "offline"}, mlflow=mlflow)


def play(records: Records, steps: int, loss: float) -> None:
    for number in range(steps):
        records.stepped(replace(STEP, loss=loss + number), [0], SECONDS)


def play_and_go_back(config: RunConfig, view: View) -> tuple[RunFolder, Records, dict[str, Any]]:
    """Three steps, a checkpoint, two steps that are lost."""
    folder = RunFolder.create(config)
    records = Records(folder, None)
    with Tracking(config, folder, view):
        records.updated(UPDATE)
        records.round_opened(Round(1, 0, 1.0, 0.0, "why"), steps=6)
        play(records, 3, loss=0.0)
        records.evaluated(0, {"exact_match": 0.25})
        checkpoint = records.state_dict()
        play(records, 2, loss=100.0)
    return folder, records, checkpoint


def test_a_run_that_goes_back_is_followed(tmp_path: Path) -> None:
    folder = RunFolder.create(configuration(tmp_path))
    records, follower = Records(folder, None), Follower(folder.metrics, since=0.0)
    assert follower.new() == []

    def told() -> list[tuple[str, Any]]:
        return [(event["event"], event.get("global_step")) for event in follower.new()]

    records.round_opened(Round(1, 0, 1.0, 0.0, "why"), steps=6)
    play(records, 2, loss=0.0)
    checkpoint = records.state_dict()
    assert told() == [("step", 1), ("step", 2)]
    play(records, 2, loss=0.0)
    assert told() == [("step", 3), ("step", 4)]
    records.load_state_dict(checkpoint)
    play(records, 4, loss=0.0)  # the file is longer than before
    with folder.metrics.open("a") as file:
        file.write('{"event": "half')
    assert told() == [("resumed", 2), ("step", 3), ("step", 4), ("step", 5), ("step", 6)]
    assert told() == []


def test_every_tracker_gets_what_the_run_wrote(tmp_path: Path) -> None:
    config, view = all_trackers(tmp_path), Losses()
    folder, records, checkpoint = play_and_go_back(config, view)
    # Another program goes on with it.
    next_second()
    with Tracking(config, folder, view):
        records.load_state_dict(checkpoint)
        play(records, 3, loss=10.0)
        records.evaluated(1, {"exact_match": 0.75})
    assert view.lost == []

    losses = {1: 0.0, 2: 1.0, 3: 2.0, 4: 10.0, 5: 11.0, 6: 12.0}
    told_twice = {4: [100.0, 10.0], 5: [101.0, 11.0]}
    in_tensorboard = tensorboard_curves(folder)
    assert dict(in_tensorboard["step/loss"]) == losses
    assert in_tensorboard["iteration/exact_match"] == [(0, 0.25), (6, 0.75)]
    assert in_tensorboard["update/seconds"] == [(0, 0.5)]
    for curves in (wandb_curves(folder), mlflow_curves(folder, config)):
        for step, loss in losses.items():
            at_step = [value for where, value in curves["step/loss"] if where == step]
            assert at_step == told_twice.get(step, [loss])
        assert sorted(curves["iteration/exact_match"]) == [(0, 0.25), (6, 0.75)]

    # MLflow fails, in the middle of the run and then from its start.
    assert config.tracking.mlflow
    next_second()
    with Tracking(config, folder, view) as tracking:
        MlflowClient(config.tracking.mlflow.uri).delete_run(tracking.ids["mlflow"])
        play(records, 1, loss=7.0)
    ((name, reason),) = view.lost
    assert (name, "must be in the 'active' state" in str(reason)) == ("mlflow", True)
    assert tensorboard_curves(folder)["step/loss"][-1] == (7, 7.0)
    with pytest.raises(ConfigError, match=r"tracking\.mlflow\.uri=sqlite.*does not take the run"):
        Tracking(config, folder, view)


def next_second() -> None:
    """TensorBoard reads files by name: the second, then a number of which 10 comes before 9."""
    time.sleep(1)


Curves = dict[str, list[tuple[int, float]]]


def tensorboard_curves(folder: RunFolder) -> Curves:
    events = EventAccumulator(str(folder.tensorboard)).Reload()
    return {
        name: [(each.step, each.value) for each in events.Scalars(name)] for name in events.Tags()["scalars"]
    }


def wandb_curves(folder: RunFolder) -> Curves:
    curves: Curves = {}
    sessions = sorted(folder.path.glob("wandb/offline-run-*/run-*.wandb"))
    assert len({session.name for session in sessions}) == 1  # all of the same run
    for record in [record for session in sessions for record in wandb_records(session)]:
        values = {each.key or each.nested_key[0]: json.loads(each.value_json) for each in record.history.item}
        for name in values:
            curves.setdefault(name, []).append((values.get("global_step"), values[name]))
    return curves


def wandb_records(path: Path) -> Iterator[Any]:
    """The package writes LevelDB's log format, in blocks of 32 KiB, and brings no reader."""
    data, position, record = path.read_bytes(), 7, b""
    while position + 7 < len(data):
        if (left := 2**15 - position % 2**15) < 7:
            position += left
            continue
        _, length, kind = struct.unpack_from("<IHB", data, position)
        record += data[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield Record.FromString(record)
            record = b""


def mlflow_curves(folder: RunFolder, config: RunConfig) -> Curves:
    assert config.tracking.mlflow
    client = MlflowClient(config.tracking.mlflow.uri)
    run = client.get_run(json.loads(folder.tracking.read_text())["ids"]["mlflow"])
    assert run.info.status == "FINISHED"
    settings = config.settings()
    assert len(settings) > 100
    assert run.data.params == {name: str(value) for name, value in settings.items()}
    history = {name: client.get_metric_history(run.info.run_id, name) for name in run.data.metrics}
    return {name: [(each.step, each.value) for each in values] for name, values in history.items()}


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_a_package_that_is_missing_is_told_before_anything_starts(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("iris_ray.tracking.tracking.find_spec", lambda _: None)
    check_names(configuration(tmp_path))
    with pytest.raises(ConfigError, match=rf"tracking\.{name}: the package {name} is not installed.*pip"):
        check_names(configuration(tmp_path, **{name: {}}))
