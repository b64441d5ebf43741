"""Checkpoints as Hugging Face models: the learner's own weights, wherever the checkpoint lies."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import fsspec
import pytest
import torch
from conftest import make_pairs, run_config, tiny_model, untied_llama
from huggingface_hub import ModelCard
from peft import PeftModel, get_peft_model_state_dict
from run_process import WAIT_S
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from iris_ray.checkpoints import write_state
from iris_ray.cli import main
from iris_ray.config import Lora, RunConfig
from iris_ray.errors import CheckpointError, ConfigError, ModelError, RunFolderError
from iris_ray.export import export_checkpoint
from iris_ray.game import Round
from iris_ray.learner.sequence_scorer import SequenceScorer
from iris_ray.learner.token_batch import PromptGroup
from iris_ray.model_card import write_model_card
from iris_ray.scratch.tokenizer import train_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from iris_ray.learner.self_play_learner import SelfPlayLearner

pytestmark = pytest.mark.usefixtures("one_rank")

SEQUENCES = [[1, 2, 3, 4, 5, 6], [9, 8, 7]]
DATA = {"path": "org/rows", "max_prompt_tokens": 16, "max_response_tokens": 16}
NAME, STEP = "iteration-002", "iteration-003-step-00001"
REPORT = {
    "rows": 12,
    "train": 8,
    "holdout": 4,
    "dropped": {},
    "prompt_tokens": {"mean": 4.0, "max": 9},
    "response_tokens": {"mean": 4.0, "max": 9},
}


def history(iterations: int) -> dict[str, Any]:
    entries = [
        {"iteration": i, "alpha": 1 + i / 8, "gap": i / 4, "exact_match": None, "pairs": 4, "loss": None}
        for i in range(1, iterations + 1)
    ]
    if iterations > 1:
        entries[0]["exact_match"] = 0.5
    return {"records": {"baseline": {"exact_match": 0.25}, "iterations": entries}}


@dataclass
class Made:
    """A run folder as a run leaves it, with what the learner had at its newest checkpoint."""

    path: Path
    learner: "SelfPlayLearner"
    weights: dict[str, torch.Tensor]


def make_folder(path: Path, config: RunConfig, model: "PreTrainedModel") -> None:
    path.mkdir(parents=True)
    (path / "config.yaml").write_text(config.to_yaml())
    model.generation_config.temperature, model.generation_config.do_sample = 0.7, True
    model.save_pretrained(path / "base")
    train_tokenizer(["some text to train on"], 300).save_pretrained(path / "base")
    (path / "data").mkdir()
    (path / "data" / "report.json").write_text(json.dumps(REPORT))


def make_run(path: Path, dtype: str, model: "PreTrainedModel", lora: Lora | None = None) -> Made:
    """Two checkpoints: iteration 2, and one step later."""
    from iris_ray.learner.learner_state import RoundProgress, save_learner
    from iris_ray.learner.self_play_learner import SelfPlayLearner

    config = run_config(
        run={"name": path.name, "folder": str(path.parent), "seed": 7},
        model={"path": str(path / "base"), "dtype": dtype, "lora": lora and lora.model_dump()},
        data=DATA,
        learner={"batch_size": 4, "zero_stage": 2, "learning_rate": 1e-2, "lr_warmup_ratio": 0.0},
    )
    make_folder(path, config, model)
    learner = SelfPlayLearner(model, config, torch.device("cpu"))
    for name, iteration, step in ((NAME, 2, None), (STEP, 3, 1)):
        learner.start_round(iteration, 2)
        result = learner.step(make_pairs(4, seed=iteration), 1.5)
        progress = None
        if step:
            progress = RoundProgress(Round(iteration, iteration - 1, 1.5, 0.5, ""), 2, step)
            progress.tail.add(result.rows)
        folder = path / "checkpoints" / name
        plain = save_learner(learner, progress, folder)
        state = {"iteration": iteration, "step": step or 0, "between": progress is None}
        state |= {"version": 2, "learner": plain, "controller": history(iteration)}
        write_state(folder, state, [(file.name, file.stat().st_size) for file in folder.iterdir()])
    weights = {name: weight.clone() for name, weight in learner.weights()}
    return Made(path, learner, weights)


@pytest.fixture(scope="module")
def tied(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return make_run(tmp_path_factory.mktemp("runs") / "tied", "float32", tiny_model())


@pytest.fixture(scope="module")
def half(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return make_run(tmp_path_factory.mktemp("runs") / "half", "bfloat16", tiny_model())


@pytest.fixture(scope="module")
def untied(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return make_run(tmp_path_factory.mktemp("runs") / "untied", "bfloat16", untied_llama())


@pytest.fixture
def run(tied: Made, tmp_path: Path) -> Path:
    """The tied run, free to be spoilt."""
    run = tmp_path / "runs" / "tied"
    shutil.copytree(tied.path, run, ignore=shutil.ignore_patterns("exports"))
    change_settings(run, f"model.path={run / 'base'}")
    return run


def change_settings(run: Path, *settings: str) -> None:
    config = RunConfig.from_yaml(run / "config.yaml", [*settings])
    (run / "config.yaml").write_text(config.to_yaml())


def assert_same_weights(folder: Path, weights: dict[str, torch.Tensor]) -> None:
    loaded = dict(AutoModelForCausalLM.from_pretrained(folder).named_parameters())
    assert loaded.keys() == weights.keys()
    for name, weight in weights.items():
        assert loaded[name].dtype == weight.dtype
        assert torch.equal(loaded[name], weight), name


@pytest.mark.parametrize("name", ["tied", "half", "untied"])
def test_an_exported_checkpoint_is_the_learners_model(name: str, request: pytest.FixtureRequest) -> None:
    made: Made = request.getfixturevalue(name)
    folder = export_checkpoint(made.path)
    assert folder == made.path / "exports" / STEP
    assert [path.name for path in folder.parent.iterdir()] == [STEP]  # nothing temporary stays
    assert_same_weights(folder, made.weights)
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert model.generation_config.temperature == 0.7
    assert AutoTokenizer.from_pretrained(folder)("text").input_ids
    scorer = SequenceScorer.fastest(model.eval(), 32)
    with torch.no_grad():
        groups = [PromptGroup(tokens[:1], [tokens[1:]]) for tokens in SEQUENCES]
        found = scorer(scorer.lay_out(groups))
    assert found.tolist() == [*chain(*made.learner.token_logprobs(SEQUENCES))]


def test_an_earlier_checkpoint_is_found_by_its_iteration(tied: Made, tmp_path: Path) -> None:
    folder = export_checkpoint(tied.path, 2, tmp_path / "a" / "b")
    weights = load_file(folder / "model.safetensors")
    masters = load_file(tied.path / "checkpoints" / NAME / "training-state-00000.safetensors")
    assert all(torch.equal(masters[f"model.{name}/master"], weight) for name, weight in weights.items())
    assert any(not torch.equal(tied.weights[name], weight) for name, weight in weights.items())


@pytest.mark.parametrize("kind", ["file", "memory"])
def test_a_checkpoint_comes_out_of_any_storage(kind: str, tied: Made, run: Path, tmp_path: Path) -> None:
    storage = f"file://{tmp_path}/bucket" if kind == "file" else "memory://bucket/runs"
    filesystem, path = fsspec.core.url_to_fs(f"{storage}/{run.name}/checkpoints")
    filesystem.put(f"{run}/checkpoints/", f"{path}/", recursive=True)
    shutil.rmtree(run / "checkpoints")
    change_settings(run, f"checkpoint.storage={storage}")
    folder = export_checkpoint(run)
    assert_same_weights(folder, tied.weights)
    assert [path.name for path in folder.parent.iterdir()] == [STEP]
    assert not any("training-state" in path.name for path in folder.iterdir())


def test_a_made_model_is_exported_from_the_runs_start(tied: Made, run: Path) -> None:
    (run / "base").rename(run / "start")
    change_settings(run, "model.path=null", "model.scratch={}")
    assert_same_weights(export_checkpoint(run), tied.weights)


def test_the_card_tells_where_the_model_comes_from(run: Path, tmp_path: Path) -> None:
    change_settings(run, "objective.name=spin", "objective.options.lam=0.2", "generation.temperature=0.9")
    card = ModelCard.load(export_checkpoint(run, 2, tmp_path / "out") / "README.md")
    assert card.data.datasets == "org/rows"
    assert card.data.base_model is None  # a folder of this machine
    assert card.data.library_name == "transformers"
    assert set(card.data.tags) >= {"iris-ray", "self-play", "spin"}
    for line in (
        "| objective | `spin`, lam=0.2 |",
        "| rows | 8 to train on, 4 held out |",
        "| optimiser | adamw, betas 0.9 and 0.999, weight decay 0, gradients clipped at 1 |",
        "| learning rate | 0.01, cosine, warm-up 0% |",
        "| batch | 4 pairs |",
        "| precision | float32, optimiser in float32 |",
        "| sampling | temperature 0.9, top-p 1 |",
        "| seed | 7 |",
        "| iteration | gap | exact match | pairs |",
        "| start |  | 25.0% |  |",
        "| 1 | 0.2500 | 50.0% | 4 |",
        "| 2 | 0.5000 | – | 4 |",
    ):
        assert line in card.text, line
    assert str(run / "base") in card.text
    assert f"checkpoint `{NAME}` of run `tied`" in card.text
    assert "transformers 5" in card.text


def test_names_on_the_hub_are_the_cards_metadata_and_paths_are_not(tmp_path: Path) -> None:
    def metadata(model: str, data: str) -> tuple[str | None, str | None]:
        config = run_config(model={"path": model}, data={"path": data})
        write_model_card(tmp_path, config, {}, None)  # as little as there may be
        card = ModelCard.load(tmp_path / "README.md")
        assert "This is the end of run `demo`" in card.text
        return card.data.base_model, card.data.datasets

    assert metadata("Qwen/Qwen2.5-0.5B", "openai/gsm8k") == ("Qwen/Qwen2.5-0.5B", "openai/gsm8k")
    assert metadata("runs/demo/final", "rows/train.jsonl") == (None, None)
    assert metadata(str(tmp_path), f"{tmp_path}/rows") == (None, None)


def test_the_cards_last_exact_match_is_read_from_the_metrics(run: Path) -> None:
    events = [{"event": "iteration", "iteration": i, "exact_match": i / 4} for i in (2, 3)]
    (run / "metrics.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events) + '{"ev')
    between = (export_checkpoint(run, 2) / "README.md").read_text()
    assert "| iteration | α | gap | exact match | pairs |" in between
    assert "| 2 | 1.250 | 0.5000 | 50.0% | 4 |" in between
    # In the middle of a round, that round's score is another model's.
    assert "| 3 | 1.375 | 0.7500 | – | 4 |" in (export_checkpoint(run, 3) / "README.md").read_text()


def test_an_adapter_is_merged_or_exported_alone(tmp_path: Path) -> None:
    made = make_run(tmp_path / "runs" / "lora", "bfloat16", tiny_model(), Lora(rank=2, alpha=4))
    players = made.learner.players
    assert_same_weights(export_checkpoint(made.path), dict(players.model_weights(made.learner.gather)))
    folder = export_checkpoint(made.path, adapter=True)
    assert folder == made.path / "exports" / f"{STEP}-adapter"
    adapter = load_file(folder / "adapter_model.safetensors")
    assert adapter.keys() == made.weights.keys()
    assert all(torch.equal(adapter[name], weight) for name, weight in made.weights.items())
    base = AutoModelForCausalLM.from_pretrained(made.path / "base", dtype=torch.bfloat16)
    loaded = PeftModel.from_pretrained(base, folder, autocast_adapter_dtype=False)
    found = get_peft_model_state_dict(loaded)
    assert all(torch.equal(found[name], weight) for name, weight in made.weights.items())
    card = ModelCard.load(folder / "README.md")
    assert card.data.library_name == "peft"
    assert "| LoRA | rank 2, alpha 4, all-linear |" in card.text


def test_what_cannot_be_exported_is_told(tied: Made, run: Path, tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match="holds no run"):
        export_checkpoint(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match=f"no whole checkpoint of iteration 9. There: {NAME}, {STEP}"):
        export_checkpoint(run, 9)
    with pytest.raises(ConfigError, match=r"model\.lora is not set"):
        export_checkpoint(run, adapter=True)
    taken = tmp_path / "taken"
    taken.mkdir()
    assert export_checkpoint(run, out=taken) == taken  # an empty folder will do
    kept = {path: path.read_bytes() for path in taken.iterdir()}
    with pytest.raises(RunFolderError, match="is not an empty folder"):
        export_checkpoint(run, out=taken)
    assert {path: path.read_bytes() for path in taken.iterdir()} == kept
    with pytest.raises(RunFolderError, match="cannot be written to"):
        export_checkpoint(run, out=taken / "README.md" / "x")


def test_a_broken_checkpoint_leaves_nothing_behind(run: Path) -> None:
    file = run / "checkpoints" / STEP / "training-state-00000.safetensors"
    size = file.stat().st_size
    os.truncate(file, size - 1)
    with pytest.raises(CheckpointError, match="no whole checkpoint of iteration 3"):
        export_checkpoint(run, 3)
    assert export_checkpoint(run).name == NAME  # the newest whole one
    shutil.rmtree(run / "exports")
    file.write_bytes(bytes(size))  # the right size, and nothing in it
    with pytest.raises(CheckpointError, match=f"{STEP} cannot be read"):
        export_checkpoint(run)
    assert not any((run / "exports").iterdir())


def test_another_base_model_is_told_from_the_runs_own(run: Path) -> None:
    untied_llama().save_pretrained(run / "base")
    with pytest.raises(CheckpointError, match="in the model that the run started from"):
        export_checkpoint(run)
    shutil.rmtree(run / "base")
    with pytest.raises(ModelError, match="the model that the run started from cannot be loaded"):
        export_checkpoint(run)
    assert not any((run / "exports").iterdir())


def test_the_command_says_where_the_model_lies_and_starts_no_ray(run: Path) -> None:
    program = (
        "import sys; from iris_ray.cli import main\n"
        "try: main()\n"
        "finally: print([name for name in sys.modules if name in ('ray', 'iris_ray.learner', 'actors')])"
    )
    command = [sys.executable, "-c", program, "export", str(run), "--checkpoint", "2", "--out", f"{run}/out"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=WAIT_S)
    where, how, modules = done.stdout.splitlines()
    assert (done.returncode, done.stderr, modules) == (0, "", "[]")
    assert where == f"The model lies in {run}/out"
    assert how == f"To load it: transformers.AutoModelForCausalLM.from_pretrained('{run}/out')"


def test_the_command_tells_what_is_wrong_in_words(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["iris-ray", "export", str(run), "--checkpoint", "9"])
    with pytest.raises(SystemExit, match="1"):
        main()
    printed = capsys.readouterr().err
    assert printed.startswith("Error: ")
    assert "there is no whole checkpoint of iteration 9" in printed
