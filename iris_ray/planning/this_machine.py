"""The hardware at hand, for plans of runs on this machine."""

import os
import time

import psutil
import torch

from iris_ray.config import RunConfig
from iris_ray.errors import ConfigError
from iris_ray.memory import GIB
from iris_ray.planning.hardware import Hardware

SIZE = 1024  # of the square matrices that are multiplied
TIMES = 3


def this_machine(config: RunConfig) -> Hardware:
    """Cores and memory of this machine, and a core's best matrix product. Takes under a second.

    Raises `ConfigError` for recipes that ask for GPUs: their peaks stand in data sheets.
    """
    if config.generation.num_gpus or config.learner.num_gpus:
        raise ConfigError(
            "--hardware: the recipe asks for GPUs, so describe them in a file: docs/planning.md shows one."
        )
    return Hardware(
        cores_per_node=os.cpu_count() or 1,
        node_memory_gib=psutil.virtual_memory().total / GIB,
        matrix_tflops=_matrix_flops(config.model.dtype) / 1e12,
        bandwidth_gb_s=10,
    )


def _matrix_flops(dtype: str) -> float:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    factor = torch.ones(SIZE, SIZE, dtype=getattr(torch, dtype))
    seconds = []
    for _ in range(1 + TIMES):  # the first one warms up
        begin = time.perf_counter()
        factor @ factor
        seconds.append(time.perf_counter() - begin)
    torch.set_num_threads(threads)
    return 2 * SIZE**3 / min(seconds[1:])
