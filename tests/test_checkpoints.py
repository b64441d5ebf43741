"""Checkpoints in storage, and what resuming a run refuses: no cluster needed."""

import sys
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import fsspec
import pytest
from conftest import run_config

from iris_ray.checkpoints import (
    BEGINNING,
    FORMAT,
    STATE,
    CheckpointStorage,
    Place,
    read_state,
    storage_errors,
    write_state,
)
from iris_ray.cli import main
from iris_ray.config import Alpha, RunConfig
from iris_ray.errors import CheckpointError, ConfigError, RunFolderError
from iris_ray.resumption import resumed_config
from iris_ray.run_folder import RunFolder
from iris_ray.self_play import SelfPlay

PARTS = {"training-state-00000.safetensors": b"weights", "pairs.parquet": b"pairs", "empty": b""}


def config(folder: Path, storage: str | None = None) -> RunConfig:
    return run_config(run={"name": "first", "folder": str(folder)}, checkpoint={"storage": storage})


def make(checkpoints: Path, name: str, iteration: int, step: int | None = None) -> Path:
    folder = checkpoints / name
    folder.mkdir(parents=True)
    for file, content in PARTS.items():
        (folder / file).write_bytes(content)
    state = {"iteration": iteration, "step": step or 0, "between": step is None}
    write_state(folder, state, [(file, len(content)) for file, content in PARTS.items()])
    return folder


def make_three(checkpoints: Path) -> None:
    make(checkpoints, "iteration-002", 2)
    make(checkpoints, "iteration-001", 1)
    make(checkpoints, "iteration-002-step-00004", 2, 4)


@pytest.fixture
def storage(tmp_path: Path) -> CheckpointStorage:
    make_three(tmp_path / "first" / "checkpoints")
    return CheckpointStorage(config(tmp_path))


def names(storage: CheckpointStorage) -> list[str]:
    return [each.name for each in storage.whole()]


def test_a_state_comes_back(tmp_path: Path) -> None:
    write_state(tmp_path, {"iteration": 3, "learner": {"round": None}}, [("a", 1)])
    assert read_state(tmp_path) == {
        "format": FORMAT,
        "files": {"a": 1},
        "iteration": 3,
        "learner": {"round": None},
    }


def test_another_format_is_not_read(tmp_path: Path) -> None:
    write_state(tmp_path, {"format": 9}, [])
    with pytest.raises(CheckpointError, match="written in format 9 by another version"):
        read_state(tmp_path)


def test_they_are_told_oldest_first(storage: CheckpointStorage) -> None:
    assert names(storage) == ["iteration-001", "iteration-002-step-00004", "iteration-002"]
    first, second, third = storage.whole()
    assert [(each.iteration, each.step, each.between) for each in (first, second)] == [
        (1, 0, True),
        (2, 4, False),
    ]
    assert storage.newest() == third
    assert storage.find(None) == storage.find(2) == third
    assert storage.find(1) == first


def test_a_run_may_have_none(tmp_path: Path) -> None:
    storage = CheckpointStorage(config(tmp_path))
    assert (storage.whole(), storage.newest()) == ([], None)
    storage.keep_only(None)
    with pytest.raises(CheckpointError, match=r"there is no whole checkpoint\. There: none"):
        storage.find(None)


def test_one_that_is_not_there_is_named_with_those_that_are(storage: CheckpointStorage) -> None:
    with pytest.raises(
        CheckpointError, match=r"no whole checkpoint of iteration 3\. There: iteration-001, .*iteration-002\."
    ):
        storage.find(3)


@pytest.mark.parametrize("file", [*PARTS, STATE])
@pytest.mark.parametrize("how", ["cut", "gone", "grown"])
def test_one_that_is_not_whole_is_passed_over(
    storage: CheckpointStorage, tmp_path: Path, file: str, how: str
) -> None:
    path = tmp_path / "first" / "checkpoints" / "iteration-002" / file
    content = path.read_bytes()
    if how == "gone":
        path.unlink()
    else:
        path.write_bytes(content[: len(content) // 2] if how == "cut" else content + b"more")
    if content or how != "cut":  # an empty file cannot be cut
        assert names(storage) == ["iteration-001", "iteration-002-step-00004"]
        newest = storage.newest()
        assert newest == storage.find(2)
        assert newest is not None
        assert newest.step == 4


def test_keeping_one_deletes_the_others_and_what_ray_train_noted(
    storage: CheckpointStorage, tmp_path: Path
) -> None:
    checkpoints = tmp_path / "first" / "checkpoints"
    (checkpoints / "iteration-002" / "pairs.parquet").unlink()
    notes = checkpoints / "checkpoint_manager_snapshot.json"
    notes.write_text("{}")
    storage.keep_only(storage.newest())
    assert [path.name for path in checkpoints.iterdir()] == ["iteration-002-step-00004"]
    assert {path.name for path in (checkpoints / "iteration-002-step-00004").iterdir()} == {*PARTS, STATE}
    storage.keep_only(None)
    assert not any(checkpoints.iterdir())


@pytest.mark.parametrize(
    ("place", "kept"),
    [
        ((2, True, 0), ["iteration-001", "iteration-002-step-00004", "iteration-002"]),
        ((2, False, 4), ["iteration-001", "iteration-002-step-00004"]),
        ((1, True, 0), ["iteration-001"]),
        (BEGINNING, []),
    ],
)
def test_what_lies_beyond_the_one_that_a_run_went_back_to_is_deleted(
    storage: CheckpointStorage, tmp_path: Path, place: Place, kept: list[str]
) -> None:
    checkpoints = tmp_path / "first" / "checkpoints"
    notes = checkpoints / "checkpoint_manager_snapshot.json"
    notes.write_text("{}")
    (make(checkpoints, "iteration-001-step-00004", 1, 4) / STATE).unlink()
    storage.forget_later(place)
    assert names(storage) == kept
    assert {path.name for path in checkpoints.iterdir()} == {*kept, notes.name}


@pytest.mark.parametrize("ending", ["", "/"])
@pytest.mark.parametrize("scheme", ["", "file://"])
def test_they_may_lie_in_another_folder(tmp_path: Path, scheme: str, ending: str) -> None:
    make_three(tmp_path / "shared" / "first" / "checkpoints")
    storage = CheckpointStorage(config(tmp_path, f"{scheme}{tmp_path}/shared{ending}"))
    newest = storage.newest()
    assert newest is not None
    assert Path(newest.path) == tmp_path / "shared" / "first" / "checkpoints" / "iteration-002"
    storage.keep_only(newest)
    assert names(storage) == ["iteration-002"]


def test_they_may_lie_where_fsspec_knows_a_way(tmp_path: Path) -> None:
    make_three(tmp_path)
    memory = fsspec.filesystem("memory")
    memory.put(str(tmp_path), "/bucket/first/checkpoints", recursive=True)
    try:
        storage = CheckpointStorage(config(tmp_path, "memory://bucket"))
        assert names(storage) == ["iteration-001", "iteration-002-step-00004", "iteration-002"]
        newest = storage.find(2)
        assert memory.exists(f"{newest.path}/{STATE}")
        storage.keep_only(storage.find(1))
        assert names(storage) == ["iteration-001"]
    finally:
        memory.rm("/bucket", recursive=True)


@pytest.mark.parametrize("uri", ["nowhere://bucket", "abfss2://x@y/z"])
def test_an_unknown_kind_of_storage(tmp_path: Path, uri: str) -> None:
    with pytest.raises(ConfigError, match=rf"checkpoint\.storage={uri}.*: no such kind of storage"):
        CheckpointStorage(config(tmp_path, uri))


def test_storage_that_cannot_be_read_is_told_in_words(tmp_path: Path) -> None:
    (tmp_path / "shared" / "first").mkdir(parents=True)
    (tmp_path / "shared" / "first" / "checkpoints").touch()  # no folder
    settings = config(tmp_path, str(tmp_path / "shared"))
    told = r"checkpoint\.storage=.*shared: cannot be read or written to"
    with pytest.raises(ConfigError, match=told), storage_errors(settings):
        CheckpointStorage(settings).newest()


Resume = Callable[..., str]


@pytest.fixture
def resume(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Resume:
    """Runs `iris-ray run` with arguments that are wrong; returns the message, without line breaks."""

    def run(*arguments: str) -> str:
        monkeypatch.setattr("ray.init", None)  # no actor starts
        monkeypatch.setattr(sys, "argv", ["iris-ray", "run", *arguments])
        with pytest.raises(SystemExit, match="1"):
            main()
        printed = capsys.readouterr()
        assert "Traceback" not in printed.out + printed.err
        return " ".join(printed.err.split())

    return run


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    return RunFolder.create(config(tmp_path))


def test_a_folder_without_a_run(resume: Resume, tmp_path: Path) -> None:
    assert "nothing holds no run: there is no config.yaml in it" in resume(
        "--resume", str(tmp_path / "nothing")
    )


def test_a_run_that_is_finished(resume: Resume, run: RunFolder) -> None:
    run.write_summary({"status": "finished"})
    printed = resume("--resume", str(run.path))
    assert "this run is finished, there is nothing to resume" in printed
    assert f"model.path={run.path}/final" in printed


def test_a_run_that_is_being_played_is_left_alone(resume: Resume, run: RunFolder) -> None:
    before = run.config.read_text()
    with RunFolder(run.path).alone():
        printed = resume("--resume", str(run.path), "--set", "learner.workers=2")
    assert f"this run is being played, by another process. See it with iris-ray status {run.path}" in printed
    assert run.config.read_text() == before


def test_a_run_that_ended_before_its_data_were_there(resume: Resume, run: RunFolder) -> None:
    assert "ended before its data were prepared" in resume("--resume", str(run.path))


def test_a_new_run_does_not_go_on_from_what_another_left_in_the_storage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(tmp_path / "shared" / "first" / "checkpoints", "iteration-001", 1)
    monkeypatch.setattr("ray.init", None)  # no actor starts
    with pytest.raises(RunFolderError, match=r"run\.name=first: .*first/checkpoints/iteration-001"):
        SelfPlay(config(tmp_path / "runs", str(tmp_path / "shared"))).run()
    assert not (tmp_path / "runs" / "first").exists()  # the name stays free
    assert (tmp_path / "shared" / "first" / "checkpoints" / "iteration-001" / STATE).exists()


def test_settings_that_the_work_so_far_rests_on_stay(resume: Resume, run: RunFolder) -> None:
    before = run.config.read_text()
    for setting, message in {
        "learner.batch_size=32": "learner.batch_size: 32 does not fit: the run was played with 64",
        "objective.options.lam=0.5": "objective.options.lam: 0.5 does not fit: the run was played with None",
        "run.seed=3": "run.seed: 3 does not fit",
        "schedule.epochs=9": "schedule.epochs: 9 does not fit",
        "model.lora={rank: 2}": "model.lora",
        "learner.batchsize=3": "Did you mean batch_size?",
    }.items():
        assert message in resume("--resume", str(run.path), "--set", setting), setting
    assert run.config.read_text() == before


def test_settings_that_may_change_are_kept(resume: Resume, run: RunFolder) -> None:
    settings = ["learner.workers=2", "learner.zero_stage=3", "schedule.iterations=9", "generation.num_cpus=2"]
    overrides = [part for setting in settings for part in ("--set", setting)]
    resume("--resume", str(run.path), *overrides)  # there are no data
    after = RunConfig.from_yaml(run.config)
    assert (after.learner.workers, after.learner.zero_stage, after.schedule.iterations) == (2, 3, 9)
    assert after.generation.num_cpus == 2


@pytest.mark.parametrize(("schedule", "stays"), [("geometric", True), ("gap_feedback", False)])
def test_the_number_of_iterations_stays_where_alphas_course_spreads_over_it(
    tmp_path: Path, schedule: str, stays: bool
) -> None:
    run = RunFolder.create(config(tmp_path).model_copy(update={"alpha": Alpha(schedule=schedule)}))
    refused = pytest.raises(ConfigError, match=r"schedule\.iterations: 9 .*=geometric has spread α over 5")
    with refused if stays else nullcontext():
        assert resumed_config(run, ["schedule.iterations=9"]).schedule.iterations == 9


@pytest.mark.parametrize("arguments", [(), ("recipe.yaml", "--resume", "runs/first")])
def test_a_recipe_or_a_run_but_not_both(resume: Resume, arguments: tuple[str, ...]) -> None:
    assert "name a recipe, or with --resume a run, one of the two" in resume(*arguments)
