"""Modules of other people, named in a recipe."""

import math
import sys

import pytest
import torch
from conftest import MEANS, own_module, run_config

from iris_ray.alpha import SCHEDULES
from iris_ray.errors import ConfigError
from iris_ray.game import Game
from iris_ray.gap import GAP_ESTIMATORS
from iris_ray.objectives import OBJECTIVES, build_objective
from iris_ray.plugins import load_plugins

OBJECTIVE = """
from __future__ import annotations

import torch
from pydantic import PositiveFloat

from iris_ray.objectives import register_objective


@register_objective("scaled")
def scaled(real: torch.Tensor, synthetic: torch.Tensor, *, scale: PositiveFloat = 2.0) -> torch.Tensor:
    return scale * (synthetic.mean() - real.mean())
"""
ORDERS = """
from iris_ray.alpha import SCHEDULES
from iris_ray.gap import register_gap_estimator


@SCHEDULES.register("twice")
def twice(settings, gaps, iterations):
    return 2 * gaps[-1]


@register_gap_estimator("length", at="start")
def length(means):
    return abs(means.tokens_real - means.tokens_synthetic)
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder that modules are found in. What they register is taken out again."""
    loaded = set(sys.modules)
    registered = [(registry, set(registry)) for registry in (OBJECTIVES, SCHEDULES, GAP_ESTIMATORS)]
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    for name in set(sys.modules) - loaded:
        if str(tmp_path) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]
    for registry, names in registered:
        for name in set(registry) - names:
            registry.discard(name)


def load(*names: str) -> None:
    load_plugins(run_config(run={"plugins": list(names)}))


def test_a_recipe_without_plugins_loads_nothing():
    before = set(sys.modules)
    load()
    assert set(sys.modules) == before


def test_a_module_registers_an_objective(folder):
    (folder / "their_objectives.py").write_text(OBJECTIVE)
    with pytest.raises(ConfigError, match="'scaled' does not exist"):
        build_objective("scaled")
    load("their_objectives")
    assert build_objective("scaled", scale=3).options == {"scale": 3.0}
    with pytest.raises(ConfigError, match=r"objective\.options\.scale: -1 does not fit"):
        build_objective("scaled", scale=-1)
    with pytest.raises(ConfigError, match=r"Objectives: iris, scaled, sft,"):
        build_objective("none")


def test_a_module_in_a_package_registers_a_schedule_and_an_estimator(folder):
    (folder / "their_package").mkdir()
    (folder / "their_package" / "__init__.py").touch()
    (folder / "their_package" / "orders.py").write_text(ORDERS)
    load("their_package.orders")
    opened = Game(run_config(alpha={"schedule": "twice", "gap": "length", "initial_gap": 0.7})).next_round(0)
    assert opened.alpha == 1.4


def test_the_module_that_the_docs_show(folder):
    (folder / "my_game.py").write_text(own_module())
    load("my_game")
    exponential = build_objective("exponential", beta=0.5)
    loss = exponential(torch.tensor([2.0, 0.0]), torch.tensor([1.0]), alpha=2)
    assert loss.item() == pytest.approx((math.exp(-1) + 1) / 2 + math.exp(1))
    settings = {"schedule": "average", "gap": "lengths", "initial_gap": 0.7, "options": {"gain": 0.5}}
    game = Game(run_config(alpha=settings))
    assert game.next_round(0).alpha == 1 + 0.5 * 0.7
    game.measured_end(MEANS)
    assert game.next_round(1).alpha == pytest.approx(1 + 0.5 * (0.7 + 0.4) / 2)


def test_loading_twice_is_loading_once(folder):
    """Every actor of a process loads them."""
    (folder / "their_objectives.py").write_text(OBJECTIVE)
    load("their_objectives")
    entry = OBJECTIVES["scaled"]
    load("their_objectives", "their_objectives")
    assert OBJECTIVES["scaled"] is entry


@pytest.mark.parametrize("name", ["no_such_module", "no_such_package.module", "json.no_such_module"])
def test_a_missing_module_is_named(folder, name):
    with pytest.raises(ConfigError, match=rf"^run\.plugins: there is no module '{name}'\. Install it"):
        load(name)


def test_those_before_a_missing_module_are_loaded(folder):
    (folder / "their_objectives.py").write_text(OBJECTIVE)
    with pytest.raises(ConfigError, match="'no_such_module'"):
        load("their_objectives", "no_such_module")
    assert "scaled" in OBJECTIVES


@pytest.mark.parametrize(
    ("line", "error"),
    [
        ("import no_such_library", ModuleNotFoundError),
        ("from json import no_such_name", ImportError),
        ("1 / 0", ZeroDivisionError),
    ],
)
def test_what_fails_inside_a_plugin_is_the_plugins_own_error(folder, line, error):
    (folder / "their_broken_module.py").write_text(line)
    with pytest.raises(error):
        load("their_broken_module")


def test_a_plugin_that_misses_a_module_of_its_own_package_fails_itself(folder):
    (folder / "their_package").mkdir()
    (folder / "their_package" / "__init__.py").touch()
    (folder / "their_package" / "plugin.py").write_text("import their_package.missing")
    with pytest.raises(ModuleNotFoundError, match=r"their_package\.missing"):
        load("their_package.plugin")
