"""`iris-ray eval` beside what transformers says of the same model: real lm-eval and vLLM."""

import json
import subprocess
from pathlib import Path

import pytest
from conftest import made_model
from own_tasks import CHOOSE, QUESTIONS, accuracy, write_tasks
from run_process import BIN, WAIT_S
from transformers import AutoModelForCausalLM, AutoTokenizer
from typer.testing import CliRunner

from iris_ray import RunConfig
from iris_ray.cli import app
from iris_ray.errors import ConfigError
from iris_ray.harness.asking_model import AskingModel
from iris_ray.harness.evaluate import Score
from iris_ray.harness.suites import PAPER, Task
from iris_ray.harness.tables import average
from iris_ray.preparation import make_model, prepare
from iris_ray.run_folder import RunFolder

WRITE = {
    "task": "write",
    "output_type": "generate_until",
    "doc_to_text": "{{question}}",
    "doc_to_target": "{{choices[0]}}",
    "generation_kwargs": {"until": ["\n"], "max_gen_toks": 6, "do_sample": False},
    "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that knows a little."""
    recipe = {
        "run": {"name": "scored", "folder": str(tmp_path_factory.mktemp("runs"))},
        "model": made_model(warmup_steps=30),
        "data": {"sort_digits": {"examples": 100}, "holdout": 8, "max_prompt_tokens": 64},
    }
    config = RunConfig.from_dict(recipe)
    folder = RunFolder.create(config)
    make_model(config, folder, prepare(config, folder), lambda *_: None)
    return folder.start


@pytest.fixture(scope="module")
def tasks(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two tasks. The model writes what is to be written, but for the last two questions."""
    folder = tmp_path_factory.mktemp("tasks")
    rows = [
        row | {"choices": [written(model, row["question"]), *row["choices"][1:]]} for row in QUESTIONS[:-2]
    ]
    write_tasks(folder, [CHOOSE, WRITE], [*rows, *QUESTIONS[-2:]])
    return folder


def written(model: Path, prompt: str) -> str:
    """What the model answers greedily."""
    tokenizer, policy = AutoTokenizer.from_pretrained(model), AutoModelForCausalLM.from_pretrained(model)
    tokens = tokenizer(prompt, return_tensors="pt")
    answer = policy.generate(**tokens, max_new_tokens=6, do_sample=False)[0, tokens["input_ids"].shape[1] :]
    return tokenizer.decode(answer, skip_special_tokens=True).split("\n")[0]


def test_scores_are_those_that_transformers_gives(model: Path, tasks: Path, tmp_path: Path) -> None:
    out = tmp_path / "scores.json"
    command = ["eval", str(model), "--tasks", str(tasks), "--out", str(out), "--json"]
    command += ["--task", "choose", "--task", "write:0", "--engine", "enforce_eager=true"]
    # In a process of its own: an engine is not over with its evaluation.
    done = subprocess.run([BIN / "iris-ray", *command], capture_output=True, text=True, timeout=WAIT_S)
    assert done.returncode == 0, done.stderr
    choose, write = json.loads(done.stdout)["scores"]
    rows = [json.loads(line) for line in (tasks / "questions.jsonl").read_text().splitlines()]
    assert choose["value"] == choose["metrics"]["acc,none"] == pytest.approx(accuracy(model, rows))
    right = [written(model, row["question"]) == row["choices"][0] for row in rows]
    assert write["metrics"]["exact_match,none"] == pytest.approx(sum(right) / len(right))
    assert write["value"] >= 6 / 8
    assert choose["documents"] == write["documents"] == len(rows)
    # What was scored is not scored again: it takes no model to tell.
    before = out.read_text()
    (model / "config.json").rename(model / "away.json")
    try:
        again = CliRunner().invoke(app, command)
    finally:
        (model / "away.json").rename(model / "config.json")
    assert (again.exit_code, again.stdout) == (0, done.stdout)
    assert out.read_text() == before
    other = CliRunner().invoke(app, [*command, "--limit", "2"])
    assert other.exit_code == 1
    assert isinstance(other.exception, ConfigError)
    assert "holds results of another limit" in str(other.exception)


def test_generators_are_asked_through_the_template_with_the_runs_options(model: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(model)
    tokenizer.chat_template = "{% if brief %}Be brief. {% endif %}{{ messages[0].content }}"
    turns = [{"role": "user", "content": "Hello"}]
    assert AskingModel(tokenizer, 64, list).apply_chat_template(turns) == "Hello"
    asked = AskingModel(tokenizer, 64, list, {"brief": True}).apply_chat_template(turns)
    assert asked == "Be brief. Hello"


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ([], "--suite or one --task"),
        (["--suite", "paper", "--task", "gsm8k"], "one of the two"),
        (["--suite", "papers"], "There: paper"),
        (["--task", "gsm8k:many"], "gsm8k:many: is no task"),
        (["--task", "gsm8k", "--engine", "eager"], "--engine eager"),
        (["--task", "no_such_task"], "lm-eval knows no task no_such_task"),
        (["--task", "gsm8k", "--checkpoint", "2"], "is no run folder"),
    ],
)
def test_what_cannot_be_asked_is_refused(arguments: list[str], told: str, tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["eval", str(tmp_path / "model"), *arguments])
    assert isinstance(done.exception, ConfigError)
    assert told in str(done.exception)


def test_the_suite_of_the_paper_is_known_to_lm_eval() -> None:
    from lm_eval.tasks import TaskManager

    names = TaskManager().task_index
    assert all(task.name in names for task in PAPER)
    assert [task.shots for task in PAPER] == [5, 4, 0, 5, 5, 0, 10, 5, 3, 0]


def test_the_average_counts_every_task_once() -> None:
    scores = [
        Score(Task("a", "A", 0, "acc,none"), 0, documents, {"acc,none": value, "acc_stderr,none": 0.1})
        for documents, value in ((1000, 0.25), (10, 0.75))
    ]
    assert average(scores) == 50
    assert [score.stderr for score in scores] == [0.1, 0.1]
