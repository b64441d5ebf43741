"""The paper's experiments: their recipes as they stand, and real runs of their twins."""

import json
import os
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from conftest import metric_events
from datasets import load_from_disk
from huggingface_hub import constants
from transformers import AutoConfig, AutoTokenizer, Qwen2Config
from typer.testing import CliRunner

from iris_ray import RunConfig, SelfPlay
from iris_ray.cli import app
from iris_ray.dry_run import dry_run
from iris_ray.errors import ModelError

ROOT = Path(__file__).parents[1]
PAPER = ROOT / "recipes" / "paper"
MODELS = {"zephyr-7b": "mistral", "qwen2.5-3b": "qwen2"}
METHODS = ("iris", "iris-geometric", "iris-fixed", "spin", "space", "spif", "tspin", "sft")
SUBSETS = ("200k", "26k", "14k")
# Most of a twin's minute is the start of Ray, vLLM and DeepSpeed, so only one is always played;
# `ALL_TWINS=1 pytest tests/test_paper.py` plays the others too.
PLAYED = [("zephyr-7b", "iris")]
ALL = [*PLAYED, *(each for each in product(MODELS, METHODS) if each not in PLAYED)]
TWINS = ALL if os.environ.get("ALL_TWINS") else PLAYED


def files(*names: str) -> list[Path]:
    return [PAPER / f"{name}.yaml" for name in ("paper", *names)]


def planned(*names: str, **sections: dict[str, Any]) -> dict[str, Any]:
    overrides = [
        f"{name}.{key}={json.dumps(value)}" for name in sections for key, value in sections[name].items()
    ]
    return dry_run(RunConfig.from_yaml(files(*names), overrides))


def each_iteration(plan: dict[str, Any], value: str) -> list[Any]:
    return [entry[value] for entry in plan["iterations"]]


@pytest.fixture
def no_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")


@pytest.mark.usefixtures("no_hub")
@pytest.mark.parametrize(("model", "method"), ALL)
def test_what_a_recipe_would_do(model: str, method: str) -> None:
    plan = planned(model, method)
    assert plan["run"] == f"paper-{model}-{method}"
    assert plan["objective"] == method.partition("-")[0]
    assert each_iteration(plan, "pairs") == [50_000] * 5
    assert each_iteration(plan, "steps") == [1564] * 5  # two passes over 50,000 pairs in batches of 64
    assert each_iteration(plan, "learning_rate") == [5e-7, 5e-7, 1e-7, 1e-7, 1e-7]
    assert [each["kind"] for each in plan["downloads"]] == ["model", "dataset"]
    assert plan["parameters"] is None
    assert sum(need["count"] * need["gpus"] for need in plan["processes"]) == 8


@pytest.mark.usefixtures("no_hub")
@pytest.mark.parametrize(
    ("method", "orders"),
    [
        ("iris", [1.0, None, None, None, None]),
        ("iris-geometric", [2.0, 2**0.75, 2**0.5, 2**0.25, 1.0]),
        ("iris-fixed", [1.5] * 5),
    ],
)
def test_orders_are_told_where_no_gap_decides_them(method: str, orders: list[float | None]) -> None:
    plan = planned("zephyr-7b", method)
    assert plan["has_order"]
    assert each_iteration(plan, "alpha") == pytest.approx(orders)


@pytest.mark.usefixtures("no_hub")
def test_a_gap_that_is_measured_at_the_start_decides_the_first_order_too() -> None:
    assert each_iteration(planned("zephyr-7b", "iris", alpha={"gap": "nll"}), "alpha") == [None] * 5
    assert each_iteration(planned("zephyr-7b", "iris", alpha={"gap": "nll", "c": 0}), "alpha") == [1.0] * 5


@pytest.mark.usefixtures("no_hub")
def test_spin_changes_its_lambda() -> None:
    options = each_iteration(planned("zephyr-7b", "spin"), "options")
    assert [each["lam"] for each in options] == [0.1, 0.1, 0.1, 5.0, 5.0]


@pytest.mark.usefixtures("no_hub")
@pytest.mark.parametrize(
    ("subset", "pairs", "steps"),
    [("26k", 26_000, [814, 814]), ("14k", 14_000, [438, 438]), ("200k", None, [None])],
)
def test_other_subsets(subset: str, pairs: int | None, steps: list[int | None]) -> None:
    plan = planned("zephyr-7b", "iris", subset)
    assert plan["train"] == pairs
    assert each_iteration(plan, "steps") == steps


@pytest.mark.usefixtures("no_hub")
def test_for_people_it_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    done = CliRunner().invoke(app, ["run", *map(str, files("qwen2.5-3b", "iris")), "--dry-run"])
    assert done.exit_code == 0, done.exception
    assert "To download: model Qwen/Qwen2.5-3B-Instruct, its size was not told" in done.stdout
    assert "by the gap" in done.stdout


def test_a_model_of_another_architecture_is_refused(tmp_path: Path) -> None:
    Qwen2Config().save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"model\.architecture=mistral does not fit: .* is a qwen2 model"):
        planned("zephyr-7b", "iris", model={"path": str(tmp_path)})


def test_every_recipe_stands_in_the_docs() -> None:
    page = (ROOT / "docs" / "paper.md").read_text()
    known = {"paper", "tiny", *MODELS, *METHODS, *SUBSETS}
    assert {path.stem for path in PAPER.glob("*.yaml")} == known
    assert not {name for name in known if f"`{name}.yaml`" not in page}


@pytest.fixture(scope="module", params=TWINS, ids="-".join)
def twin(
    ray_here: None, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, dict[str, Any], Path, dict[str, Any]]:
    """Architecture, what the dry run told, the run's folder and its summary."""
    model, method = request.param
    recipes = [str(path) for path in files(model, method, "tiny")]
    runs = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        told = CliRunner().invoke(app, ["run", *recipes, "--dry-run", "--json"])
        config = RunConfig.from_yaml(recipes, [f"run.folder={runs}"])
        summary = SelfPlay(config).run()
    return MODELS[model], json.loads(told.stdout), config.folder, summary


def test_a_twin_does_what_the_dry_run_told(twin: tuple[str, dict[str, Any], Path, dict[str, Any]]) -> None:
    architecture, plan, folder, summary = twin
    assert summary["status"] == "finished"
    assert summary["ledger"] == {"committed": 32, "lost": 0, "duplicated": 0}
    assert [entry["steps"] for entry in summary["iterations"]] == each_iteration(plan, "steps") == [4, 4]
    assert summary["data"] == plan["data"]
    assert summary["model"]["parameters"] == plan["parameters"]
    assert summary["objective"]["name"] == plan["objective"]
    for entry, expected in zip(summary["iterations"], plan["iterations"], strict=True):
        assert expected["alpha"] in (None, entry["alpha"])
    steps = metric_events(folder, "step")
    assert max(step["learning_rate"] for step in steps) == plan["iterations"][0]["learning_rate"]
    assert not any(step["skipped"] for step in steps)
    assert AutoConfig.from_pretrained(folder / "final").model_type == architecture


def test_a_twin_plays_on_first_rounds_in_its_models_template(
    twin: tuple[str, dict[str, Any], Path, dict[str, Any]],
) -> None:
    architecture, _, folder, _ = twin
    user, assistant, end = {
        "mistral": ("<|user|>\n", "</s>\n<|assistant|>\n", "</s>"),
        "qwen2": ("<|im_start|>user\n", "<|im_end|>\n<|im_start|>assistant\n", "<|im_end|>"),
    }[architecture]
    tokenizer = AutoTokenizer.from_pretrained(folder / "final")
    lines = (PAPER / "conversations.jsonl").read_text().splitlines()
    rounds = [[turn["content"] for turn in json.loads(line)["messages"]] for line in lines]
    assert {len(texts) for texts in rounds} == {4}
    expected = {(user + prompt + assistant, response + end) for prompt, response, *_ in rounds}
    pairs = load_from_disk(folder / "data" / "train")
    decoded = {
        (tokenizer.decode(row["prompt_tokens"]), tokenizer.decode(row["response_tokens"])) for row in pairs
    }
    assert len(decoded) == 16
    assert decoded < expected
