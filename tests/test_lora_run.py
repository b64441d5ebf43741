"""A whole run that trains a LoRA adapter: real Ray, vLLM, DeepSpeed and PEFT."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from iris_ray import RunConfig, SelfPlay
from iris_ray.checkpoints import CheckpointStorage
from iris_ray.export import export_checkpoint
from iris_ray.preparation import make_model, prepare
from iris_ray.run_folder import RunFolder

RECIPE = {
    "data": {
        "sort_digits": {"examples": 96, "min_digits": 2, "max_digits": 4},
        "holdout": 16,
        "max_prompt_tokens": 32,
        "max_response_tokens": 12,
    },
    "schedule": {"iterations": 2, "epochs": 1},
    "generation": {"num_cpus": 0.25, "enforce_eager": True, "concurrency": 16, "max_ahead": 48},
    "learner": {"num_cpus": 0.5, "batch_size": 24, "learning_rate": 1e-2, "max_grad_norm": 10},
    "checkpoint": {"every_steps": 3},
}
SCRATCH = {
    "hidden_size": 128,
    "intermediate_size": 256,
    "layers": 2,
    "heads": 2,
    "kv_heads": 1,
    "warmup_steps": 40,
}
LORA = {"rank": 8, "alpha": 16.0}


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that an earlier run could have left."""
    config = RunConfig.from_dict(
        RECIPE
        | {
            "model": {"dtype": "float32", "scratch": SCRATCH},
            "run": {"name": "start", "folder": str(tmp_path_factory.mktemp("runs"))},
        }
    )
    folder = RunFolder.create(config)
    make_model(config, folder, prepare(config, folder), lambda *_: None)
    return folder.start


@pytest.fixture(scope="module")
def run(ray_here: None, start: Path) -> tuple[Path, dict]:
    """All paths are relative, as in most recipes: actors work in other folders."""
    runs = start.parent.parent
    config = RunConfig.from_dict(
        RECIPE
        | {
            "model": {"dtype": "float32", "path": str(start.relative_to(runs.parent)), "lora": LORA},
            "run": {"name": "lora", "folder": runs.name},
        }
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(runs.parent)
        return config.folder.absolute(), SelfPlay(config).run()


def weights(model: Path) -> dict[str, torch.Tensor]:
    return load_file(model / "model.safetensors")


def size(tensors: dict[str, torch.Tensor]) -> int:
    return sum(tensor.nbytes for tensor in tensors.values())


def test_it_is_played_to_the_end(run: tuple[Path, dict]) -> None:
    _, summary = run
    assert summary["status"] == "finished"
    assert summary["ledger"] == {"committed": 192, "lost": 0, "duplicated": 0}


def test_every_update_is_proven(run: tuple[Path, dict]) -> None:
    folder, _ = run
    events = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    updates = {event["version"]: event for event in events if event["event"] == "update"}
    assert set(updates) == {0, 1, 2}
    assert all(update["parity_max_abs_diff"] < 1e-4 for update in updates.values())


def test_only_the_adapter_is_trained_and_published(run: tuple[Path, dict], start: Path) -> None:
    folder, _ = run
    checkpoint = folder / "checkpoints" / "iteration-002-step-00003"
    published = load_file(checkpoint / "opponent-00000.safetensors")
    assert all(".lora_A." in name or ".lora_B." in name for name in published)
    assert 0 < size(published) < size(weights(start)) / 5
    trained = load_file(checkpoint / "training-state-00000.safetensors")
    assert len([name for name in trained if name.endswith("/master")]) == len(published)
    # The first opponent is the model itself; this one was trained.
    assert any(tensor.any() for name, tensor in published.items() if ".lora_B." in name)


def test_the_final_model_is_whole_and_the_learners(run: tuple[Path, dict], start: Path) -> None:
    final = run[0] / "final"
    assert not (final / "adapter_config.json").exists()
    before, after = weights(start), weights(final)
    assert before.keys() == after.keys()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {name for name in before if name.endswith("proj.weight")}
    AutoTokenizer.from_pretrained(final)
    model = AutoModelForCausalLM.from_pretrained(final)
    probe = json.loads((final / "probe.json").read_text())
    for tokens, expected in zip(probe["sequences"], probe["logprobs"], strict=True):
        with torch.no_grad():
            table = model(torch.tensor([tokens])).logits.log_softmax(-1)[0, :-1]
        logprobs = table.gather(1, torch.tensor(tokens[1:])[:, None])[:, 0]
        torch.testing.assert_close(logprobs, torch.tensor(expected), atol=1e-4, rtol=0)


def test_the_last_checkpoint_is_the_final_model(run: tuple[Path, dict]) -> None:
    folder, _ = run
    newest = CheckpointStorage(RunFolder(folder).read_config()).newest()
    assert newest is not None
    assert newest.name == "iteration-002"
    exported, final = weights(export_checkpoint(folder)), weights(folder / "final")
    assert exported.keys() == final.keys()
    assert all(torch.equal(exported[name], final[name]) for name in final)
