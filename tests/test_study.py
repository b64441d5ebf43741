"""The method study: a cell is repeatable, its analysis honest."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import multiprocessing

from benchmarks.method.analysis import Estimate, Study
from benchmarks.method.cell import LEARNING_RATES, Cell, play, start_weights
from benchmarks.method.methods import MAIN_METHODS, METHODS
from benchmarks.method.results import Row, append, load, missing, values
from benchmarks.method.worlds import EARLY_WORLDS, WORLDS, build_world
from iris_ray.game import Game
from iris_ray.objectives import build_objective

CELL = Cell("too small", "IRIS margin/sequence c=0.5", 3e-4, seed=7)


def play_twice(_: int, path: str) -> None:
    start = start_weights(CELL.world, CELL.seed)
    torch.save([play(CELL, start), play(CELL, start)], path)


def test_a_cell_comes_out_the_same_again(tmp_path):
    # DeepSpeed's process group stays in a process of its own.
    multiprocessing.spawn(play_twice, (str(tmp_path / "played"),), nprocs=1)
    first, second = torch.load(tmp_path / "played")
    assert first["iterations"] == second["iterations"]
    assert len(first["iterations"]) == 6
    assert not first["diverged"]
    start, end = first["iterations"][0], first["iterations"][-1]
    assert end["kl"] != start["kl"]
    assert [step["alpha"] for step in first["iterations"][1:2]] == [1.0]
    for step in first["iterations"][1:]:
        assert step["alpha"] == pytest.approx(1 + 0.5 * step["gap"])


def test_every_method_is_one_the_service_knows():
    from benchmarks.method.cell import _config

    for method in METHODS.values():
        config = _config({"objective": method.objective, "alpha": method.alpha}, 1e-4, 0)
        build_objective(config.objective.name, **config.objective.options)
        Game(config)
    assert set(MAIN_METHODS) < set(METHODS)


@pytest.mark.parametrize("name", EARLY_WORLDS)
def test_an_early_start_is_the_same_world_with_less_warm_up(name):
    early, late = build_world(name, 3), build_world(name.removesuffix(", early start"), 3)
    assert early.name == name
    assert early.warmup_steps < late.warmup_steps
    assert early.annotate(3) == late.annotate(3)
    assert late.name in WORLDS


def entry(cell: Cell, kl: float) -> dict[str, Any]:
    """What playing a cell returns: it ends at `kl`, or early if that is infinite."""
    steps = [2.0] if math.isinf(kl) else [2.0, 1.8, 1.6, 1.4, 1.2, kl]
    iterations = [{"kl": value, "tv": value / 4, "validity": 1 - value / 4} for value in steps]
    return vars(cell) | {"diverged": math.isinf(kl), "seconds": 1.0, "iterations": iterations}


def results(method: str, finals: dict[float, list[float]]) -> dict[Cell, Row]:
    """Final KL of each seed by learning rate; infinite where it diverged."""
    cells = (
        (Cell("w", method, rate, seed), kl) for rate, kls in finals.items() for seed, kl in enumerate(kls)
    )
    return {cell: values(entry(cell, kl)) for cell, kl in cells}


SLOW, MIDDLE, FAST = LEARNING_RATES


def test_a_seed_does_not_choose_its_own_learning_rate():
    finals = {SLOW: [1.0, 1.0, 1.0], MIDDLE: [0.1, 1.1, 1.1], FAST: [3.0, 3.0, 3.0]}
    study = Study(results("m", finals), "w")
    assert [study.rate("m", seed) for seed in range(3)] == [SLOW, MIDDLE, MIDDLE]
    assert study.chosen("kl", "m") == [1.0, 1.1, 1.1]


def test_a_diverged_run_counts_as_the_worst():
    study = Study(results("m", {SLOW: [1.0, 1.0], MIDDLE: [0.5, math.inf], FAST: [0.4, 0.4]}), "w")
    assert study.value("kl", "m", MIDDLE, 1) == math.inf
    assert (study.value("tv", "m", MIDDLE, 1), study.value("validity", "m", MIDDLE, 1)) == (1, 0)
    assert study.worsened("m", MIDDLE) == math.inf
    assert study.worsened("m", FAST) == pytest.approx(0.2)


def test_seeds_count_once_they_are_complete():
    cells = results("m", {SLOW: [1.0, 1.0], MIDDLE: [1.0, 1.0], FAST: [1.0]})
    assert Study(cells, "w").seeds == {"m": [0]}


def test_differences_are_paired():
    one = {rate: [1.0, 2.0, 3.0] for rate in LEARNING_RATES}
    other = {rate: [0.9, 1.9, 2.9] for rate in LEARNING_RATES}
    study = Study(results("a", one) | results("b", other), "w")
    difference = study.against("a", "b")
    assert (difference.mean, difference.half_width) == (pytest.approx(0.1), pytest.approx(0, abs=1e-12))


def test_an_interval_is_students():
    estimate = Estimate.of([1.0, 2.0, 3.0, 4.0, 5.0])
    assert (estimate.mean, estimate.half_width) == (3, pytest.approx(2.776 * math.sqrt(2.5 / 5)))
    assert Estimate.of([1.0]).half_width == math.inf


def test_results_are_resumed_behind_a_line_that_was_cut(tmp_path: Path):
    path = tmp_path / "deep" / "cells.csv"
    cells = [Cell("w", "m", rate, 0) for rate in LEARNING_RATES]
    append(path, entry(cells[0], 1.23456789))
    with path.open("a") as file:
        file.write("w,m,0.0003,0,1.0,0.")
    assert missing(cells, path) == cells[1:]
    assert load(path)[cells[0]]["kl_5"] == 1.2346
    append(path, entry(cells[1], math.inf))
    append(path, entry(cells[2], 1.0))
    assert missing(cells, path) == []
    assert "kl_5" not in load(path)[cells[1]]
    assert Study(load(path), "w").value("kl", "m", cells[1].learning_rate, 0) == math.inf
