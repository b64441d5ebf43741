"""Objectives: functions of one score per response, over the whole batch of an optimiser step."""

from iris_ray.objectives import iris as iris
from iris_ray.objectives import sft as sft
from iris_ray.objectives import space as space
from iris_ray.objectives import spif as spif
from iris_ray.objectives import spin as spin
from iris_ray.objectives import tspin as tspin
from iris_ray.objectives.coefficients import Coefficients, coefficients
from iris_ray.objectives.registry import (
    OBJECTIVES,
    LogProbObjective,
    LogRatioObjective,
    Objective,
    build_objective,
    register_objective,
)

__all__ = [
    "OBJECTIVES",
    "Coefficients",
    "LogProbObjective",
    "LogRatioObjective",
    "Objective",
    "build_objective",
    "coefficients",
    "register_objective",
]
