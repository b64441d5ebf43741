"""How good models are, told for all ways by the same means and outside of their time."""

import json
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from iris_ray.evaluation import exact_match

BATCH = 64


@torch.no_grad()
def score(model: Path, rows: Path, max_tokens: int) -> float:
    """Exact match of greedy answers, in float32."""
    tokenizer = AutoTokenizer.from_pretrained(model, padding_side="left")
    policy: Any = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    asked = [json.loads(line) for line in rows.read_text().splitlines()]
    answers: list[str] = []
    for begin in range(0, len(asked), BATCH):
        turns = [[{"role": "user", "content": row["prompt"]}] for row in asked[begin : begin + BATCH]]
        texts = [tokenizer.apply_chat_template(t, tokenize=False, add_generation_prompt=True) for t in turns]
        batch = tokenizer(texts, return_tensors="pt", padding=True)
        written = policy.generate(**batch, do_sample=False, max_new_tokens=max_tokens)
        answers += tokenizer.batch_decode(written[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)
    return exact_match(answers, [row["response"] for row in asked], None)
