"""How long the learner's and an engine's steps take on given hardware.

Additive on a CPU and the greater of arithmetic and memory on a GPU, where both go on at once.
"""

from dataclasses import dataclass

from iris_ray.config import RunConfig
from iris_ray.memory import BYTES
from iris_ray.planning.hardware import Hardware
from iris_ray.planning.model_shape import TRAINING_PASSES, ModelShape

SCORED_REQUEST = 0.5  # its cost as a share of a response's; from the online run in docs/planning.md


@dataclass(frozen=True)
class Speeds:
    """What calibration changes: flop/s and seconds of one learner rank and of one engine.

    `engine_cores`: what a generator that writes occupies on CPUs, its Python and Ray's included.
    """

    learner_flops: float
    learner_pass_s: float
    engine_flops: float
    engine_step_s: float
    engine_bytes: float
    engine_request_s: float = 0.0
    engine_cores: float = 1.0

    @classmethod
    def of(cls, hardware: Hardware, config: RunConfig) -> "Speeds":
        peak = hardware.matrix_tflops * 1e12
        bandwidth = hardware.bandwidth_share * hardware.bandwidth_gb_s * 1e9
        learner = peak if hardware.gpus_per_node else peak * max(1, int(config.learner.num_cpus))
        engine = peak * config.generation.tensor_parallel
        if hardware.gpus_per_node:
            bandwidth *= config.generation.tensor_parallel
        else:
            engine *= max(1, int(config.generation.num_cpus))
        return cls(
            hardware.learner_share * learner,
            hardware.learner_pass_s,
            hardware.prefill_share * engine,
            hardware.engine_step_s,
            bandwidth,
            hardware.engine_request_s,
            max(1, int(config.generation.num_cpus)),
        )


@dataclass(frozen=True)
class EngineRates:
    """Seconds of one vLLM engine."""

    speeds: Speeds
    shape: ModelShape
    dtype: str
    on_gpu: bool

    def request_s(self, scored: bool = False) -> float:
        """Beside arithmetic. What is only scored has no seed and is not delivered."""
        return self.speeds.engine_request_s * (SCORED_REQUEST if scored else 1.0)

    def decode_s(self, sequences: int, context: float) -> float:
        """One token for each of `sequences`, `context` tokens long on average."""
        shape = self.shape
        flops = shape.forward_flops(sequences, sequences * context, sequences)
        weights = (shape.matrices + shape.hidden * shape.vocab) * BYTES[self.dtype]
        moved = weights + sequences * context * shape.kv_bytes(self.dtype)
        return self.speeds.engine_step_s + self._together(flops, moved)

    def read_s(self, tokens: float, scored: bool = False) -> float:
        """Read a prompt; `scored` with log-probs of all of it."""
        flops = self.shape.forward_flops(tokens, tokens**2 / 2, tokens if scored else 1)
        return flops / self.speeds.engine_flops

    def _together(self, flops: float, moved: float) -> float:
        computing, moving = flops / self.speeds.engine_flops, moved / self.speeds.engine_bytes
        return max(computing, moving) if self.on_gpu else computing + moving


@dataclass(frozen=True)
class LearnerRates:
    """Seconds of an optimiser step over all ranks."""

    speeds: Speeds
    shape: ModelShape
    config: RunConfig
    hardware: Hardware

    @property
    def ranks(self) -> int:
        return self.config.learner.workers

    def step_s(self, flops: float, tokens: float, pairs: int, first_pass: bool) -> float:
        """Of a batch whose forward pass takes `flops`; the opponent is scored in the first pass.

        Ranks beyond the number of pairs idle. Communication is not hidden behind computation
        (`overlap_comm` is off).
        """
        busy = min(self.ranks, pairs)
        micro = self.micro_batches(tokens / busy)
        # Under an adapter the model's own weights get no gradient.
        passes: float = TRAINING_PASSES - (self.config.model.lora is not None)
        passes += micro > 1  # coefficients first, in a pass of their own
        passes += self.config.learner.gradient_checkpointing
        passes += first_pass and self.config.learner.reference == "learner"
        computing = passes * (micro * self.speeds.learner_pass_s + flops / busy / self.speeds.learner_flops)
        return computing + self.communication_s(micro) + self.optimizer_s()

    def micro_batches(self, tokens: float) -> int:
        return max(1, -(-int(tokens) // self.config.learner.micro_batch_tokens))

    def communication_s(self, micro: int) -> float:
        """Gradients summed over ranks; with ZeRO-3 weights are gathered in every pass."""
        if self.ranks == 1:
            return 0.0
        shape, stage = self.shape, self.config.learner.zero_stage
        width = BYTES[self.config.model.dtype]
        share = (self.ranks - 1) / self.ranks
        moved = 2 * shape.trained * width * share
        if stage == 3:
            passes = micro * (2 + self.config.learner.gradient_checkpointing) + (micro if micro > 1 else 0)
            moved = (passes * shape.parameters + micro * shape.trained) * width * share
        elif stage == 2:
            moved = (1 + micro) * shape.trained * width * share
        return moved / self.link()

    def link(self) -> float:
        """Bytes per second of a rank to the others, in the slowest part of their ring."""
        hardware = self.hardware
        per_node = max(1, hardware.gpus_per_node or hardware.cores_per_node)
        if self.ranks <= per_node:
            return hardware.within_node_gb_s * 1e9
        return min(hardware.within_node_gb_s, hardware.between_nodes_gb_s) * 1e9

    def optimizer_s(self) -> float:
        """The optimiser reads and writes master weights and moments, and reads gradients."""
        split = self.ranks if self.config.learner.zero_stage else 1
        moved = 28 * self.shape.trained / split
        bandwidth = self.hardware.bandwidth_share * self.hardware.bandwidth_gb_s * 1e9
        if self.config.learner.offload != "none":
            bandwidth = min(bandwidth, self.hardware.host_to_gpu_gb_s * 1e9)
        return moved / bandwidth
