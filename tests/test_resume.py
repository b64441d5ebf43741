"""A run that dies goes on as if it never had: real Ray, vLLM and DeepSpeed, killed by SIGKILL."""

import json
import shutil
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from conftest import made_model, metric_events
from run_process import WAIT_S, RunProcess, play, resume
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from benchmarks.sessions import kill
from iris_ray import RunConfig, SelfPlay
from iris_ray.checkpoints import CheckpointStorage
from iris_ray.export import export_checkpoint

# T-SPIN looks at the first iteration's responses, so that a checkpoint has to keep everything there is.
PROMPTS = 104
RECIPE: dict[str, Any] = {
    "model": made_model(warmup_steps=40),
    "data": {
        "sort_digits": {"examples": 160, "min_digits": 2, "max_digits": 4},
        "holdout": 16,
        "max_prompt_tokens": 32,
        "max_response_tokens": 12,
    },
    "objective": {"name": "tspin", "options": {"a": 0.5}},
    "alpha": {"gap": "nll", "gap_per": "sequence", "c": 1.0},
    "schedule": {"iterations": 2, "epochs": 2, "prompts_per_iteration": PROMPTS},
    # Cooler responses are likelier than annotated ones under their own model: a gap that is not 0.
    "generation": {
        "num_cpus": 0.25,
        "enforce_eager": True,
        "concurrency": 16,
        "max_ahead": 48,
        "temperature": 0.4,
    },
    # Two micro-batches a step; the last batch of a pass is smaller.
    "learner": {
        "num_cpus": 0.5,
        "batch_size": 16,
        "micro_batch_tokens": 200,
        "learning_rate": 1e-3,
        "max_grad_norm": 10,
    },
    "checkpoint": {"every_steps": 4, "keep": 5},
}
STEPS = 2 * 7  # of an iteration
# Each time that Ray Train looks at the learner it takes note of one checkpoint.
LOOKS_EVERY_S = "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S"
LEDGER = {"committed": 2 * PROMPTS, "lost": 0, "duplicated": 0}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def temporary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("temporary")


@pytest.fixture(scope="module")
def on_their_way() -> Counter[int]:
    """How often so many checkpoints of the straight run were seen that did not lie in storage yet."""
    return Counter()


@pytest.fixture(scope="module")
def straight(folder: Path, tmp_path_factory: pytest.TempPathFactory, on_their_way: Counter[int]) -> Path:
    """The run that nothing happens to, but that Ray Train is slow to take note of its checkpoints."""
    config = RunConfig.from_dict(RECIPE | {"run": {"name": "straight", "folder": str(folder)}})
    temporary, over = tmp_path_factory.mktemp("straight"), threading.Event()

    def watch() -> None:
        while not over.wait(0.01):
            on_their_way[len(list(temporary.glob("iris-ray-checkpoint-*")))] += 1

    watching = threading.Thread(target=watch, daemon=True)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (own_temporary(temporary) | {LOOKS_EVERY_S: "1.5"}).items():
            patch.setenv(name, value)
        watching.start()
        try:
            SelfPlay(config).run()
        finally:
            over.set()
    return config.folder


class Victim:
    """A run, parts of which are killed."""

    def __init__(self, run: RunProcess, temporary: Path):
        """Checkpoints are made in the folder `temporary`."""
        self.run = run
        self.folder = run.folder
        self.temporary = temporary

    def kill_learner(self, when: Callable[[], bool]) -> None:
        (ranks,) = self.wait_for(lambda: self.run.called("ray::RayTrainWorker").values(), pause=0.5)
        self.wait_for(when)
        kill(ranks)

    def kill_learner_as_it_saves(self) -> None:
        """Ray Train stands still from the last checkpoint on, or it might see how the learner ends."""
        ((trainer,),) = self.wait_for(lambda: self.run.called("ray::TrainController").values(), pause=0.5)
        notes = self.folder / "checkpoints" / "checkpoint_manager_snapshot.json"
        self.wait_for(lambda: notes.exists() and '"iteration-002"' in notes.read_text())
        trainer.suspend()
        try:
            self.kill_learner((self.folder / "final").exists)
        finally:
            trainer.resume()

    def is_beyond(self, checkpoint: str) -> Callable[[], bool]:
        """Says whether steps were taken since a checkpoint that Ray Train took note of."""
        notes = self.folder / "checkpoints" / "checkpoint_manager_snapshot.json"
        iteration, step = int(checkpoint[10:13]), int(checkpoint[-5:])

        def beyond() -> bool:
            if not notes.exists() or checkpoint not in notes.read_text():
                return False
            last = steps(self.folder)[-1]
            return (last["iteration"], last["step"]) > (iteration, step)

        return beyond

    def writes_a_checkpoint(self) -> Callable[[], bool]:
        """Says whether the files of a new checkpoint are being written, but are not all there."""
        before = set(self._checkpoints())

        def writes() -> bool:
            return any(not (each / "state.json").exists() for each in set(self._checkpoints()) - before)

        return writes

    def wait_for(self, condition: Callable[[], Any], pause: float = 0.002) -> Any:
        return self.run.wait_for(condition, pause=pause)

    def _checkpoints(self) -> Iterator[Path]:
        return self.temporary.glob("iris-ray-checkpoint-*")


def own_temporary(folder: Path) -> dict[str, str]:
    """The environment of a run that keeps what is temporary in a folder, but for Ray's sockets."""
    return {"TMPDIR": str(folder), "RAY_TMPDIR": "/tmp"}


@pytest.fixture(scope="module")
def killed(folder: Path, temporary: Path) -> tuple[Path, str]:
    """A run whose learner is killed twice in the first iteration, and every process in the second."""
    often = {LOOKS_EVERY_S: "0.1"}
    run = play(RECIPE | {"run": {"name": "killed"}}, folder, **own_temporary(temporary), **often)
    victim = Victim(run, temporary)
    try:
        victim.kill_learner(victim.is_beyond("iteration-001-step-00004"))
        victim.kill_learner(victim.writes_a_checkpoint())
        victim.wait_for(victim.is_beyond("iteration-002-step-00004"))
    finally:
        victim.run.kill()
    return victim.folder, victim.run.printed()


@pytest.fixture(scope="module")
def copy(folder: Path, killed: tuple[Path, str]) -> Path:
    """The killed run as it was left."""
    return Path(shutil.copytree(killed[0], folder / "copy"))


@pytest.fixture(scope="module")
def resumed(killed: tuple[Path, str], copy: Path, temporary: Path) -> tuple[Path, str]:
    """Gone on with; the learner is killed as it saves its model, and no generator is at work any more."""
    victim = Victim(resume(killed[0], **own_temporary(temporary)), temporary)
    try:
        victim.kill_learner_as_it_saves()
        status = victim.run.process.wait(WAIT_S)
    finally:
        victim.run.kill()
    assert status == 0, victim.run.printed()
    return victim.folder, victim.run.printed()


def events(run: Path) -> list[dict]:
    """What metrics.jsonl holds, without the times."""
    return [
        {key: value for key, value in event.items() if key != "time" and not key.endswith("_seconds")}
        for event in metric_events(run)
    ]


def steps(run: Path) -> list[dict]:
    return [event for event in events(run) if event["event"] == "step"]


def summary(run: Path) -> dict:
    return json.loads((run / "summary.json").read_text())


def same_weights(first: Path, second: Path) -> bool:
    one, other = load_file(first / "model.safetensors"), load_file(second / "model.safetensors")
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_a_learner_that_dies_is_started_again_and_the_console_says_so(
    killed: tuple[Path, str],
) -> None:
    _, printed = killed
    lines = [line for line in printed.splitlines() if "The learner died" in line]
    assert len(lines) == 2, printed
    assert all("goes on from iteration 1, step " in line for line in lines)


def test_a_run_that_died_ends_as_if_it_never_had(resumed: tuple[Path, str], straight: Path) -> None:
    path, _ = resumed
    assert len(steps(straight)) == 2 * STEPS
    assert steps(path) == steps(straight)
    assert same_weights(path / "final", straight / "final")
    clocks = ("seconds", "generation_seconds", "learner_waited_seconds", "learner_seconds", "pairs_per_s")
    for mine, theirs in zip(summary(path)["iterations"], summary(straight)["iterations"], strict=True):
        # A likelihood comes out of the engine's batches, which never are the same.
        likelihoods = ("held_out_nll", "held_out_margin")
        assert all(mine[name] == pytest.approx(theirs[name], abs=1e-4) for name in likelihoods)
        assert all(mine[name] == theirs[name] for name in theirs.keys() - {*clocks, *likelihoods})
    assert json.loads((path / "final" / "probe.json").read_text()) == json.loads(
        (straight / "final" / "probe.json").read_text()
    )


def test_its_records_tell_what_happened(resumed: tuple[Path, str], straight: Path) -> None:
    path, printed = resumed
    assert "Resuming from checkpoint iteration-002-step-" in printed
    assert printed.count("The learner died") == 1
    after = summary(path)
    assert after["status"] == "finished"
    assert after["ledger"] == summary(straight)["ledger"] == LEDGER
    assert (after["resumes"], summary(straight)["resumes"]) == (4, 0)
    assert after["sync"]["parity_max_abs_diff"] < 1e-5
    where = [(event["iteration"], event["step"]) for event in events(path) if event["event"] == "resumed"]
    assert where[-1][0] == 2
    # All others once, whatever was done twice.
    counts = [Counter(e["event"] for e in events(run)) for run in (path, straight)]
    for kind in ("step", "baseline", "iteration", "written"):
        assert counts[0][kind] == counts[1][kind]
    samples = [sorted(file.name for file in (run / "samples").iterdir()) for run in (path, straight)]
    assert samples[0] == samples[1]


def test_other_ranks_and_another_zero_stage_can_go_on(copy: Path, straight: Path) -> None:
    overrides = ["learner.workers=2", "learner.zero_stage=3"]
    after = SelfPlay.resume(copy, overrides).run()
    assert after["ledger"] == LEDGER
    assert RunConfig.from_yaml(copy / "config.yaml").learner.zero_stage == 3
    mine, theirs = steps(copy), steps(straight)
    assert mine[: STEPS + 4] == theirs[: STEPS + 4]  # before the checkpoint
    for one, other in zip(mine, theirs, strict=True):
        assert one["loss"] == pytest.approx(other["loss"], abs=1e-5)
        assert one["grad_norm"] == pytest.approx(other["grad_norm"], rel=1e-3)
    weights = [load_file(run / "final" / "model.safetensors") for run in (copy, straight)]
    for name, weight in weights[1].items():
        torch.testing.assert_close(weights[0][name], weight, atol=1e-4, rtol=0)


def test_checkpoints_do_not_pile_up_before_a_storage_that_is_slow(
    straight: Path, on_their_way: Counter[int]
) -> None:
    assert on_their_way[0]
    assert on_their_way[1]
    assert max(on_their_way) == 1, on_their_way


def test_the_last_checkpoint_is_the_final_model(straight: Path) -> None:
    newest = CheckpointStorage(RunConfig.from_yaml(straight / "config.yaml")).newest()
    assert newest is not None
    assert (newest.name, newest.between) == ("iteration-002", True)
    exported = export_checkpoint(straight)
    assert same_weights(exported, straight / "final")
    AutoModelForCausalLM.from_pretrained(exported)


def test_tspin_compares_with_what_the_first_model_wrote(straight: Path) -> None:
    assert summary(straight)["ledger"] == LEDGER
    first, second = (
        pq.read_table(straight / "samples" / f"iteration-00{i}.parquet").to_pylist() for i in (1, 2)
    )
    y0 = {row["prompt_id"]: row["synthetic_tokens"] for row in first}
    assert y0.keys() == {row["prompt_id"] for row in second}
    # The second round's first batch, scored by the model that the first round made.
    model = AutoModelForCausalLM.from_pretrained(export_checkpoint(straight, 1))

    def logprob(prompt: list[int], response: list[int]) -> torch.Tensor:
        with torch.no_grad():
            table = model(torch.tensor([prompt + response])).logits[0].double().log_softmax(-1)
        return sum(table[len(prompt) - 1 + i, token] for i, token in enumerate(response))

    scores = torch.stack(
        [
            torch.stack(
                [
                    logprob(row["prompt_tokens"], response)
                    for response in (row["real_tokens"], row["synthetic_tokens"], y0[row["prompt_id"]])
                ]
            )
            for row in second[:16]
        ]
    )
    y, y1, y_first = scores.T
    expected = -(0.5 * (y - y1)).sigmoid().log().mean() - 0.1 * (0.5 * (y1 - y_first)).sigmoid().log().mean()
    step = next(event for event in steps(straight) if event["iteration"] == 2)
    assert step["loss"] == pytest.approx(expected.item(), abs=1e-4)


def test_the_gap_of_the_first_batch_sets_the_order_of_the_rest(straight: Path) -> None:
    for entry in summary(straight)["iterations"]:
        taken = [event for event in steps(straight) if event["iteration"] == entry["iteration"]]
        # The first step stands on r = r' = 0, where every order is the same.
        assert {(step["alpha"], step["gap"]) for step in taken} == {(entry["alpha"], entry["gap"])}
        assert entry["alpha"] == pytest.approx(min(3, 1 + entry["gap"]))
        assert entry["gap"] > 0
        assert "nll gap" in entry["reason"]
    state = json.loads((straight / "checkpoints" / "iteration-002" / "state.json").read_text())
    game = state["controller"]["game"]
    assert game["gaps"] == [entry["gap"] for entry in summary(straight)["iterations"]]
    assert game["end"]["reward_real"] == summary(straight)["iterations"][1]["reward_real"]


def test_warnings_are_kept(straight: Path) -> None:
    kept = summary(straight)["warnings"]
    assert [event for event in events(straight) if event.pop("event") == "warning"] == kept
    # Cooled responses are told apart at once, and both kinds pushed down. T-SPIN has no order to watch.
    kinds = {warning["kind"] for warning in kept}
    assert "annotated_fall" in kinds
    assert "gap_saturates" not in kinds
