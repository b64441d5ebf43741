"""Objectives: functions of the two vectors of sequence log-ratios."""

from iris_ray.objectives import iris as iris
from iris_ray.objectives.coefficients import Coefficients, coefficients
from iris_ray.objectives.registry import Objective, build_objective, register_objective

__all__ = ["Coefficients", "Objective", "build_objective", "coefficients", "register_objective"]
