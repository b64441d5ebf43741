"""Speeds of learner and engine out of runs that were played on the hardware in question.

Each run gives one equation for each side: seconds = count · fixed + factor · work. Of the learner `count` are
its passes over micro-batches, and `work` is their arithmetic; of an engine they are its requests, and its
steps with their arithmetic. One run sets the factor and leaves what is fixed as the hardware's description
has it; runs that differ in batch or model set both, by least squares of the relative errors.

What was measured is longer than that where processes shared cores, or an engine was not full. By how much,
a simulation of the same run tells, and the equations are solved again with it.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from statistics import median

import numpy as np

from iris_ray.config import RunConfig
from iris_ray.errors import ConfigError
from iris_ray.planning.engine_queue import EngineQueue, Request
from iris_ray.planning.hardware import Hardware
from iris_ray.planning.model_shape import ModelShape, model_shape
from iris_ray.planning.planner import SCORING_CORES, Planner
from iris_ray.planning.rates import Speeds
from iris_ray.planning.workload import Workload, written_by
from iris_ray.run_folder import RunFolder

FREE = 1e30  # a rate that costs no time
ROUNDS = 5  # of solving and simulating
LEAST_STEPS = 10  # that a median is taken of


@dataclass(frozen=True)
class Equation:
    """`seconds` = `count` · fixed + factor · `work`."""

    count: float
    work: float
    seconds: float


@dataclass(frozen=True)
class MeasuredRun:
    """What a run tells: seconds that each side was busy, and how its pairs were long.

    `step_alone_s`: a step of the first pass once all is written, a median; `slower_beside_writing`: that of
    steps before, divided by it. `None` where there are too few of either.
    """

    name: str
    config: RunConfig
    shape: ModelShape
    workload: Workload
    iterations: int
    learner_s: float
    engine_s: float
    step_alone_s: float | None
    slower_beside_writing: float | None

    @classmethod
    def read(cls, path: Path) -> "MeasuredRun":
        """Raises `ConfigError` if it holds no run, or one that did not finish an iteration."""
        folder = RunFolder.existing(path)
        config, summary = folder.read_config(), folder.read_summary()
        rounds = summary.get("iterations")
        if not rounds:
            raise ConfigError(f"--measured {path}: this run finished no iteration. Name one that did.")
        prompt, real, written = written_by(folder)
        data = summary["data"]
        first_pass = rounds[0]["steps"] // config.schedule.epochs
        beside, alone = _steps(folder, first_pass)
        known = min(len(beside), len(alone)) >= LEAST_STEPS
        return cls(
            path.name,
            config,
            model_shape(config),
            Workload(data["train"], data["holdout"], prompt, real, written),
            len(rounds),
            sum(entry["seconds"] - entry["learner_waited_seconds"] for entry in rounds),
            float(written.sum()) / summary["throughput"]["generated_tokens_per_s"],
            median(alone) if known else None,
            median(beside) / median(alone) if known else None,
        )

    def planner(self, hardware: Hardware, speeds: Speeds) -> Planner:
        return Planner(self.config, hardware, self.shape, self.workload, speeds)

    def engine_cores(self, hardware: Hardware) -> float:
        """That a generator's writing occupied, by how much slower the learner was beside it."""
        assert self.slower_beside_writing
        costs = self.planner(hardware, Speeds.of(hardware, self.config)).costs()
        demand = self.slower_beside_writing * hardware.cores - costs.learner_cores
        scoring = SCORING_CORES * (self.config.learner.reference == "generator")
        return demand / self.config.generation.count - scoring

    def equations(self, hardware: Hardware, speeds: Speeds) -> tuple[Equation, Equation]:
        """Of learner and engine, alone and kept full: what was measured, over how much longer both take in
        a simulation at these `speeds`."""
        found = self.planner(hardware, speeds).simulate(self.iterations)

        def training(**changed: float) -> float:
            return self.iterations * self.planner(hardware, replace(speeds, **changed)).training_s()

        def writing(**changed: float) -> float:
            return self._replayed(hardware, replace(speeds, **changed))

        def step(**changed: float) -> float:
            return self.planner(hardware, replace(speeds, **changed)).step_s(first_pass=True)

        nothing = {"learner_pass_s": 0.0, "learner_flops": FREE}
        if self.step_alone_s is None:
            learner = _equation(training, "learner_pass_s", nothing, self.learner_s, found["learner_busy_s"])
        else:
            learner = _equation(step, "learner_pass_s", nothing, self.step_alone_s, step())
        nothing = {"engine_request_s": 0.0, "engine_step_s": 0.0, "engine_flops": FREE}
        engine = _equation(writing, "engine_request_s", nothing, self.engine_s, found["generators_busy_s"])
        return learner, engine

    def _replayed(self, hardware: Hardware, speeds: Speeds) -> float:
        """The same requests once more through an engine's queue; seconds of all engines together."""
        work, config = self.workload, self.config
        count, scores = config.generation.count, config.learner.reference == "generator"
        lengths = zip(work.prompt.tolist(), work.real.tolist(), work.written.tolist(), strict=True)
        pairs = [Request(None, x, y, scores * (x + other)) for x, other, y in lengths]
        asked = min(config.evaluation.prompts, work.holdout) * self.iterations
        questions = [Request(None, *pairs[index % len(pairs)][1:3]) for index in range(asked)]
        queue: EngineQueue[None] = EngineQueue(
            self.planner(hardware, speeds).engine, config.generation.concurrency
        )
        queue.admit(pairs[::count] + questions[::count])
        return queue.advance(np.inf, 0)[0] * count


def _equation(
    alone: Callable[..., float], fixed: str, nothing: dict[str, float], measured_s: float, simulated_s: float
) -> Equation:
    """`alone` tells the seconds at other speeds: with `nothing` else each part stands by itself."""
    rest = alone(**nothing)
    count = alone(**nothing | {fixed: 1.0}) - rest
    work = alone(**{fixed: 0.0}) - rest
    longer = simulated_s / alone()
    return Equation(count, work, max(measured_s / longer - rest, 1e-3 * measured_s))


def _steps(folder: RunFolder, first_pass: int) -> tuple[list[float], list[float]]:
    """Seconds of the steps of a first pass, which has so many: beside writing, and when all was written."""
    beside: list[float] = []
    alone: list[float] = []
    written = True
    lines = folder.metrics.read_text().splitlines() if folder.metrics.exists() else []
    for before, after in pairwise(map(json.loads, lines)):
        if after["event"] == "written":
            written = True
        elif after["event"] == "step" and after["step"] == 1:
            written = False
        if (before["event"], after["event"]) == ("step", "step") and after["step"] <= first_pass:
            (alone if written else beside).append(after["time"] - before["time"])
    return beside, alone


def calibrated(speeds: Speeds, runs: list[MeasuredRun], hardware: Hardware) -> Speeds:
    """`speeds` with what the runs tell."""
    found = speeds
    cores = [run.engine_cores(hardware) for run in runs if run.slower_beside_writing]
    if cores and not hardware.gpus_per_node:
        found = replace(found, engine_cores=max(speeds.engine_cores, median(cores)))
    for _ in range(ROUNDS):
        learner, engine = zip(*(run.equations(hardware, found) for run in runs), strict=True)
        pass_s, training = solve(learner, speeds.learner_pass_s)
        request_s, writing = solve(engine, speeds.engine_request_s)
        found = replace(
            found,
            learner_pass_s=pass_s,
            learner_flops=found.learner_flops / training,
            engine_request_s=request_s,
            engine_step_s=found.engine_step_s * writing,
            engine_flops=found.engine_flops / writing,
        )
    return found


def solve(equations: Sequence[Equation], fixed: float) -> tuple[float, float]:
    """What is fixed, and the factor; neither is negative, and one equation leaves `fixed` as it is."""
    count, work, seconds = np.array([(e.count, e.work, e.seconds) for e in equations]).T
    if len(equations) > 1:
        rows = np.stack([count / seconds, work / seconds], axis=1)
        scale = rows.max(axis=0)
        (each, factor), *_ = np.linalg.lstsq(rows / scale, np.ones(len(seconds)), rcond=None)
        if each >= 0 and factor > 0:
            return float(each / scale[0]), float(factor / scale[1])
        fixed = 0.0
    left = seconds - count * fixed
    if (left <= 0).any():  # what is fixed takes longer alone than was measured
        fixed, left = 0.0, seconds
    return fixed, float(np.median(left / work))
