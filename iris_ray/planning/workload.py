"""Lengths of prompts and responses that a plan reckons with."""

from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pyarrow.parquet as pq

from iris_ray.config import RunConfig
from iris_ray.errors import ConfigError
from iris_ray.planning.hardware import MadeUpData
from iris_ray.preparation import prepare
from iris_ray.run_folder import RunFolder

SAMPLE = 100_000  # rows whose lengths stand for all


@dataclass(frozen=True)
class Workload:
    """Lengths in tokens, end tokens included: `prompt` and `real` of the same rows, `written` of responses.

    `prompts` to train on, `holdout` set aside; the arrays may hold fewer, which then stand for all.
    """

    prompts: int
    holdout: int
    prompt: np.ndarray
    real: np.ndarray
    written: np.ndarray

    def means(self) -> tuple[float, float, float]:
        return float(self.prompt.mean()), float(self.real.mean()), float(self.written.mean())

    def of_prompts(self, prompt_ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Lengths of these prompts and of their annotated responses."""
        rows = prompt_ids % len(self.prompt)
        return self.prompt[rows], self.real[rows]

    def draw_written(self, count: int, seed: list[int]) -> np.ndarray:
        """Lengths of so many written responses."""
        return np.random.default_rng(seed).choice(self.written, count)


def made_up(data: MadeUpData, config: RunConfig) -> Workload:
    """Log-normal lengths, cut at the recipe's limits."""
    rng = np.random.default_rng(config.run.seed)
    count = min(data.prompts, SAMPLE)
    variance = np.log1p(data.spread**2)

    def lengths(mean: float, limit: int) -> np.ndarray:
        drawn = rng.lognormal(np.log(mean) - variance / 2, np.sqrt(variance), count)
        return np.clip(np.rint(drawn), 1, limit).astype(int)

    for field, mean, limit in (
        ("prompt_tokens", data.prompt_tokens, config.data.max_prompt_tokens),
        ("response_tokens", data.response_tokens, config.data.max_response_tokens),
    ):
        if mean > limit:
            raise ConfigError(
                f"--hardware: data.{field} ({mean:g}) is above the recipe's data.max_{field} ({limit}). "
                "Lower it, or raise that."
            )
    responses = data.response_tokens, config.data.max_response_tokens
    prompts = lengths(data.prompt_tokens, config.data.max_prompt_tokens)
    return Workload(data.prompts, config.data.holdout, prompts, lengths(*responses), lengths(*responses))


def of_recipe(config: RunConfig) -> Workload:
    """The recipe's data, read and tokenised; written responses as long as the annotated ones."""
    with TemporaryDirectory() as name:
        data = prepare(config, RunFolder(Path(name))).data
        rows = data.train.select(range(min(len(data.train), SAMPLE)))
        prompt, real = (
            np.array([len(tokens) for tokens in rows[column]])
            for column in ("prompt_tokens", "response_tokens")
        )
        return Workload(len(data.train), len(data.holdout), prompt, real, real)


def written_by(run: RunFolder) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Lengths of a run's pairs in the order of its samples: prompts, annotated and written responses."""
    tables = [
        pq.read_table(path, columns=["prompt_tokens", "real_tokens", "synthetic_tokens"])
        for path in run.archives()
    ]
    if not tables:
        raise ConfigError(f"--measured {run.path}: it holds no samples. Name a run that played an iteration.")
    columns = zip(*(table.columns for table in tables), strict=True)
    prompt, real, written = (
        np.concatenate([np.array([len(row) for row in part.to_pylist()]) for part in column])
        for column in columns
    )
    return prompt, real, written


def with_written(workload: Workload, written: np.ndarray, limit: int) -> Workload:
    """The same prompts, answered by responses as long as those of a run."""
    return replace(workload, written=np.minimum(written, limit))
