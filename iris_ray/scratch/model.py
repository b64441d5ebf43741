"""A small Qwen2-shaped model with random weights."""

from typing import Any

import torch
from transformers import PreTrainedTokenizerBase, Qwen2Config, Qwen2ForCausalLM

from iris_ray.config import ScratchModel


def model_config(spec: ScratchModel, vocab_size: int, max_length: int, **others: Any) -> Qwen2Config:
    return Qwen2Config(
        vocab_size=vocab_size,
        hidden_size=spec.hidden_size,
        intermediate_size=spec.intermediate_size,
        num_hidden_layers=spec.layers,
        num_attention_heads=spec.heads,
        num_key_value_heads=spec.kv_heads,
        max_position_embeddings=max_length,
        tie_word_embeddings=True,
        **others,
    )


def build_model(
    spec: ScratchModel, tokenizer: PreTrainedTokenizerBase, max_length: int, seed: int
) -> Qwen2ForCausalLM:
    """A float32 model with tied embeddings for sequences of up to `max_length` tokens.

    The global random state is left as it was.
    """
    config = model_config(
        spec,
        len(tokenizer),
        max_length,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        dtype=torch.float32,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Qwen2ForCausalLM(config)
