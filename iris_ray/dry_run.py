"""What a run would do, told without doing it."""

import math
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from iris_ray.config import RunConfig
from iris_ray.data.rows import read_rows
from iris_ray.game import Game
from iris_ray.hub import data_download, model_download
from iris_ray.learner.optimizer import learning_rate
from iris_ray.plugins import configured_objective
from iris_ray.preparation import Prepared, check_free, check_names, count_parameters, prepare
from iris_ray.resources import needs
from iris_ray.run_folder import RunFolder


def dry_run(config: RunConfig) -> dict[str, Any]:
    """Check what can be checked on this machine, fetch no weights and no data, start nothing.

    Returns plain JSON types; `None` stands for what is not known yet. Raises an `IrisRayError` for everything
    that the run itself would refuse before its actors start.
    """
    check_names(config)
    check_free(config)
    model, data = model_download(config), data_download(config)
    described = model is None or model.bytes is not None  # then its configuration and tokenizer can be had
    prepared: Prepared | None = None
    if described and data is None:
        with TemporaryDirectory() as folder:
            prepared = prepare(config, RunFolder(Path(folder)))
            parameters: int | None = prepared.parameters
    else:
        parameters = count_parameters(config) if described and not config.model.scratch else None
    if prepared:
        train: int | None = prepared.data.report.train
    else:
        train = config.data.subset if data else _count_rows(config)
    return {
        "run": config.run.name,
        "folder": str(config.folder),
        "parameters": parameters,
        "data": prepared.data.report.to_dict() if prepared else None,
        "train": train,
        "objective": config.objective.name,
        "has_order": configured_objective(config).has_order,
        "iterations": _iterations(config, train),
        "processes": [
            asdict(need) | ({} if parameters else {"memory": None}) for need in needs(config, parameters or 0)
        ],
        "downloads": [asdict(each) for each in (model, data) if each],
        "settings": config.model_dump(mode="json"),
    }


def _count_rows(config: RunConfig) -> int:
    """Pairs to train on if none of the rows that can be read is too long."""
    readable = sum(not row.problem for row in read_rows(config.data)) - config.data.holdout
    return min(readable, config.data.subset or readable)


def _iterations(config: RunConfig, train: int | None) -> list[dict[str, Any]]:
    """One entry an iteration; `alpha` is `None` where it will follow from a gap that is measured."""
    schedule, orders = config.schedule, _orders(config)
    drawn = [count for count in (train, schedule.prompts_per_iteration) if count is not None]
    pairs = min(drawn) * config.generation.n if drawn else None
    steps = None if pairs is None else schedule.epochs * math.ceil(pairs / config.learner.batch_size)
    return [
        {
            "iteration": iteration,
            "pairs": pairs,
            "steps": steps,
            "learning_rate": learning_rate(config.learner, iteration),
            "alpha": order,
            "options": config.objective.options_in(iteration),
        }
        for iteration, order in enumerate(orders, 1)
    ]


def _orders(config: RunConfig) -> list[float | None]:
    game, count = Game(config), config.schedule.iterations
    known = [config.alpha.initial_gap] if game.estimator.at == "end" else []
    orders: list[float | None] = []
    for iteration in range(1, count + 1):
        # Whether an order depends on gaps to come is the schedule's to say: it is asked with two of them.
        gaps = [(known + [unknown] * iteration)[:iteration] for unknown in (0.0, 1.0)]
        first, second = (game.schedule(config.alpha, each, count) for each in gaps)
        orders.append(first if first == second else None)
    return orders
