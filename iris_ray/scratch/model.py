"""A small model with random weights."""

from typing import Any

import torch
from transformers import (
    MistralConfig,
    MistralForCausalLM,
    PreTrainedTokenizerBase,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from iris_ray.config import ScratchModel

MadeModel = Qwen2ForCausalLM | MistralForCausalLM


def model_config(
    spec: ScratchModel, vocab_size: int, max_length: int, architecture: str | None = None, **others: Any
) -> Qwen2Config | MistralConfig:
    """A `qwen2`, which is the default, has tied embeddings, a `mistral` an output head of its own."""
    made = MistralConfig if architecture == "mistral" else Qwen2Config
    return made(
        vocab_size=vocab_size,
        hidden_size=spec.hidden_size,
        intermediate_size=spec.intermediate_size,
        num_hidden_layers=spec.layers,
        num_attention_heads=spec.heads,
        num_key_value_heads=spec.kv_heads,
        max_position_embeddings=max_length,
        tie_word_embeddings=made is Qwen2Config,
        **others,
    )


def build_model(
    spec: ScratchModel,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    seed: int,
    architecture: str | None = None,
) -> MadeModel:
    """A float32 model for sequences of up to `max_length` tokens.

    The global random state is left as it was.
    """
    config = model_config(
        spec,
        max(len(tokenizer), spec.padded_vocab_size),
        max_length,
        architecture,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        dtype=torch.float32,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        if isinstance(config, MistralConfig):
            return MistralForCausalLM(config)
        return Qwen2ForCausalLM(config)
