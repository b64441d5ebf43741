"""The compiled kernels."""

import ctypes
from functools import cache
from pathlib import Path

from iris_ray.learner.compiled_ops import compiled_library

HERE = Path(__file__).parent
FLAGS = ("-fopenmp", "-fno-math-errno", "-fno-trapping-math")


@cache
def load_kernels() -> ctypes.CDLL:
    """All kernels as one library; the first call on a machine compiles it."""
    return ctypes.CDLL(str(compiled_library("iris_kernels", sorted(HERE.glob("*.cpp")), FLAGS)))
