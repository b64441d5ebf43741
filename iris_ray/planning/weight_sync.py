"""Seconds that a weights version takes from the learner to the generators (docs/sync.md)."""

import math
from dataclasses import dataclass

from iris_ray.config import RunConfig
from iris_ray.memory import BYTES
from iris_ray.planning.hardware import Hardware
from iris_ray.planning.model_shape import ModelShape
from iris_ray.planning.rates import EngineRates

# Measured on two cores (docs/sync.md): getting ready goes on at about 0.7 GB/s, writing beside it, and a call
# into an engine costs some milliseconds.
COPY_BYTES_PER_S = 0.7e9
PAUSE_S = 0.01
CALLS_S = 0.03
HOST_COPY_BYTES_PER_S = 10e9


@dataclass(frozen=True)
class SyncSeconds:
    """`blocked`: the learner; `ready`: fetching beside writing; `still`: the engine stands still; `probe`."""

    blocked: float
    ready: float
    still: float
    probe: float

    @property
    def in_all(self) -> float:
        return self.ready + self.still + self.probe


def published_bytes(config: RunConfig, shape: ModelShape) -> int:
    return (shape.trained if config.model.lora else shape.parameters) * BYTES[config.model.dtype]


def probe_s(config: RunConfig, engine: EngineRates, mean_length: float) -> float:
    return config.sync.probe_sequences * engine.read_s(mean_length, scored=True) + CALLS_S / 3


def sync_seconds(
    config: RunConfig,
    hardware: Hardware,
    shape: ModelShape,
    engine: EngineRates,
    generators: int,
    mean_length: float,
    transport: str,
) -> SyncSeconds:
    """Of one version, to all generators.

    `object_store`: bytes reach a node once, from any node that has them, so that the nodes that have them
    double with each hop (a bound, not measured). `nccl`, `gloo`: one broadcast, for which learner and engines
    stand still.
    """
    size = published_bytes(config, shape)
    probe = probe_s(config, engine, mean_length)
    per_node = max(1, hardware.gpus_per_node // max(1, config.generation.tensor_parallel))
    if not hardware.gpus_per_node:
        per_node = max(1, hardware.cores_per_node)
    nodes = min(hardware.nodes, math.ceil(generators / per_node))
    within, between = hardware.within_node_gb_s * 1e9, hardware.between_nodes_gb_s * 1e9
    if transport != "object_store":
        links = between if nodes > 1 else within
        sending = size / links + math.log2(generators + 1) * PAUSE_S
        return SyncSeconds(sending + CALLS_S, 0.0, sending + PAUSE_S, probe)
    hops = math.ceil(math.log2(nodes)) if nodes > 1 else 0
    local = min(generators, per_node)
    blocked = size / HOST_COPY_BYTES_PER_S / min(config.learner.workers, 8) + CALLS_S / 6
    if hardware.gpus_per_node:
        copying = size * local / HOST_COPY_BYTES_PER_S
        loading = size / (config.generation.tensor_parallel * hardware.host_to_gpu_gb_s * 1e9)
        return SyncSeconds(blocked, CALLS_S + hops * size / between + copying, PAUSE_S + loading, probe)
    # Above, the buffer does not hold all: the rest travels while the engine stands still.
    beyond = max(0, size - (config.sync.buffer_mib << 20))
    ready = CALLS_S + hops * size / between + (size - beyond) / COPY_BYTES_PER_S
    return SyncSeconds(blocked, ready, PAUSE_S + beyond / COPY_BYTES_PER_S, probe)
