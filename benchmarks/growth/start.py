"""What a run begins with: rows of digits to sort, and a random model that never ends a response by itself.

So each response has exactly as many tokens as are allowed, and a pair costs the same whatever is learned.
"""

import json
from pathlib import Path

import torch
from transformers import Qwen2Config, Qwen2ForCausalLM
from transformers.utils import logging

from benchmarks.growth.points import MAX_PROMPT_TOKENS, Job
from iris_ray.config import ScratchModel
from iris_ray.scratch.model import model_config
from iris_ray.scratch.tokenizer import train_tokenizer

DIGITS = 8
VOCAB = 512
ALWAYS, NEVER = 0.5, -20.0

logging.disable_progress_bar()  # it would come between the benchmark's own lines


def write_rows(job: Job, path: Path) -> None:
    """Distinct prompts of 8 digits. The response: sorted, again and again to the wanted length.

    A digit is a token, and so is the end.
    """
    with path.open("w") as file:
        for index in range(job.prompts):
            digits = (
                f"{index * 48271 % 10**DIGITS:0{DIGITS}d}"  # which is prime to 10⁸: no number comes twice
            )
            times = -(-job.response_tokens // DIGITS)
            response = ("".join(sorted(digits)) * times)[: job.response_tokens - 1]
            file.write(json.dumps({"prompt": f"sort {digits}", "response": response}) + "\n")


def make_model(job: Job, path: Path) -> int:
    """Save model and tokenizer; returns the number of parameters."""
    tokenizer = train_tokenizer(["sort 0123456789"], VOCAB)
    shape = job.shape
    spec = ScratchModel(
        hidden_size=shape.hidden,
        intermediate_size=shape.mlp * shape.hidden,
        layers=shape.layers,
        heads=shape.heads,
        kv_heads=shape.heads // 2,
    )
    # As many entries as the tokenizer has; an output head of its own, as it differs from the embedding.
    config = model_config(spec, len(tokenizer), MAX_PROMPT_TOKENS + job.response_tokens, dtype=torch.float32)
    assert isinstance(config, Qwen2Config)
    config.tie_word_embeddings = False
    config.eos_token_id = tokenizer.eos_token_id
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Qwen2ForCausalLM(config)
    _never_end(model, tokenizer.eos_token_id)
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return model.num_parameters()


@torch.no_grad()
def _never_end(model: Qwen2ForCausalLM, end_token_id: int) -> None:
    """Hidden unit 0 is the same for every token, and speaks against the end token."""
    model.model.embed_tokens.weight[:, 0] = ALWAYS
    for layer in model.model.layers:
        layer.self_attn.o_proj.weight[0] = 0
        layer.mlp.down_proj.weight[0] = 0
    model.lm_head.weight[end_token_id, 0] = NEVER
