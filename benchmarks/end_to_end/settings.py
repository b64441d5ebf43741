"""The job: the same start model, data, lengths, seeds and number of pairs for every way."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from iris_ray.config import RunConfig, SortDigits
from iris_ray.errors import DataError
from iris_ray.preparation import make_model, prepare
from iris_ray.run_folder import RunFolder
from iris_ray.scratch.sort_digits import make_rows

Way = Literal["iteration", "online", "no_overlap", "one_core", "vllm_trl", "generate_trl"]
OURS: tuple[Way, ...] = ("iteration", "online", "no_overlap")
PEERS: tuple[Way, ...] = ("vllm_trl", "generate_trl")
WAYS: tuple[Way, ...] = (*OURS, "one_core", *PEERS)
WHAT = {
    "iteration": "this service, one opponent an iteration",
    "online": "this service, a new opponent every few steps",
    "no_overlap": "this service, training waits until all is written",
    "one_core": "this service without overlap, all of its processes on one core",
    "vllm_trl": "vLLM offline, then TRL's DPOTrainer, by turns",
    "generate_trl": "transformers' generate, then TRL's DPOTrainer, by turns",
}
DTYPES = {"fp32": "float32", "bf16": "bfloat16"}
BETA = 1.0  # SPIN's λ, which is DPO's β
LEARNING_RATE = 5e-5


@dataclass(frozen=True)
class Settings:
    """Sizes of the model and the job; each iteration has `pairs` pairs, trained on once.

    `model` and `data` take the place of what is made: a model's folder, and rows of `prompt` and `response`.
    """

    model: str | None = None
    data: str | None = None

    hidden: int = 128
    intermediate: int = 512
    layers: int = 4
    heads: int = 4
    kv_heads: int = 2
    vocab: int = 4096
    min_digits: int = 6
    max_digits: int = 10
    iterations: int = 2
    pairs: int = 1280
    batch: int = 32
    refresh: int = 8
    concurrency: int = 64
    max_prompt_tokens: int = 32
    max_response_tokens: int = 72
    warmup_steps: int = 800
    start_score: float = 0.5
    holdout: int = 256
    seed: int = 0

    @property
    def rows(self) -> int:
        return self.iterations * self.pairs

    def start_recipe(self, folder: Path, data: Path) -> dict[str, Any]:
        """Of the run that makes the start model; it is never played."""
        shape = {
            "padded_vocab_size": self.vocab,
            "hidden_size": self.hidden,
            "intermediate_size": self.intermediate,
            "layers": self.layers,
            "heads": self.heads,
            "kv_heads": self.kv_heads,
        }
        warm_up = {"warmup_steps": self.warmup_steps, "stop_at_exact_match": self.start_score}
        model = {"path": self.model} if self.model else {"scratch": shape | warm_up}
        return {
            "run": {"name": "start", "folder": str(folder), "seed": self.seed},
            "model": {"dtype": "float32"} | model,
            "data": {"path": str(data), "holdout": self.holdout}
            # Generators score what they wrote, which takes a place more.
            | self.limits()
            | {"max_prompt_tokens": self.max_prompt_tokens + 1},
        }

    def limits(self) -> dict[str, Any]:
        return {
            "max_prompt_tokens": self.max_prompt_tokens,
            "max_response_tokens": self.max_response_tokens,
        }

    def recipe(self, way: Way, dtype: str, start: "Start", name: str) -> dict[str, Any]:
        """Of a run of ours: the generator has a core and the learner has one."""
        schedule: dict[str, Any] = {
            "iterations": self.iterations,
            "epochs": 1,
            "prompts_per_iteration": self.pairs,
        }
        learner: dict[str, Any] = {
            "batch_size": self.batch,
            "num_cpus": 1,
            "zero_stage": 0,
            "compile": True,
            "learning_rate": LEARNING_RATE,
            "lr_schedule": "constant",
        }
        if way == "online":
            schedule |= {"refresh": self.refresh}
        # In float32 training is much the longer part, and generators have time to score.
        if way == "online" or dtype == "fp32":
            learner |= {"reference": "generator"}
        return {
            "run": {"name": name, "folder": str(start.folder), "seed": self.seed},
            "model": {"path": str(start.model), "dtype": DTYPES[dtype]},
            "data": {"path": str(start.data), "holdout": 0} | self.limits(),
            "objective": {"name": "spin", "options": {"lam": BETA}},
            "schedule": schedule | {"overlap": way in ("iteration", "online")},
            "generation": {
                "num_cpus": 1,
                "enforce_eager": True,
                "concurrency": self.concurrency,
                "max_ahead": max(256, 2 * self.batch),
            },
            "learner": learner,
            "checkpoint": {"keep": self.iterations},
            "evaluation": {"prompts": 0},
        }

    def save(self, path: Path) -> None:
        path.write_text(json.dumps(asdict(self)))


@dataclass(frozen=True)
class Start:
    """What all ways begin with: a model, annotated rows, and rows to score models with."""

    folder: Path
    model: Path
    data: Path
    holdout: Path


def make_start(settings: Settings, folder: Path) -> Start:
    """Write the rows, `prompt` and `response` a line, and make a model that knows some of the task.

    Raises `DataError` where a row is longer than the job's limits, or there are too few.
    """
    rows = _read(Path(settings.data), settings) if settings.data else _made(settings)
    data, holdout = folder / "data.jsonl", folder / "holdout.jsonl"
    _write(data, rows[: settings.rows])
    _write(holdout, rows[settings.rows :])
    config = RunConfig.from_dict(settings.start_recipe(folder, data))
    run = RunFolder.create(config)
    prepared = prepare(config, run)
    if left_out := settings.rows - settings.holdout - len(prepared.data.train):
        raise DataError(
            f"{left_out} rows do not fit --max-prompt-tokens {settings.max_prompt_tokens} and "
            f"--max-response-tokens {settings.max_response_tokens}. Raise them: all ways take the same rows."
        )
    if settings.model:
        return Start(folder, Path(settings.model), data, holdout)
    make_model(config, run, prepared, lambda *_: None)
    return Start(folder, run.start, data, holdout)


def _made(settings: Settings) -> list[dict[str, str]]:
    """Digits to sort one by one, for responses that are not short: "sort 529" becomes "5 25 259"."""
    task = SortDigits(examples=settings.rows, min_digits=settings.min_digits, max_digits=settings.max_digits)
    rows = make_rows(task, settings.holdout, settings.seed)
    return [row | {"response": _one_by_one(row["prompt"].removeprefix("sort "))} for row in rows]


def _one_by_one(digits: str) -> str:
    return " ".join("".join(sorted(digits[:count])) for count in range(1, len(digits) + 1))


def _read(path: Path, settings: Settings) -> list[dict[str, str]]:
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    if len(rows) < (wanted := settings.rows + settings.holdout):
        raise DataError(
            f"--data {path}: {len(rows)} rows, and {wanted} are needed: {settings.iterations} iterations of "
            f"{settings.pairs}, and {settings.holdout} to score with. Lower --pairs or --iterations."
        )
    return [{name: row[name] for name in ("prompt", "response")} for row in rows[:wanted]]


def _write(path: Path, rows: list[dict[str, str]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
