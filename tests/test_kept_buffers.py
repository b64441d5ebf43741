"""A model is more than its parameters: DeepSeek's experts are chosen by a bias that nobody trains."""

from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import run_config
from test_sequence_scorer import ARCHITECTURES
from transformers import AutoModelForCausalLM

BIAS = "model.layers.1.mlp.gate.e_score_correction_bias"
TOKENS = torch.arange(5, 30)[None]


@pytest.mark.parametrize("lora", [None, {"rank": 2, "target_modules": ["o_proj"]}], ids=["whole", "LoRA"])
def test_buffers_are_saved_and_published(one_rank: None, tmp_path: Path, lora: dict[str, Any] | None) -> None:
    from iris_ray.learner.self_play_learner import SelfPlayLearner

    model = ARCHITECTURES["deepseek_v3"].build().float()
    bias = model.get_buffer(BIAS).copy_(torch.tensor([2.0, -2.0, 1.0, -1.0]))
    with torch.no_grad():
        expected = model(TOKENS).logits
    config = run_config(model={"path": "a", "dtype": "float32", "lora": lora}, learner={"zero_stage": 2})
    learner = SelfPlayLearner(model, config, torch.device("cpu"))
    learner.save(str(tmp_path))
    saved = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert torch.equal(saved.get_buffer(BIAS), bias)
    with torch.no_grad():
        torch.testing.assert_close(saved(TOKENS).logits, expected)
    published = dict(learner.published_weights())
    if lora is None:  # generators load an adapter into the model as it came
        assert torch.equal(published[BIAS], bias)
