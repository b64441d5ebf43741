"""What is published has the names and shapes that checkpoints have: vLLM loads those."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from test_sequence_scorer import ARCHITECTURES

from iris_ray.kept_buffers import kept_buffers
from iris_ray.weights.checkpoint_names import CheckpointNames

EXPERTS = {"mixtral", "deepseek_v3"}


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_weights_are_called_as_in_a_checkpoint(architecture: str, tmp_path: Path) -> None:
    model = ARCHITECTURES[architecture].build()
    weights = [*model.named_parameters(), *kept_buffers(model)]
    shapes = {name: tensor.shape for name, tensor in weights}
    published = dict(CheckpointNames(model, shapes).of(weights))
    model.save_pretrained(tmp_path)
    saved = load_file(tmp_path / "model.safetensors")
    assert published.keys() == saved.keys()
    assert all(torch.equal(published[name], saved[name]) for name in saved)
    assert (len(published) > len(weights)) == (architecture in EXPERTS)
