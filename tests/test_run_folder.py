"""A run's folder, and the records that fill it."""

import json
import time
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from conftest import SECONDS, run_config
from hypothesis import given, settings
from hypothesis import strategies as st

from iris_ray.config import Alpha, RunConfig
from iris_ray.contracts import PHASES, StepReport, Update
from iris_ray.errors import RunFolderError
from iris_ray.game import Round
from iris_ray.gap import PairMeans
from iris_ray.records import Records
from iris_ray.run_folder import RunFolder, iteration_of
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
    skipped=False,
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


def test_events_of_one_kind_are_read_alone(folder):
    assert list(folder.read_metrics("update")) == []
    for event, value in (("update", 1), ("step", 2), ("updated", 3), ("update", 4)):
        folder.append_metrics(event, {"value": value})
    assert [event["value"] for event in folder.read_metrics("update")] == [1, 4]


def test_archives_of_more_than_999_iterations_are_in_order(folder):
    numbers = [1, 2, 101, 999, 1000, 1001]
    for number in numbers:
        (folder.samples / f"iteration-{number:03d}.parquet").touch()
    assert [iteration_of(path) for path in folder.archives()] == numbers


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
        records.stepped(STEP, [0], SECONDS)
    records.round_closed(END)


def test_summary_of_a_run(folder):
    records = Records(folder, Alpha())
    records.evaluated(0, {"exact_match": 0.25})
    play_round(records, 1)
    records.evaluated(1, {"exact_match": 0.5})
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
    records.stepped(STEP, [0], SECONDS)
    assert records.summary()["iterations"] == []
    assert records.summary()["pairs_per_s"] is None


def test_every_event_is_in_the_metrics(folder):
    records = Records(folder, Alpha())
    records.evaluated(0, {"exact_match": None})
    play_round(records, 1)
    records.updated(Update("generator-0", 1, 2.0, 1.0, 1e-6))
    records.evaluated(1, {"exact_match": 0.75})
    baseline, first, second, update, iteration = events(folder)
    assert (baseline["event"], baseline["exact_match"]) == ("baseline", None)
    for number, step in enumerate((first, second), start=1):
        del step["time"]
        where = {"event": "step", "iteration": 1, "step": number, "global_step": number}
        stale = {"staleness_mean": 0, "staleness_max": 0}
        spent = {f"{phase}_seconds": SECONDS.get(phase, 0) for phase in PHASES}
        assert step == where | {"alpha": 1.25, "gap": 0.5} | asdict(STEP) | stale | spent
    assert (update["event"], update["parity_max_abs_diff"]) == ("update", 1e-6)
    assert (iteration["event"], iteration["iteration"], iteration["exact_match"]) == ("iteration", 1, 0.75)
    play_round(records, 2)
    records.evaluated(2, {"exact_match": 0.8})
    assert [iteration["global_step"], *(event["global_step"] for event in events(folder)[5:])] == [2, 3, 4, 4]


def test_generators_and_the_age_of_their_pairs_are_recorded(folder):
    records = Records(folder, Alpha())
    records.round_opened(Round(1, 0, alpha=1.25, gap=0.5, reason="why"), 2)
    records.generator("generator-0", "died", "lost its node")
    records.stepped(STEP, [0, 0, 1, 1], SECONDS)
    records.stepped(STEP, [2, 0, 0, 0], SECONDS)
    records.round_closed(END)
    died, *steps = events(folder)
    assert (died["generator"], died["state"], died["reason"]) == ("generator-0", "died", "lost its node")
    assert [(step["staleness_mean"], step["staleness_max"]) for step in steps] == [(0.5, 1), (0.5, 2)]
    (entry,) = records.summary()["iterations"]
    assert (entry["staleness_max"], entry["learner_waited_seconds"]) == (2, 0.5)
    assert {phase: spent for phase, spent in entry["learner_seconds"].items() if spent} == {
        "wait": 0.5,
        "forward": 1.0,
        "backward": 2.0,
    }


def test_status_follows_the_run(folder):
    records = Records(folder, Alpha())
    assert (records.status()["iteration"], records.status()["evaluated"]) == (0, -1)
    records.evaluated(0, {"exact_match": 0.25})
    play_round(records, 1)
    records.round_opened(Round(2, 1, alpha=1.5, gap=1.0, reason="why"), 7)
    records.stepped(STEP, [0], SECONDS)
    status = records.status()
    assert (status["iteration"], status["alpha"], status["gap"]) == (2, 1.5, 1.0)
    assert (status["step"], status["steps"], status["evaluated"]) == (1, 7, 0)
    assert status["last_step"]["loss"] == -0.2
    assert len(status["iterations"]) == 2
    for seconds, difference in ((2.0, 3e-6), (4.0, 1e-6)):
        records.updated(Update("generator-0", 1, seconds, seconds / 2, difference))
    updates = {"updates": 2, "seconds": 6.0, "paused_seconds": 3.0, "parity_max_abs_diff": 1e-6}
    assert records.status()["sync"] == {"generator-0": updates}


def test_an_order_set_after_the_first_batch_holds_from_then_on(folder):
    records = Records(folder, Alpha())
    records.round_opened(Round(1, 0, alpha=1.0, gap=0.0, reason="initial"), 3)
    records.stepped(STEP, [0], SECONDS)
    records.order_set(Round(1, 0, alpha=1.5, gap=1.0, reason="measured"))
    records.stepped(STEP, [0], SECONDS)
    records.stepped(STEP, [0], SECONDS)
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
            records.stepped(replace(STEP, truncated=4), [0], SECONDS)
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
        records.stepped(replace(STEP, identical=4), [0], SECONDS)
    assert [event["event"] for event in events(folder)] == ["step"] * 5 + ["warning", "step"]


def test_a_gap_that_saturates_is_warned_of_once_its_order_is_trained_at(folder):
    records = Records(folder, Alpha(c=1.0, maximum=2.0))
    records.round_opened(Round(1, 0, alpha=2.0, gap=3.0, reason="why"), 2)
    records.order_set(Round(1, 0, alpha=1.5, gap=0.5, reason="why"))
    records.stepped(STEP, [0], SECONDS)
    records.round_opened(Round(2, 1, alpha=1.5, gap=0.5, reason="why"), 2)
    assert warned(records) == []
    records.order_set(Round(2, 1, alpha=2.0, gap=3.0, reason="why"))
    records.stepped(STEP, [0], SECONDS)
    assert warned(records) == [(2, 1, "gap_saturates")]
    assert "alpha.maximum=2" in records.warnings[0]["message"]


# Plain YAML: what is written in a recipe's `options`.
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=30)
@given(
    options=st.dictionaries(st.text(), values, max_size=3),
    numbers=st.lists(st.floats(1e-300, 1e300), min_size=3, max_size=3),
    text=st.text(),
)
def test_a_configuration_comes_back_exactly(tmp_path_factory, options, numbers, text):
    learning_rate, c, seconds = numbers
    config = run_config(
        data={"path": text, "prompt_column": text},
        objective={"options": options},
        alpha={"c": c, "options": options},
        learner={"learning_rate": learning_rate},
        sync={"timeout_s": seconds},
    )
    path = tmp_path_factory.getbasetemp() / "config.yaml"
    path.write_text(config.to_yaml())
    assert RunConfig.from_yaml(path) == config


def test_a_run_that_was_opened_again_has_the_configuration_that_it_was_made_with(tmp_path):
    config = RunConfig.from_yaml("recipes/demo.yaml", [f"run.folder={tmp_path}"])
    folder = RunFolder.create(config)
    assert RunFolder.open(folder.path).read_config() == config


def test_a_run_is_opened_wherever_its_folder_is_named_from(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = run_config(run={"name": "first"}).with_absolute_paths()
    RunFolder.create(config)
    assert RunFolder.open(Path("runs/first")).read_config() == config
    assert RunFolder.open(tmp_path / "runs/first").read_config() == config
    monkeypatch.chdir(tmp_path / "runs")
    opened = RunFolder.open(Path("first"))
    assert opened.path == tmp_path / "runs/first"
    assert opened.read_config().folder == tmp_path / "runs/first"


@pytest.mark.parametrize("place", ["12", "with space/ä: #😀/a.b"])
def test_a_folder_that_was_moved_says_where_it_lies_now(folder, config, tmp_path, place):
    moved = tmp_path / place
    moved.parent.mkdir(parents=True, exist_ok=True)
    folder.path.rename(moved)
    found = RunFolder.open(moved).read_config()
    assert found.folder == moved
    where = {"folder": config.run.folder, "name": config.run.name}
    assert found.model_copy(update={"run": found.run.model_copy(update=where)}) == config


def test_a_folder_without_a_run_cannot_be_gone_on_with(tmp_path):
    for path in (tmp_path, tmp_path / "missing"):
        with pytest.raises(RunFolderError, match=rf"{path} holds no run: .*config\.yaml"):
            RunFolder.open(path)


def test_a_finished_run_cannot_be_gone_on_with(folder):
    for status in ("stopped", "failed"):
        folder.write_summary({"status": status})
        assert RunFolder.open(folder.path).path == folder.path
    folder.write_summary({"status": "finished"})
    with pytest.raises(RunFolderError, match=r"finished.* new run with model\.path=.*first/final"):
        RunFolder.open(folder.path)


def test_a_summary_that_cannot_be_written_leaves_the_one_before(folder):
    folder.write_summary({"status": "stopped"})
    with pytest.raises(TypeError):
        folder.write_summary({"status": object()})
    assert json.loads(folder.summary.read_text()) == {"status": "stopped"}


def without_times(values: object) -> object:
    """The same without what a clock said."""
    if isinstance(values, dict):
        clocks = {"time", "seconds", "generation_seconds", "pairs_per_s"}
        return {key: without_times(value) for key, value in values.items() if key not in clocks}
    return [without_times(value) for value in values] if isinstance(values, list) else values


def whole_run(records: Records) -> list:
    """What the learner's part does to the records of a run of two rounds, as calls to be made one by one."""

    def step(n: int):
        return lambda: records.stepped(replace(STEP, loss=-n / 3, truncated=4 * (n % 7 > 1)), [0], SECONDS)

    def open_(iteration: int):
        return lambda: records.round_opened(Round(iteration, iteration - 1, 1.25, 5.0, "why"), 8)

    return [
        lambda: records.evaluated(0, {"exact_match": 0.25}),
        open_(1),
        step(0),
        lambda: records.order_set(Round(1, 0, 1.5, 1 / 3, "measured")),
        *map(step, range(1, 6)),
        records.round_written,
        *map(step, range(6, 8)),
        lambda: records.round_closed(END),
        open_(2),
        step(8),
        lambda: records.evaluated(1, {"exact_match": 0.5}),
        *map(step, range(9, 16)),
        records.round_written,
        lambda: records.round_closed(END),
        lambda: records.evaluated(2, {"exact_match": None}),
    ]


@pytest.mark.parametrize("alive", [True, False], ids=["set back", "new"])
def test_records_go_on_where_they_were_kept(tmp_path, alive):
    def new_folder(name: str) -> RunFolder:
        return RunFolder.create(run_config(run={"folder": str(tmp_path), "name": name}))

    straight = Records(new_folder("straight"), Alpha())
    for call in whole_run(straight):
        call()
    assert {warning["kind"] for warning in straight.warnings} == {"gap_saturates", "mostly_truncated"}

    for at in range(len(whole_run(straight)) + 1):
        folder = new_folder(f"kept-{at}")
        records = Records(folder, Alpha())
        calls = whole_run(records)
        for call in calls[:at]:
            call()
        state = json.loads(json.dumps(records.state_dict()))
        kept, status = events(folder) if at else [], json.dumps(records.status())
        for call in calls[at : at + 5]:  # for nothing
            call()
        if not alive:
            with folder.metrics.open("a") as file:
                file.write('{"event": "st')  # killed while it wrote
            records = Records(folder, Alpha())
        records.load_state_dict(state)
        assert json.dumps(records.status()) == status
        *before, resumed = events(folder)
        assert before == kept
        where = {"iteration": records.status()["iteration"], "step": records.step}
        where["global_step"] = sum(event["event"] == "step" for event in kept)
        assert without_times(resumed) == {"event": "resumed"} | where
        for call in whole_run(records)[at:]:
            call()

        assert without_times(records.status()) == without_times(straight.status())
        summary = straight.summary() | {"resumes": 1}
        assert without_times(records.summary()) == without_times(summary)
        lines = [event for event in events(folder) if event["event"] != "resumed"]
        assert without_times(lines) == without_times(events(straight.folder))


def test_a_kept_state_does_not_change_with_the_records(folder):
    records = Records(folder, Alpha())
    play_round(records, 1)
    state = records.state_dict()
    text = json.dumps(state)
    for _ in range(2):
        records.round_closed(replace(END, loss=1.0))
        play_round(records, 2)
        assert json.dumps(state) == text
        records.load_state_dict(state)
        assert (len(records.iterations), records.iterations[0]["loss"]) == (1, -0.3)
    assert records.summary()["resumes"] == 2  # nor are resumes forgotten with the steps after them
    fresh = Records(folder, Alpha())
    fresh.load_state_dict(records.state_dict())
    assert fresh.summary()["resumes"] == 3


@pytest.mark.parametrize("alive", [True, False])
def test_a_rounds_seconds_are_those_in_which_the_run_lived(folder, monkeypatch, alive):
    clock = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    records = Records(folder, Alpha())
    records.round_opened(Round(1, 0, alpha=1.0, gap=0.0, reason="why"), 2)
    clock[0] += 10
    records.stepped(STEP, [0], SECONDS)
    state = records.state_dict()
    clock[0] += 500  # done for nothing, then dead
    if not alive:
        clock[0] = 3.0  # another machine
        records = Records(folder, Alpha())
    records.load_state_dict(state)
    clock[0] += 7
    records.round_written()
    clock[0] += 5
    records.round_closed(END)
    assert records.iterations[0]["generation_seconds"] == 17
    assert records.iterations[0]["seconds"] == 22


@pytest.mark.parametrize("left", [None, b"", b"short\n", b"of the same length, no line\n"])
def test_metrics_that_are_no_longer_there_are_told_of(folder, left):
    folder.append_metrics("step", {"loss": 0.5})
    size = folder.metrics_bytes()
    if left is None:
        folder.metrics.unlink()
    else:
        folder.metrics.write_bytes(left + b"x" * (size if b"," in left else 0))
        left = folder.metrics.read_bytes()
    with pytest.raises(RunFolderError, match=r"metrics\.jsonl"):
        folder.cut_metrics(size)
    assert (folder.metrics.read_bytes() if folder.metrics.exists() else None) == left


def test_records_whose_metrics_are_gone_stay_as_they_are(folder):
    records = Records(folder, Alpha())
    play_round(records, 1)
    state = records.state_dict()
    folder.metrics.write_bytes(b"")
    fresh = Records(folder, Alpha())
    with pytest.raises(RunFolderError, match=r"metrics\.jsonl"):
        fresh.load_state_dict(state)
    assert fresh.status() == Records(folder, Alpha()).status()


def test_a_checkpoint_from_before_the_first_event_cuts_everything(folder):
    assert folder.metrics_bytes() == 0
    folder.cut_metrics(0)
    assert not folder.metrics.exists()
    folder.append_metrics("step", {})
    folder.cut_metrics(0)
    assert folder.metrics.read_bytes() == b""


def test_what_generators_did_after_a_checkpoint_stays(folder):
    records = Records(folder, Alpha())
    update = Update("generator-0", 0, 2.0, 0.1, 1e-6)
    records.updated(update)
    play_round(records, 1)
    state = records.state_dict()
    records.evaluated(1, {})
    records.generator("generator-0", "died", "out of memory")
    records.updated(update)
    records.load_state_dict(state)
    assert [line["state"] for line in folder.read_metrics("generator")] == ["died"]
    assert list(folder.read_metrics("iteration")) == []
    assert records.summary()["sync"]["updates"] == records.status()["sync"]["generator-0"]["updates"] == 2
