"""The command as a new user would mistype it: one clear message, nothing left behind."""

import json
import shlex
import sys
from pathlib import Path

import pytest
import yaml

from iris_ray.cli import _print_next_steps, main
from iris_ray.config import RunConfig

RECIPE = {
    "model": {
        "scratch": {"hidden_size": 32, "intermediate_size": 64, "layers": 1, "heads": 1, "kv_heads": 1}
    },
    "data": {
        "sort_digits": {"examples": 64, "min_digits": 2, "max_digits": 3},
        "holdout": 8,
        "max_prompt_tokens": 32,
        "max_response_tokens": 12,
    },
}


class Cli:
    """Runs `iris-ray run` on a recipe in an empty folder."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
        self.folder = folder
        self.monkeypatch = monkeypatch
        self.capsys = capsys
        self.recipe = folder / "recipe.yaml"
        self.recipe.write_text(
            yaml.safe_dump(RECIPE | {"run": {"name": "x", "folder": str(folder / "runs")}})
        )

    def __call__(self, *settings: str, flags: tuple[str, ...] = ()) -> tuple[int, str]:
        """Exit code, and what was printed with line breaks taken out."""
        overrides = [part for setting in settings for part in ("--set", setting)]
        self.monkeypatch.setattr(sys, "argv", ["iris-ray", "run", str(self.recipe), *overrides, *flags])
        with pytest.raises(SystemExit) as exit_:
            main()
        printed = self.capsys.readouterr()
        return int(exit_.value.code or 0), " ".join((printed.out + printed.err).split())


@pytest.fixture
def cli(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Cli:
    return Cli(tmp_path, monkeypatch, capsys)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["learner.batchsize=3"], "Did you mean batch_size?"),
        (["learner.batch_size=0"], "learner.batch_size: 0 does not fit"),
        (["objective.name=spun"], "objective.name: 'spun' does not exist. Objectives: iris"),
        (["objective.options.lam=1"], "objective.options.lam: iris has no such option"),
        (["objective.options={name: x}"], "objective.options.name: iris has no such option"),
        (["objective.name=spin", "objective.options.lam=-1"], "objective.options.lam: -1 does not fit"),
        (
            ["alpha.schedule=linear"],
            "alpha.schedule: 'linear' does not exist. Schedules: fixed, gap_feedback",
        ),
        (["alpha.gap=kl"], "alpha.gap: 'kl' does not exist. Gap estimators: margin, nll, variational"),
        (
            ["evaluation.scorer=foo"],
            "evaluation.scorer: 'foo' does not exist. Registered by run.plugins: none",
        ),
        (["run.plugins=[nowhere_to_be_found]"], "run.plugins: there is no module 'nowhere_to_be_found'"),
        (["run.plugins=['.x']"], "run.plugins.0: '.x' does not fit"),
        (["evaluation.answer_pattern='('"], "evaluation.answer_pattern"),
        (["generation.max_ahead=8"], "generation.max_ahead (8) must be at least learner.batch_size (64)"),
        (["data.sort_digits=null", "data.path=none.jsonl"], "data.path: none.jsonl does not exist"),
        (["data.holdout=2000"], "data.sort_digits.examples (64) and data.holdout (2000)"),
        (["data.max_prompt_tokens=4"], "72 of the 72 made rows cannot be used"),
        (
            ["data.max_prompt_tokens=4"],
            "Raise data.max_prompt_tokens, mend these rows, or raise data.max_bad",
        ),
        (["model.scratch=null", "model.path=nowhere"], "model.path=nowhere: no model can be loaded from it"),
        (["data.sort_digits=null", "data.path=file:///no/x.jsonl"], "data.path=file:///no/x.jsonl: nothing"),
        (["checkpoint.storage=nowhere://bucket"], "checkpoint.storage=nowhere://bucket/x: no such kind of"),
        (["run.ray_address=127.0.0.1:1"], "run.ray_address=127.0.0.1:1: no Ray cluster answers there"),
        (["generation.count=5000"], "CPU: 5001 needed"),
        (["learner.num_gpus=1"], "GPU: 1 needed, 0 free"),
    ],
)
def test_bad_input_is_one_clear_message(cli: Cli, settings: list[str], message: str) -> None:
    code, printed = cli(*settings)
    assert code == 1
    assert message in printed
    assert "Traceback" not in printed
    assert not (cli.folder / "runs" / "x").exists()  # the name stays free


def test_wrong_columns_are_named(cli: Cli) -> None:
    rows = cli.folder / "rows.jsonl"
    rows.write_text(json.dumps({"question": "1+1", "answer": "2"}) + "\n")
    code, printed = cli("data.sort_digits=null", f"data.path={rows}")
    assert code == 1
    assert "question" in printed
    assert "data.prompt_column" in printed


def test_a_run_is_never_overwritten(cli: Cli) -> None:
    earlier = cli.folder / "runs" / "x" / "config.yaml"
    earlier.parent.mkdir(parents=True)
    earlier.write_text("earlier")
    code, printed = cli()
    assert code == 1
    assert "already holds a run. Choose another run.name" in printed
    assert earlier.read_text() == "earlier"


def test_a_dry_run_prints_settings_and_actors_and_starts_nothing(cli: Cli) -> None:
    code, printed = cli("generation.count=3", "learner.workers=2", flags=("--dry-run",))
    assert code == 0
    assert "batch_size: 64" in printed
    assert "64 to train on, 8 held out" in printed
    assert "generator 3 1 0" in " ".join(printed.replace("│", " ").split())
    assert not (cli.folder / "runs").exists()


def test_a_dry_run_refuses_what_the_run_would(cli: Cli) -> None:
    code, printed = cli("checkpoint.storage=nowhere://bucket", flags=("--dry-run",))
    assert (code, "checkpoint.storage=nowhere://bucket/x: no such kind" in printed) == (1, True)
    (cli.folder / "runs" / "x").mkdir(parents=True)
    (cli.folder / "runs" / "x" / "config.yaml").touch()
    code, printed = cli(flags=("--dry-run",))
    assert (code, "already holds a run. Choose another run.name" in printed) == (1, True)


def test_printed_commands_can_be_pasted(capsys: pytest.CaptureFixture[str]) -> None:
    config = RunConfig.from_dict(RECIPE | {"run": {"folder": "my runs"}})
    override = "evaluation.answer_pattern=#### (.+)"
    _print_next_steps(config, [Path("my recipe.yaml")], [override, "run.seed=3"])
    printed = capsys.readouterr().out
    again = next(line for line in printed.splitlines() if "another seed" in line)
    words = ["run", "my recipe.yaml", "--set", override, "--set", "run.name=seed-1", "--set", "run.seed=1"]
    assert shlex.split(again, comments=False)[3:] == words
    assert "'model.path=my runs/demo/final'" in printed
