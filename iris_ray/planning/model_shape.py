"""What a model computes and stores for a token, from its configuration alone."""

from dataclasses import dataclass

import torch
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from iris_ray.config import RunConfig
from iris_ray.lora import add_adapter
from iris_ray.memory import BYTES
from iris_ray.preparation import described_model
from iris_ray.scratch.model import model_config

TRAINING_PASSES = 3  # forward, and backward twice: for what goes in and for the weights


@dataclass(frozen=True)
class ModelShape:
    """`parameters` count tied ones once, `trained` are those that get gradients.

    `matrices`: weights of the layers' matrices that one token passes through; of a mixture of experts those
    of its experts alone.
    """

    parameters: int
    trained: int
    matrices: int
    layers: int
    hidden: int
    intermediate: int
    query_width: int
    kv_width: int
    vocab: int
    largest_layer: int

    def forward_flops(self, tokens: float, visible: float, predicted: float) -> float:
        """Of `tokens` that pass the layers, `visible` couples of a token and one that it looks at, and
        `predicted` positions of the output head. A multiplication counts two."""
        attention = 2 * self.query_width * visible * self.layers
        return 2.0 * (self.matrices * tokens + attention + self.hidden * self.vocab * predicted)

    def pair_flops(self, prompt: float, real: float, synthetic: float) -> float:
        """A forward pass over a pair, its prompt once; lengths in tokens."""
        visible = prompt**2 / 2 + sum(length**2 / 2 + prompt * length for length in (real, synthetic))
        return self.forward_flops(prompt + real + synthetic, visible, real + synthetic)

    def kv_bytes(self, dtype: str) -> int:
        """Keys and values of one token in a generator's cache."""
        return 2 * self.layers * self.kv_width * BYTES[dtype]


@torch.no_grad()
def model_shape(config: RunConfig) -> ModelShape:
    """The shape of the recipe's model, built on the meta device. Raises `ModelError` if there is none.

    A made model's vocabulary is taken as large as it may get.
    """
    if config.model.scratch:
        spec = config.model.scratch
        with torch.device("meta"):
            model: PreTrainedModel = AutoModelForCausalLM.from_config(
                model_config(
                    spec,
                    max(spec.vocab_size, spec.padded_vocab_size),
                    config.window,
                    config.model.architecture,
                )
            )
    else:
        model = described_model(config)
    return shape_of(model, config)


def shape_of(model: PreTrainedModel, config: RunConfig) -> ModelShape:
    """The shape of a model on the meta device; with `model.lora` an adapter is added to it."""
    text = model.config.get_text_config()
    heads = text.num_attention_heads
    head = getattr(text, "head_dim", None) or text.hidden_size // heads
    parameters = model.num_parameters()
    outside = {id(part) for part in (model.get_input_embeddings(), model.get_output_embeddings())}
    experts = getattr(text, "num_local_experts", None) or getattr(text, "num_experts", None)
    used = getattr(text, "num_experts_per_tok", None)
    matrices = 0.0
    for name, module in model.named_modules():
        if id(module) in outside:
            continue
        share = used / experts if experts and used and "expert" in name else 1.0
        own = (weight for weight in module.parameters(recurse=False) if weight.ndim > 1)
        matrices += share * sum(weight.numel() for weight in own)
    largest = max(
        sum(weight.numel() for weight in module.parameters(recurse=False)) for module in model.modules()
    )
    trained = parameters
    if config.model.lora:
        with torch.device("meta"):
            adapted: nn.Module = add_adapter(model, config.model.lora, seed=0)
        trained = sum(weight.numel() for weight in adapted.parameters() if weight.requires_grad)
    return ModelShape(
        parameters=parameters,
        trained=trained,
        matrices=int(matrices),
        layers=text.num_hidden_layers,
        hidden=text.hidden_size,
        intermediate=getattr(text, "intermediate_size", None) or 4 * text.hidden_size,
        query_width=heads * head,
        kv_width=(getattr(text, "num_key_value_heads", None) or heads) * head,
        vocab=text.vocab_size,
        largest_layer=largest,
    )
