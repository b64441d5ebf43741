"""A run's folder, and the records that fill it."""

import json
from dataclasses import asdict, replace

import pytest
from conftest import run_config

from iris_ray.config import Alpha, RunConfig
from iris_ray.contracts import StepReport, Update
from iris_ray.errors import RunFolderError
from iris_ray.game import Round
from iris_ray.gap import PairMeans
from iris_ray.records import Records
from iris_ray.run_folder import RunFolder
from iris_ray.weights.manifest import Probe

STEP = StepReport(
    loss=-0.2,
    reward_real=0.5,
    reward_synthetic=-0.5,
    reward_real_sd=0.25,
    reward_synthetic_sd=0.75,
    ess_real=3.0,
    ess_synthetic=2.0,
    grad_norm=None,
    learning_rate=1e-3,
    pairs=4,
    truncated=1,
    identical=2,
    response_tokens=5.0,
)
END = PairMeans(
    reward_real=0.6,
    reward_synthetic=-0.4,
    reference_real=-5.0,
    reference_synthetic=-3.0,
    tokens_real=6.0,
    tokens_synthetic=4.0,
    loss=-0.3,
    iris_loss=-0.5,
    alpha=1.25,
)


@pytest.fixture
def config(tmp_path) -> RunConfig:
    return run_config(run={"folder": str(tmp_path / "runs"), "name": "first"})


@pytest.fixture
def folder(config) -> RunFolder:
    return RunFolder.create(config)


def events(folder: RunFolder) -> list[dict]:
    return [json.loads(line) for line in folder.metrics.read_text().splitlines()]


def test_a_new_folder_holds_the_resolved_configuration(config, folder):
    assert folder.path == config.folder
    assert RunConfig.from_yaml(folder.config) == config
    assert folder.samples.is_dir()


def test_a_folder_takes_one_run_only(config, folder):
    with pytest.raises(RunFolderError, match=r"run\.name=first: .* already holds a run.*first/final"):
        RunFolder.create(config)
    assert folder.config.exists()


def test_a_place_that_cannot_be_written_to(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(RunFolderError, match=r"run\.folder=.*file: cannot be written to"):
        RunFolder.create(run_config(run={"folder": str(tmp_path / "file")}))


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_run_that_never_started_leaves_its_name_free(config, folder, error):
    with pytest.raises(error), folder.discarded_on_error():
        raise error
    assert not folder.path.exists()
    assert RunFolder.create(config).config.exists()


def test_a_run_that_started_keeps_its_folder(folder):
    with folder.discarded_on_error():
        pass
    assert folder.config.exists()


def test_what_lay_in_the_folder_before_is_never_removed(config):
    mine = config.folder / "mine.txt"
    mine.parent.mkdir(parents=True)
    mine.touch()
    with (
        pytest.raises(RunFolderError, match="not an empty folder"),
        RunFolder.create(config).discarded_on_error(),
    ):
        raise ValueError
    assert mine.exists()


def test_metrics_are_lines_of_json_with_their_time(folder):
    folder.append_metrics("step", {"loss": 0.5})
    folder.append_metrics("update", {"generator": "generator-0"})
    first, second = events(folder)
    assert (first["event"], first["loss"]) == ("step", 0.5)
    assert (second["event"], second["generator"]) == ("update", "generator-0")
    assert 0 < first["time"] <= second["time"]


def test_summary_and_probe_are_json(folder):
    folder.write_summary({"status": "finished"})
    assert json.loads(folder.summary.read_text()) == {"status": "finished"}
    folder.final.mkdir()
    folder.write_probe(Probe([[1, 2]], [[-0.5]]))
    kept = json.loads((folder.final / "probe.json").read_text())
    assert kept == {"sequences": [[1, 2]], "logprobs": [[-0.5]]}


def play_round(records: Records, iteration: int, steps: int = 2) -> None:
    records.round_opened(Round(iteration, iteration - 1, alpha=1.25, gap=0.5, reason="why"), steps)
    for _ in range(steps):
        records.stepped(STEP)
    records.round_closed(END)


def test_summary_of_a_run(folder):
    records = Records(folder, Alpha())
    records.evaluated(0, 0.25)
    play_round(records, 1)
    records.evaluated(1, 0.5)
    play_round(records, 2)
    for seconds, difference in ((1.0, 1e-6), (4.0, 3e-6), (2.0, 2e-6)):
        records.updated(Update("generator-0", 0, seconds, seconds / 2, difference))
    summary = records.summary()
    assert summary["baseline"] == {"exact_match": 0.25}
    first, second = summary["iterations"]
    assert (first["iteration"], first["alpha"], first["gap"]) == (1, 1.25, 0.5)
    assert (first["loss"], first["reward_real"], first["reward_synthetic"]) == (-0.3, 0.6, -0.4)
    assert first["reason"] == "why"
    assert (first["exact_match"], first["pairs"], first["truncated"]) == (0.5, 8, 2)
    assert first["seconds"] > 0
    assert first["pairs_per_s"] == pytest.approx(8 / first["seconds"])
    assert (second["iteration"], second["exact_match"]) == (2, None)
    assert summary["pairs_per_s"] == pytest.approx(16 / (first["seconds"] + second["seconds"]))
    assert summary["sync"] == {
        "updates": 3,
        "parity_max_abs_diff": 3e-6,
        "seconds_median": 2.0,
        "paused_seconds_median": 1.0,
    }
    folder.write_summary(summary)
    assert json.loads(folder.summary.read_text()) == summary


def test_summary_of_a_run_that_did_not_get_far(folder):
    records = Records(folder, Alpha())
    assert records.summary()["iterations"] == []
    assert records.summary()["sync"]["parity_max_abs_diff"] is None
    records.round_opened(Round(1, 0, alpha=1.0, gap=0.0, reason="why"), 5)
    records.stepped(STEP)
    assert records.summary()["iterations"] == []
    assert records.summary()["pairs_per_s"] is None


def test_every_event_is_in_the_metrics(folder):
    records = Records(folder, Alpha())
    records.evaluated(0, None)
    play_round(records, 1)
    records.updated(Update("generator-0", 1, 2.0, 1.0, 1e-6))
    records.evaluated(1, 0.75)
    baseline, first, second, update, iteration = events(folder)
    assert (baseline["event"], baseline["exact_match"]) == ("baseline", None)
    for number, step in enumerate((first, second), start=1):
        del step["time"]
        where = {"event": "step", "iteration": 1, "step": number}
        assert step == where | {"alpha": 1.25, "gap": 0.5} | asdict(STEP)
    assert (update["event"], update["parity_max_abs_diff"]) == ("update", 1e-6)
    assert (iteration["event"], iteration["iteration"], iteration["exact_match"]) == ("iteration", 1, 0.75)


def test_status_follows_the_run(folder):
    records = Records(folder, Alpha())
    assert (records.status()["iteration"], records.status()["evaluated"]) == (0, -1)
    records.evaluated(0, 0.25)
    play_round(records, 1)
    records.round_opened(Round(2, 1, alpha=1.5, gap=1.0, reason="why"), 7)
    records.stepped(STEP)
    status = records.status()
    assert (status["iteration"], status["alpha"], status["gap"]) == (2, 1.5, 1.0)
    assert (status["step"], status["steps"], status["evaluated"]) == (1, 7, 0)
    assert status["last_step"]["loss"] == -0.2
    assert len(status["iterations"]) == 2


def test_an_order_set_after_the_first_batch_holds_from_then_on(folder):
    records = Records(folder, Alpha())
    records.round_opened(Round(1, 0, alpha=1.0, gap=0.0, reason="initial"), 3)
    records.stepped(STEP)
    records.order_set(Round(1, 0, alpha=1.5, gap=1.0, reason="measured"))
    records.stepped(STEP)
    records.stepped(STEP)
    assert [(event["alpha"], event["gap"]) for event in events(folder)] == [
        (1.0, 0.0),
        (1.5, 1.0),
        (1.5, 1.0),
    ]
    assert [event["step"] for event in events(folder)] == [1, 2, 3]
    status = records.status()
    assert (status["iteration"], status["alpha"], status["gap"], status["step"]) == (1, 1.5, 1.0, 3)
    records.round_closed(END)
    (entry,) = records.summary()["iterations"]
    assert (entry["alpha"], entry["gap"], entry["reason"], entry["pairs"]) == (1.5, 1.0, "measured", 12)


def warned(records: Records) -> list[tuple[int, int, str]]:
    return [(w["iteration"], w["step"], w["kind"]) for w in records.warnings]


def test_a_run_that_goes_well_has_no_warnings(folder):
    records = Records(folder, Alpha())
    play_round(records, 1, steps=20)
    assert records.status()["warnings"] == records.summary()["warnings"] == []
    assert {event["event"] for event in events(folder)} == {"step"}


def test_warnings_are_in_status_summary_and_metrics(folder):
    records = Records(folder, Alpha())
    for iteration in (1, 2):
        records.round_opened(Round(iteration, iteration - 1, alpha=1.25, gap=0.5, reason="why"), 8)
        for _ in range(8):
            records.stepped(replace(STEP, truncated=4))
        records.round_closed(END)
    assert warned(records) == [(1, 5, "mostly_truncated"), (2, 5, "mostly_truncated")]
    assert "100%" in records.warnings[0]["message"]
    assert records.status()["warnings"] == records.summary()["warnings"] == records.warnings
    lines = [event for event in events(folder) if event["event"] == "warning"]
    assert [{key: line[key] for key in line.keys() - {"event", "time"}} for line in lines] == records.warnings
    folder.write_summary(records.summary())
    assert json.loads(folder.summary.read_text())["warnings"] == records.warnings


def test_a_warning_stands_behind_the_step_that_it_is_about(folder):
    records = Records(folder, Alpha())
    records.round_opened(Round(1, 0, alpha=1.25, gap=0.5, reason="why"), 6)
    for _ in range(6):
        records.stepped(replace(STEP, identical=4))
    assert [event["event"] for event in events(folder)] == ["step"] * 5 + ["warning", "step"]


def test_a_gap_that_saturates_is_warned_of_once_its_order_is_trained_at(folder):
    records = Records(folder, Alpha(c=1.0, maximum=2.0))
    records.round_opened(Round(1, 0, alpha=2.0, gap=3.0, reason="why"), 2)
    records.order_set(Round(1, 0, alpha=1.5, gap=0.5, reason="why"))
    records.stepped(STEP)
    records.round_opened(Round(2, 1, alpha=1.5, gap=0.5, reason="why"), 2)
    assert warned(records) == []
    records.order_set(Round(2, 1, alpha=2.0, gap=3.0, reason="why"))
    records.stepped(STEP)
    assert warned(records) == [(2, 1, "gap_saturates")]
    assert "alpha.maximum=2" in records.warnings[0]["message"]
