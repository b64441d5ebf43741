"""The model that both sides train."""

import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

from benchmarks.learner.workload import END, PAD, Workload


def build_model(workload: Workload) -> Qwen2ForCausalLM:
    """The same float32 weights in every process."""
    torch.manual_seed(workload.seed)
    config = Qwen2Config(
        vocab_size=workload.vocab,
        hidden_size=workload.hidden,
        intermediate_size=workload.intermediate,
        num_hidden_layers=workload.layers,
        num_attention_heads=workload.heads,
        num_key_value_heads=workload.kv_heads,
        max_position_embeddings=max(4096, workload.longest),
        tie_word_embeddings=True,
        eos_token_id=END,
        pad_token_id=PAD,
    )
    return Qwen2ForCausalLM(config)
