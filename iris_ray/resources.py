"""What a run needs of a cluster, and whether it is there."""

from collections.abc import Mapping
from dataclasses import dataclass

from iris_ray.config import RunConfig
from iris_ray.errors import ResourceError

GIB = 1 << 30
BYTES = {"float32": 4, "bfloat16": 2}
# Before any weights, measured: an actor, vLLM's core and its worker; a rank with DeepSpeed.
GENERATOR_BYTES = 2.5 * GIB
RANK_BYTES = 1.0 * GIB


@dataclass(frozen=True)
class Need:
    """`count` processes of a role; resources are per process, memory in bytes of the host."""

    role: str
    count: int
    cpus: float
    gpus: float
    memory: int


def generator_memory(config: RunConfig, parameters: int) -> int:
    """Host memory of a generator in bytes: weights, a bucket in transit, and the KV cache on CPU."""
    weights = parameters * BYTES[config.model.dtype]
    cache = 0 if config.generation.num_gpus else config.generation.kv_cache_gib * GIB
    return int(GENERATOR_BYTES + 2 * weights + cache)


def learner_memory(config: RunConfig, parameters: int) -> int:
    """Host memory of a learner rank in bytes.

    Policy and opponent in `model.dtype`, their copy on the way out; on CPU also float32 gradients, master
    weights and AdamW's two moments. With LoRA the model alone: adapters are small. No opponent where the
    generators are the reference.
    """
    models = 3 if config.learner.reference == "learner" else 2
    weights = models * parameters * BYTES[config.model.dtype]
    if config.model.lora:
        return int(RANK_BYTES + weights)
    states = 0 if config.learner.num_gpus else 16 * parameters
    return int(RANK_BYTES + weights + states)


def needs(config: RunConfig, parameters: int) -> list[Need]:
    """All processes of a run that compute; the control actors ask for nothing."""
    generation, learner = config.generation, config.learner
    generator_bytes, rank_bytes = generator_memory(config, parameters), learner_memory(config, parameters)
    return [
        Need("generator", generation.count, generation.num_cpus, generation.num_gpus, generator_bytes),
        Need("learner", learner.workers, learner.num_cpus, learner.num_gpus, rank_bytes),
    ]


def check_resources(needed: list[Need], available: Mapping[str, float]) -> None:
    """Raise `ResourceError` if the free resources of the cluster (Ray's names) cannot hold `needed`."""
    demands = {
        "CPU": sum(need.count * need.cpus for need in needed),
        "GPU": sum(need.count * need.gpus for need in needed),
        "memory": sum(need.count * need.memory for need in needed),
    }
    missing = {name: demand for name, demand in demands.items() if demand > available.get(name, 0) + 1e-6}
    if not missing:
        return
    lines = [
        f"  {name}: {_amount(name, demand)} needed, {_amount(name, available.get(name, 0))} free"
        for name, demand in missing.items()
    ]
    plan = ", ".join(
        f"{need.count} × {need.role} with {need.cpus:g} CPU, {need.gpus:g} GPU, {need.memory / GIB:.1f} GiB"
        for need in needed
    )
    raise ResourceError(
        "the Ray cluster cannot hold this run:\n" + "\n".join(lines) + f"\nIt asks for {plan}. Lower "
        "generation.count, generation.num_cpus, learner.workers or learner.num_cpus, or add nodes."
    )


def _amount(name: str, value: float) -> str:
    return f"{value / GIB:.1f} GiB" if name == "memory" else f"{value:g}"
