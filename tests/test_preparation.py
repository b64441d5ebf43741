"""What of a model is refused before anything starts."""

from pathlib import Path
from typing import Any

import pytest
from conftest import SIZES, run_config
from transformers import AutoConfig

from iris_ray.config import RunConfig
from iris_ray.errors import ModelError
from iris_ray.preparation import described_model

LONG = {"max_position_embeddings": 128, "original_max_position_embeddings": 32, "pad_token_id": 0}
FACTORS = {"rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0] * 4, "long_factor": [2.0] * 4}


def configured(folder: Path, kind: str, tokens: int, **options: Any) -> RunConfig:
    """A run of at most `tokens` a sequence on a model of which there is only the configuration."""
    AutoConfig.for_model(kind, **(SIZES | options)).save_pretrained(folder)
    data = {"path": "b", "max_prompt_tokens": tokens - 8, "max_response_tokens": 8}
    return run_config(model={"path": str(folder)}, data=data)


def test_sequences_longer_than_the_context_are_refused(tmp_path: Path) -> None:
    described_model(configured(tmp_path, "qwen2", 64))
    with pytest.raises(ModelError, match=r"max_prompt_tokens=57 .* a context of 65 tokens, but .* has 64\."):
        described_model(configured(tmp_path, "qwen2", 65))


def test_longrope_is_refused_where_one_sequence_would_change_another(tmp_path: Path) -> None:
    described_model(configured(tmp_path, "phi3", 32, **LONG, rope_parameters=FACTORS))
    with pytest.raises(ModelError, match=r"max_prompt_tokens=25 .* beyond 32 \(rope_type=longrope\)"):
        described_model(configured(tmp_path, "phi3", 33, **LONG, rope_parameters=FACTORS))
