"""Checkpoints as Hugging Face models: the learner's own weights, wherever the checkpoint lies."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import fsspec
import pytest
import torch
from huggingface_hub import ModelCard
from peft import PeftModel
from safetensors.torch import load_file, save_file
from torch.distributed import HashStore
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from actors.environment import learner_environment
from iris_ray import lora
from iris_ray.checkpoints import STATE, write_state
from iris_ray.config import Learner, Lora, RunConfig
from iris_ray.errors import CheckpointError, ConfigError, ModelError, RunFolderError
from iris_ray.export import export_checkpoint
from iris_ray.game import Round
from iris_ray.learner.sequence_scorer import SequenceScorer
from iris_ray.learner.token_batch import PromptGroup
from iris_ray.scratch.tokenizer import train_tokenizer
from tests.conftest import VOCABULARY, make_pairs, run_config, tiny_model

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from iris_ray.learner.self_play_learner import SelfPlayLearner

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


def untied_llama() -> "PreTrainedModel":
    torch.manual_seed(1)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4}
    return LlamaForCausalLM(LlamaConfig(vocab_size=VOCABULARY, tie_word_embeddings=False, **sizes))


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


def make_run(path: Path, dtype: str, model: "PreTrainedModel") -> Made:
    """Two checkpoints: iteration 2, and one step later."""
    from iris_ray.learner.learner_state import RoundProgress, save_learner
    from iris_ray.learner.self_play_learner import SelfPlayLearner

    config = run_config(
        run={"name": path.name, "folder": str(path.parent), "seed": 7},
        model={"path": str(path / "base"), "dtype": dtype},
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
        state = {"iteration": iteration, "step": step or 1 << 62, "between": progress is None}
        state |= {"version": 2, "learner": plain, "controller": history(iteration)}
        write_state(folder, state, [(file.name, file.stat().st_size) for file in folder.iterdir()])
    weights = {name: weight.clone() for name, weight in learner.weights()}
    return Made(path, learner, weights)


@pytest.fixture(scope="module", autouse=True)
def one_rank() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        environment = learner_environment(Learner())
        for name, value in (environment | {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}).items():
            patch.setenv(name, value)
        torch.distributed.init_process_group("gloo", store=HashStore(), rank=0, world_size=1)
        yield
        torch.distributed.destroy_process_group()


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
    return Path(shutil.copytree(tied.path, tmp_path / "runs" / "tied"))


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
    torch.nn.Module.to(model, model.dtype)  # as the learner holds it, rotary frequencies too
    scorer = SequenceScorer.fastest(model.eval(), 32)
    with torch.no_grad():
        groups = [PromptGroup(tokens[:1], [tokens[1:]]) for tokens in SEQUENCES]
        found = scorer(scorer.lay_out(groups))
    assert found.tolist() == sum(made.learner.token_logprobs(SEQUENCES), [])


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
    config = RunConfig.from_yaml(run / "config.yaml", [f"checkpoint.storage={storage}"])
    (run / "config.yaml").write_text(config.to_yaml())
    folder = export_checkpoint(run)
    assert_same_weights(folder, tied.weights)
    assert [path.name for path in folder.parent.iterdir()] == [STEP]
    assert not any("training-state" in path.name for path in folder.iterdir())


def test_a_made_model_is_exported_from_the_runs_start(tied: Made, run: Path) -> None:
    (run / "base").rename(run / "start")
    config = RunConfig.from_yaml(run / "config.yaml", ["model.path=null", "model.scratch={}"])
    (run / "config.yaml").write_text(config.to_yaml())
    assert_same_weights(export_checkpoint(run), tied.weights)


def test_the_card_tells_where_the_model_comes_from(run: Path, tmp_path: Path) -> None:
    settings = ["objective={name: tspin, options: {beta: 0.2}}", "generation.temperature=0.9"]
    (run / "config.yaml").write_text(RunConfig.from_yaml(run / "config.yaml", settings).to_yaml())
    card = ModelCard.load(export_checkpoint(run, 2, tmp_path / "tspin") / "README.md")
    assert card.data.datasets == "org/rows"
    assert card.data.base_model is None  # a folder of this machine
    assert card.data.library_name == "transformers"
    assert set(card.data.tags) >= {"iris-ray", "self-play", "tspin"}
    for line in (
        "| objective | `tspin`, beta=0.2 |",
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


def test_the_cards_last_exact_match_is_read_from_the_metrics(run: Path) -> None:
    events = [{"event": "iteration", "iteration": i, "exact_match": i / 4} for i in (2, 3)]
    (run / "metrics.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events) + '{"ev')
    between = (export_checkpoint(run, 2) / "README.md").read_text()
    assert "| iteration | α | gap | exact match | pairs |" in between
    assert "| 2 | 1.250 | 0.5000 | 50.0% | 4 |" in between
    # In the middle of a round, that round's score is another model's.
    assert "| 3 | 1.375 | 0.7500 | – | 4 |" in (export_checkpoint(run, 3) / "README.md").read_text()


def test_an_adapter_is_merged_or_exported_alone(tmp_path: Path) -> None:
    path, spec = tmp_path / "runs" / "lora", Lora(rank=2, alpha=4)
    model = {"path": str(path / "base"), "dtype": "bfloat16", "lora": spec.model_dump()}
    config = run_config(run={"name": "lora", "folder": str(tmp_path / "runs")}, model=model, data=DATA)
    make_folder(path, config, tiny_model())
    wrapped = lora.add_adapter(tiny_model().to(torch.bfloat16), spec, seed=3)
    masters = {}
    for name, weight in wrapped.named_parameters():
        if weight.requires_grad:
            masters[f"model.{name}/master"] = torch.randn(weight.shape) / 4
            weight.data.copy_(masters[f"model.{name}/master"])
    folder = path / "checkpoints" / NAME
    folder.mkdir(parents=True)
    save_file(masters, folder / "training-state-00000.safetensors")
    state = {"iteration": 2, "step": 1 << 62, "between": True, "controller": history(2)}
    write_state(folder, state, [(file.name, file.stat().st_size) for file in folder.iterdir()])

    assert_same_weights(export_checkpoint(path), lora.merged_state_dict(wrapped))
    adapter = export_checkpoint(path, adapter=True)
    assert adapter == path / "exports" / f"{NAME}-adapter"
    base = AutoModelForCausalLM.from_pretrained(path / "base", dtype=torch.bfloat16)
    loaded = PeftModel.from_pretrained(base, adapter, autocast_adapter_dtype=False)
    tokens = torch.tensor(SEQUENCES[:1])
    with torch.no_grad():
        wrapped.eval()
        base.model.rotary_emb, wrapped.get_base_model().model.rotary_emb = 2 * [base.model.rotary_emb]
        assert torch.equal(loaded.eval()(tokens).logits, wrapped(tokens).logits)
    assert ModelCard.load(adapter / "README.md").data.library_name == "peft"


def test_what_cannot_be_exported_is_told(tied: Made, run: Path, tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match="holds no run"):
        export_checkpoint(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match=f"no whole checkpoint of iteration 9. There: {NAME}, {STEP}"):
        export_checkpoint(run, 9)
    with pytest.raises(ConfigError, match="model.lora is not set"):
        export_checkpoint(run, adapter=True)
    taken = tmp_path / "taken"
    taken.mkdir()
    assert export_checkpoint(run, out=taken) == taken  # an empty folder will do
    kept = {path: path.read_bytes() for path in taken.iterdir()}
    with pytest.raises(RunFolderError, match="not an empty folder. Remove it, or set --out"):
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


def test_the_command_says_where_the_model_lies_and_needs_neither_ray_nor_deepspeed(run: Path) -> None:
    program = (
        "import sys; from iris_ray.cli import main\n"
        "try: main()\n"
        "finally: print(sorted({'ray', 'deepspeed', 'actors'} & sys.modules.keys()))"
    )

    def call(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", program, "export", str(run), *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=120)

    done = call("--checkpoint", "2", "--out", str(run / "out"))
    assert done.returncode == 0, done.stderr
    where, how, modules = done.stdout.splitlines()
    assert str(run / "out") in where
    assert f"from_pretrained('{run / 'out'}')" in how
    assert modules == "[]"
    assert done.stderr == ""
    again = call("--out", str(run / "out"))
    assert again.returncode == 1
    assert "Error:" in again.stderr
    assert "is not an empty folder" in again.stderr
    assert "Traceback" not in again.stderr
