"""Speeds of learner and engine out of runs that were played on the hardware in question.

Each run gives one equation for each side: seconds = steps · (seconds of a step) + arithmetic / (flop/s). One run
sets the arithmetic's rate, and leaves the seconds of a step as the hardware's description has them; runs that
differ in batch or model set both, by least squares of the relative errors.
"""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from iris_ray.config import RunConfig
from iris_ray.errors import ConfigError
from iris_ray.planning.engine_queue import EngineQueue, Request
from iris_ray.planning.hardware import Hardware
from iris_ray.planning.model_shape import ModelShape, model_shape
from iris_ray.planning.rates import EngineRates, LearnerRates, Speeds
from iris_ray.planning.workload import written_by
from iris_ray.run_folder import RunFolder

Lengths = tuple[np.ndarray, np.ndarray, np.ndarray]
FREE = 1e30  # a rate that costs no time


@dataclass(frozen=True)
class Equation:
    """`seconds` = `steps` · (seconds of a step) + `flops` / (flop/s)."""

    steps: float
    flops: float
    seconds: float


@dataclass(frozen=True)
class MeasuredRun:
    """What a run tells of speeds, and the lengths of its pairs."""

    name: str
    learner: Equation
    engine: Equation
    written: np.ndarray

    @classmethod
    def read(cls, path: Path, hardware: Hardware) -> "MeasuredRun":
        """Raises `ConfigError` if it holds no run, or one that did not finish an iteration."""
        folder = RunFolder.existing(path)
        config, summary = folder.read_config(), folder.read_summary()
        if not summary.get("iterations"):
            raise ConfigError(f"--measured {path}: this run finished no iteration. Name one that did.")
        shape, lengths = model_shape(config), written_by(folder)
        return cls(
            path.name,
            _learner(config, hardware, shape, lengths, summary),
            _engine(config, hardware, shape, lengths, summary),
            lengths[2],
        )


def _learner(
    config: RunConfig, hardware: Hardware, shape: ModelShape, lengths: Lengths, summary: dict
) -> Equation:
    prompt, real, written = lengths
    flops = float(np.mean([shape.pair_flops(*pair) for pair in zip(prompt, real, written, strict=True)]))
    batch, tokens = config.learner.batch_size, sum(float(part.mean()) for part in lengths)
    rates = LearnerRates(Speeds(1.0, 0.0, 1.0, 0.0, FREE), shape, config, hardware)
    rounds, epochs = summary["iterations"], config.schedule.epochs
    steps = sum(entry["steps"] for entry in rounds)
    fixed = steps * (rates.communication_s(1) + rates.optimizer_s())
    computed = sum(
        rates.step_s(batch * flops, batch * tokens, batch, epoch == 0) * steps / epochs for epoch in range(epochs)
    )
    # The last batch of a pass may be smaller.
    full = sum(entry["pairs"] for entry in rounds) / (steps * batch)
    seconds = sum(entry["seconds"] - entry["learner_waited_seconds"] for entry in rounds)
    return Equation(steps, (computed - fixed) * full, seconds - fixed)


def _engine(
    config: RunConfig, hardware: Hardware, shape: ModelShape, lengths: Lengths, summary: dict
) -> Equation:
    """The same requests once more through an engine's queue, which counts its steps and its arithmetic."""
    prompt, real, written = (part.tolist() for part in lengths)
    scores = config.learner.reference == "generator"
    pairs = [
        Request(None, x, y, scores * (x + other)) for x, other, y in zip(prompt, real, written, strict=True)
    ]
    count = config.generation.count
    asked = min(config.evaluation.prompts, summary["data"]["holdout"]) * (len(summary["iterations"]) + 1)
    questions = [Request(None, *pairs[index % len(pairs)][1:3]) for index in range(asked)]
    on_gpu = config.generation.num_gpus > 0

    def passed(step_s: float, flops_per_s: float, bytes_per_s: float) -> float:
        speeds = Speeds(FREE, 0.0, flops_per_s, step_s, bytes_per_s)
        rates = EngineRates(speeds, shape, config.model.dtype, on_gpu=on_gpu)
        queue: EngineQueue[None] = EngineQueue(rates, config.generation.concurrency)
        queue.admit(pairs[::count] + questions[::count])
        return queue.advance(np.inf, 0)[0] * count

    moving = passed(0.0, FREE, Speeds.of(hardware, config).engine_bytes)
    tokens, rate = float(sum(written)), summary["throughput"]["generated_tokens_per_s"]
    return Equation(passed(1.0, FREE, FREE), passed(0.0, 1.0, FREE), max(tokens / rate - moving, 0.1))


def calibrated(speeds: Speeds, runs: list[MeasuredRun]) -> Speeds:
    """`speeds` with what the runs tell."""
    learner_step, learner_flops = _solve([run.learner for run in runs], speeds.learner_step_s)
    engine_step, engine_flops = _solve([run.engine for run in runs], speeds.engine_step_s)
    return replace(
        speeds,
        learner_step_s=learner_step,
        learner_flops=learner_flops,
        engine_step_s=engine_step,
        engine_flops=engine_flops,
    )


def _solve(equations: list[Equation], step_s: float) -> tuple[float, float]:
    """Seconds of a step and flop/s, neither of them negative."""
    steps, flops, seconds = np.array([(e.steps, e.flops, e.seconds) for e in equations]).T
    if len(equations) > 1:
        rows = np.stack([steps / seconds, flops / seconds], axis=1)
        scale = rows.max(axis=0)
        (step, per_flop), *_ = np.linalg.lstsq(rows / scale, np.ones(len(seconds)), rcond=None)
        step, per_flop = step / scale[0], per_flop / scale[1]
        if step >= 0 and per_flop > 0:
            return float(step), float(1 / per_flop)
        step_s = 0.0
    left = seconds - steps * step_s
    if (left <= 0).any():  # the steps alone take longer than was measured
        step_s, left = 0.0, seconds
    return step_s, float(np.median(flops / left))
