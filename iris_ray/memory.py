"""Memory that models take, in bytes: the one place for it. Plain arithmetic, no torch."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from iris_ray.config import RunConfig

if TYPE_CHECKING:
    from iris_ray.planning.model_shape import ModelShape

GIB = 1 << 30
BYTES = {"float32": 4, "bfloat16": 2}
LOGITS_BYTES = (
    256 << 20
)  # of logits (as float32) that the learner holds at a time; it computes more in chunks


@dataclass(frozen=True)
class ModelStates:
    """What one rank of the learner holds of the model: on its device, and offloaded to the host.

    `gathered`: with ZeRO-3, the layer that is whole for the moment.
    """

    weights: float
    gradients: float
    optimizer: float
    gathered: float = 0
    offloaded: float = 0

    @property
    def on_device(self) -> float:
        return self.weights + self.gradients + self.optimizer + self.gathered


def model_states(
    config: RunConfig, parameters: int, trained: int, ranks: int, largest_layer: int = 0
) -> ModelStates:
    """States of a model of `parameters`, `trained` of them, over `ranks` ranks.

    Per trained parameter: gradient in float32, and beside it in bfloat16 on its way there; a float32 master
    weight unless ZeRO-0 trains float32 itself; two moments of AdamW, or one of RMSprop. ZeRO 1 splits the
    optimiser over ranks, 2 the gradients as well, 3 the weights too. The same sums as DeepSpeed's
    `estimate_zero2_model_states_mem_needs` and `estimate_zero3_model_states_mem_needs`.
    """
    learner, width = config.learner, BYTES[config.model.dtype]
    stage = learner.zero_stage
    plain = stage == 0 and width == 4
    moments = 8 if learner.optimizer == "adamw" else 4
    optimizer = trained * (moments + (0 if plain else 4)) / (ranks if stage else 1)
    on_its_way = width if width < 4 and stage in (1, 2) else 0
    gradients = trained * (4 + on_its_way) / (ranks if stage >= 2 else 1)
    weights = parameters * width / (ranks if stage == 3 else 1)
    gathered = 2 * width * largest_layer if stage == 3 else 0
    offloaded = 0.0
    if learner.offload != "none":
        # The gradients in float32 wait for the optimiser where it is.
        offloaded = optimizer + 4 * trained / ranks
        optimizer = gradients = 0.0
    if learner.offload == "parameters":
        offloaded, weights = offloaded + weights, 0.0
    return ModelStates(weights, gradients, optimizer, gathered, offloaded)


def opponent_bytes(config: RunConfig, parameters: int, trained: int, ranks: int) -> float:
    """One rank's frozen copy; ZeRO 3 splits it as it does the policy. None where the generators score."""
    if config.learner.reference == "generator":
        return 0
    whole = (trained if config.model.lora else parameters) * BYTES[config.model.dtype]
    return whole / (ranks if config.learner.zero_stage == 3 else 1)


def activation_bytes(config: RunConfig, shape: "ModelShape", tokens: int, response_tokens: int) -> int:
    """What a micro-batch of so many tokens keeps for its backward pass, at its peak.

    Counted per token and layer of a gated decoder: two norms with their float32 copies, queries, keys and
    values before and after rotation, attention's output, both residuals, and four tensors of the feed-forward
    part. Layers that are compiled for CPUs keep less: one copy of each, and no norm in float32. With gradient
    checkpointing a layer's input, and all of that for one layer alone. Of the logits of response tokens, at
    most 256 MiB in float32 at a time, six such tables stand there: themselves, log-softmax and gradients with
    their copies. On CPUs it is five in the model's dtype (measured).
    """
    on_cpu = config.learner.num_gpus == 0
    width, hidden = BYTES[config.model.dtype], shape.hidden
    attention = width * (6 * hidden + 3 * (shape.query_width + 2 * shape.kv_width))
    layer = 2 * hidden * (2 * width + 8) + attention + 4 * width * shape.intermediate
    if config.learner.compile and on_cpu:
        layer = width * (6 * hidden + shape.query_width + 2 * shape.kv_width + 4 * shape.intermediate)
    layers = shape.layers
    kept = layers * layer
    if config.learner.gradient_checkpointing:
        kept = layers * width * hidden + layer
    logits = min(response_tokens * shape.vocab, LOGITS_BYTES // 4)
    return int(tokens * kept + logits * (5 * width if on_cpu else 24))


def checkpoint_bytes(config: RunConfig, parameters: int, trained: int, within_round: bool) -> float:
    """Files of one checkpoint without its pairs: master weights and optimiser's state, and within a round the
    opponent, unless the generators are the reference."""
    moments = 8 if config.learner.optimizer == "adamw" else 4
    opponent = opponent_bytes(config, parameters, trained, ranks=1) if within_round else 0
    return trained * (4 + moments) + opponent
