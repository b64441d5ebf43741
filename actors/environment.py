"""Environment variables of the processes that compute."""

import math

from iris_ray.config import Generation, Learner
from iris_ray.search_path import PATH

CPU_LEARNER = {
    "DS_ACCELERATOR": "cpu",
    # A step frees large tensors and asks for them again. Giving them back to the system in between costs a
    # page fault for every 4 KiB: measured, a seventh of a small model's step.
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(1 << 40),
}


def generator_environment(generation: Generation) -> dict[str, str]:
    return {
        "PATH": PATH,
        "OMP_NUM_THREADS": str(max(1, math.floor(generation.num_cpus))),
        "VLLM_CPU_KVCACHE_SPACE": str(generation.kv_cache_gib),
        # Ray places the actors; an engine that binds itself would pick the same cores as its neighbour.
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_NO_USAGE_STATS": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }


def learner_environment(learner: Learner) -> dict[str, str]:
    environment = {
        "PATH": PATH,
        "OMP_NUM_THREADS": str(max(1, math.floor(learner.num_cpus))),
        "TOKENIZERS_PARALLELISM": "false",
    }
    return environment if learner.num_gpus else environment | CPU_LEARNER
