"""Memory of a learner rank and of a generator, and what a checkpoint takes, in GiB."""

from dataclasses import dataclass

from iris_ray.config import RunConfig
from iris_ray.memory import (
    BYTES,
    GIB,
    activation_bytes,
    checkpoint_bytes,
    model_states,
    opponent_bytes,
)
from iris_ray.planning.hardware import Hardware
from iris_ray.planning.model_shape import ModelShape
from iris_ray.planning.workload import Workload
from iris_ray.resources import GENERATOR_BYTES, RANK_BYTES, generator_memory, learner_memory

# What torch and its communication hold of a GPU beside tensors, and what vLLM's graphs and passes take. Not
# measured here.
GPU_CONTEXT_BYTES = 1.5 * GIB
# On CPUs a learner's measured peaks are 1.09 to 1.41 times the sum of its parts (docs/planning.md).
TEMPORARIES = 0.3
ENGINE_BYTES = 3 * GIB


@dataclass(frozen=True)
class Footprint:
    """`parts` by name in GiB; they lie on the GPU, or without one in the process. `room`: what there is.

    `host`: what the process asks Ray for, in host memory.
    """

    parts: dict[str, float]
    room: float
    host: float

    @property
    def in_all(self) -> float:
        return sum(self.parts.values())

    @property
    def fits(self) -> bool:
        return self.in_all <= self.room


def learner_footprint(
    config: RunConfig, hardware: Hardware, shape: ModelShape, workload: Workload
) -> Footprint:
    learner = config.learner
    ranks = learner.workers
    states = model_states(config, shape.parameters, shape.trained, ranks, shape.largest_layer)
    prompt, real, written = workload.means()
    longest = int(workload.prompt.max() + workload.real.max() + workload.written.max())
    share = learner.batch_size / min(ranks, learner.batch_size) * (prompt + real + written)
    tokens = max(int(min(learner.micro_batch_tokens, share)), longest)
    responses = int(tokens * (real + written) / (prompt + real + written))
    parts = {
        "weights": states.weights,
        "gradients": states.gradients,
        "optimizer": states.optimizer,
        "gathered layer": states.gathered,
        "opponent": opponent_bytes(config, shape.parameters, shape.trained, ranks),
        "activations": activation_bytes(config, shape, tokens, responses),
        "libraries": GPU_CONTEXT_BYTES if learner.num_gpus else RANK_BYTES,
    }
    room = hardware.node_memory_gib
    if learner.num_gpus:
        room = (hardware.gpu_memory_gib or 0) * learner.num_gpus
        if learner.offload == "parameters":
            del parts["opponent"]
    else:
        parts["offloaded"] = states.offloaded
        parts["temporaries"] = TEMPORARIES * (sum(parts.values()) - RANK_BYTES)
    parts = {name: size / GIB for name, size in parts.items() if size}
    return Footprint(parts, room, learner_memory(config, shape.parameters) / GIB)


def generator_footprint(config: RunConfig, hardware: Hardware, shape: ModelShape) -> Footprint:
    """Per GPU of an engine; its cache takes all that `generation.gpu_memory_utilization` leaves."""
    generation, width = config.generation, BYTES[config.model.dtype]
    host = generator_memory(config, shape.parameters) / GIB
    # An untied head is counted as it is; adapters are small beside it.
    weights = shape.parameters * width / generation.tensor_parallel / GIB
    if not generation.num_gpus:
        parts = {
            "weights": weights,
            "in transit": weights,
            "KV cache": float(generation.kv_cache_gib),
            "libraries": GENERATOR_BYTES / GIB,
        }
        return Footprint(parts, hardware.node_memory_gib, host)
    room = (hardware.gpu_memory_gib or 0) * generation.gpu_memory_utilization
    cache = max(0.0, room - weights - ENGINE_BYTES / GIB)
    parts = {"weights": weights, "KV cache": cache, "libraries": ENGINE_BYTES / GIB}
    return Footprint(parts, room, host)


def cached_tokens(config: RunConfig, footprint: Footprint, shape: ModelShape) -> int:
    """Tokens that fit into one engine's cache."""
    cache = footprint.parts["KV cache"] * GIB * config.generation.tensor_parallel
    return int(cache / shape.kv_bytes(config.model.dtype))


def checkpoint_gib(config: RunConfig, shape: ModelShape) -> dict[str, float]:
    """At the end of an iteration, and within one; pairs not counted."""
    return {
        name: checkpoint_bytes(config, shape.parameters, shape.trained, within) / GIB
        for name, within in (("between_iterations", False), ("within_an_iteration", True))
    }
