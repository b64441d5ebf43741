"""What is varied, around a small base job."""

import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

MAX_PROMPT_TOKENS = 48
CONCURRENCY = 64
MAX_AHEAD = 256
LEARNING_RATE = 1e-9  # so that the model stays what it is, whatever is varied: random, and without an end


@dataclass(frozen=True)
class Shape:
    """Of a model, whose MLPs are `mlp` times as wide as the model."""

    hidden: int = 128
    layers: int = 4
    heads: int = 4
    mlp: int = 4


@dataclass(frozen=True)
class Job:
    """A run: `pairs` of an iteration, drawn from `prompts`; responses of exactly `response_tokens`."""

    generators: int = 1
    response_tokens: int = 16
    shape: Shape = Shape()
    batch: int = 32
    prompts: int = 4096
    iterations: int = 3
    pairs: int = 1280

    def recipe(self, folder: Path, model: Path, data: Path) -> dict[str, Any]:
        """The learner has a core, the generators share the others: all of them if there are but two."""
        cores = len(os.sched_getaffinity(0)) - 1
        share = cores / self.generators
        return {
            "run": {"name": "run", "folder": str(folder)},
            "model": {"path": str(model), "dtype": "float32"},
            "data": {
                "path": str(data),
                "holdout": 0,
                "max_prompt_tokens": MAX_PROMPT_TOKENS,
                "max_response_tokens": self.response_tokens,
            },
            "schedule": {
                "iterations": self.iterations,
                "epochs": 1,
                "prompts_per_iteration": self.pairs,
            },
            "generation": {
                "count": self.generators,
                # Ray takes parts of a core only below 1.
                "num_cpus": int(share) if share >= 1 else int(100 * share) / 100,
                "enforce_eager": True,
                "concurrency": CONCURRENCY,
                "max_ahead": MAX_AHEAD,
            },
            "learner": {
                "batch_size": self.batch,
                "num_cpus": 1,
                "zero_stage": 0,
                "learning_rate": LEARNING_RATE,
                "lr_schedule": "constant",
            },
            "checkpoint": {"every_steps": None},
            "evaluation": {"prompts": 0},
        }


@dataclass(frozen=True)
class Point:
    """A place on a curve. Values are what the curve is called after; of models, millions of parameters."""

    curve: str
    value: int
    job: Job


# Fewer pairs where each takes longer, so that a point takes minutes: by tokens; by millions of parameters.
PAIRS_OF_LENGTH = {16: 1280, 64: 640, 128: 384, 256: 192, 512: 96}
SHAPES = {
    1: (Shape(), 1280),
    3: (Shape(256, 4, 4, 3), 640),
    10: (Shape(384, 6, 6, 3), 320),
    30: (Shape(640, 6, 10, 3), 128),
    100: (Shape(1024, 8, 16, 3), 64),
}
OF_A_DATASET = Job(iterations=10, pairs=96)  # as few as the smallest has
ITERATIONS = 1000
LITTLE = Job(pairs=16, batch=8)

BASE = Job()
CURVES: dict[str, list[Point]] = {
    "generators": [Point("generators", n, replace(BASE, generators=n)) for n in (1, 2, 3, 4)],
    "length": [
        Point("length", n, replace(BASE, response_tokens=n, pairs=pairs))
        for n, pairs in PAIRS_OF_LENGTH.items()
    ],
    "model": [
        Point("model", n, replace(BASE, shape=shape, pairs=pairs)) for n, (shape, pairs) in SHAPES.items()
    ],
    "batch": [Point("batch", n, replace(BASE, batch=n)) for n in (8, 16, 32, 64, 128)],
    "dataset": [Point("dataset", 10**n, replace(OF_A_DATASET, prompts=10**n)) for n in (2, 3, 4, 5, 6)],
    "iterations": [Point("iterations", ITERATIONS, replace(LITTLE, iterations=ITERATIONS))],
}


def points(curves: list[str], values: list[int]) -> Iterator[Point]:
    """Those of the curves, of all `values` or these alone; of iterations there may be any number."""
    for curve in curves:
        if curve == "iterations" and values:
            yield from (Point(curve, n, replace(LITTLE, iterations=n)) for n in values)
        else:
            yield from (point for point in CURVES[curve] if not values or point.value in values)
