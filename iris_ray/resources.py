"""What a run needs of a cluster, and what of it is not there."""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field

from iris_ray.config import Generation, Learner, RunConfig
from iris_ray.memory import BYTES, GIB, model_states, opponent_bytes

# Before any weights, measured: an actor, vLLM's core and its worker; a rank with DeepSpeed.
GENERATOR_BYTES = 2.5 * GIB
RANK_BYTES = 1.0 * GIB


@dataclass(frozen=True)
class Need:
    """`count` processes of a role; resources are per process, memory in bytes of the host.

    `custom` are Ray's custom resources, `labels` a Ray label selector of the nodes.
    """

    role: str
    count: int
    cpus: float
    gpus: float
    memory: int
    custom: Mapping[str, float] = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)

    @property
    def resources(self) -> dict[str, float]:
        """Of one process, by Ray's names, without those that it does not ask for."""
        amounts = {"CPU": self.cpus, "GPU": self.gpus, "memory": self.memory, **self.custom}
        return {name: amount for name, amount in amounts.items() if amount}

    def __str__(self) -> str:
        amounts = ", ".join(f"{_amount(name, value)} {name}" for name, value in self.resources.items())
        where = ", ".join(f"{label}={value}" for label, value in self.labels.items())
        return f"{self.count} × {self.role} with {amounts}" + (f" on nodes with {where}" if where else "")


def generator_memory(config: RunConfig, parameters: int) -> int:
    """Host memory of a generator in bytes: weights, a bucket in transit, and the KV cache on CPU."""
    weights = parameters * BYTES[config.model.dtype]
    cache = 0 if config.generation.num_gpus else config.generation.kv_cache_gib * GIB
    return int(GENERATOR_BYTES + 2 * weights + cache)


def learner_memory(config: RunConfig, parameters: int) -> int:
    """Host memory of a learner rank in bytes.

    Policy and opponent in `model.dtype`, their copy on the way out (with ZeRO 3 on GPUs the model once: rank
    0 collects it in the end); on CPU also gradients and the optimiser's states, on GPUs what of them is
    offloaded. With LoRA the model alone: adapters are small. No opponent where the generators are the
    reference.
    """
    weights = parameters * BYTES[config.model.dtype]
    if config.model.lora:
        models = 3 if config.learner.reference == "learner" else 2
        return int(RANK_BYTES + models * weights)
    # On CPUs as of a rank alone, whatever ZeRO splits over several: on the safe side.
    ranks = config.learner.workers if config.learner.num_gpus else 1
    states = model_states(config, parameters, parameters, ranks)
    trained = states.offloaded
    if not config.learner.num_gpus:
        trained += states.gradients + states.optimizer
    opponent = opponent_bytes(config, parameters, parameters, ranks)
    models = 1 if config.learner.num_gpus and config.learner.zero_stage == 3 else 2
    return int(RANK_BYTES + models * weights + opponent + trained)


def needs(config: RunConfig, parameters: int) -> list[Need]:
    """All processes of a run that compute; the control actors ask for nothing."""
    generation, learner = config.generation, config.learner
    return [
        _need("generator", generation.count, generation, generator_memory(config, parameters)),
        _need("learner", learner.workers, learner, learner_memory(config, parameters)),
    ]


def _need(role: str, count: int, asks: Generation | Learner, memory: int) -> Need:
    return Need(role, count, asks.num_cpus, asks.num_gpus, memory, asks.resources, asks.labels)


def missing(needed: list[Need], there: Mapping[str, float]) -> list[str]:
    """A line for each of Ray's resources that `needed` takes more of than there is in all."""
    demands: defaultdict[str, float] = defaultdict(float)
    for need in needed:
        for name, amount in need.resources.items():
            demands[name] += need.count * amount
    return [
        f"{name}: {_amount(name, demand)} needed, {_amount(name, there.get(name, 0))} free"
        for name, demand in demands.items()
        if demand > there.get(name, 0) + 1e-6
    ]


def _amount(name: str, value: float) -> str:
    return f"{value / GIB:.1f} GiB" if name == "memory" else f"{value:g}"
