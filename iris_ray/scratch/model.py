"""A small model with random weights."""

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


def build_model(
    spec: ScratchModel,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    seed: int,
    architecture: str | None = None,
) -> MadeModel:
    """A float32 model for sequences of up to `max_length` tokens.

    `architecture`: `qwen2`, which is the default, with tied embeddings; or `mistral`, with an output head of
    its own. The global random state is left as it was.
    """
    settings = {
        "vocab_size": len(tokenizer),
        "hidden_size": spec.hidden_size,
        "intermediate_size": spec.intermediate_size,
        "num_hidden_layers": spec.layers,
        "num_attention_heads": spec.heads,
        "num_key_value_heads": spec.kv_heads,
        "max_position_embeddings": max_length,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "dtype": torch.float32,
    }
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        if architecture == "mistral":
            return MistralForCausalLM(MistralConfig(tie_word_embeddings=False, **settings))
        return Qwen2ForCausalLM(Qwen2Config(tie_word_embeddings=True, **settings))
