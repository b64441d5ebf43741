"""Small made things that several tests need."""

import random
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import settings

from actors.environment import learner_environment
from iris_ray.config import Learner, RunConfig
from iris_ray.contracts import SelfPlayPair
from iris_ray.gap import PairMeans

if TYPE_CHECKING:
    from transformers import Qwen2ForCausalLM

VOCABULARY = 64

MEANS = PairMeans(
    reward_real=1.5,
    reward_synthetic=-2.5,
    reference_real=-24.0,
    reference_synthetic=-4.0,
    tokens_real=12.0,
    tokens_synthetic=8.0,
    loss=0.7,
    iris_loss=-0.6,
    alpha=2.0,
)

# The same examples on every machine, however slow it is.
settings.register_profile("repeatable", deadline=None, derandomize=True)
settings.load_profile("repeatable")


@pytest.fixture(scope="module")
def one_rank() -> Iterator[None]:
    """This process is the only rank of a learner on the CPU.

    The group stays: DeepSpeed keeps the first one that it saw in a process.
    """
    import torch

    with pytest.MonkeyPatch.context() as patch:
        environment = learner_environment(Learner())
        for name, value in (environment | {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}).items():
            patch.setenv(name, value)
        if not torch.distributed.is_initialized():
            store = torch.distributed.HashStore()
            torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
        yield


def run_config(**sections: dict[str, Any]) -> RunConfig:
    """A valid configuration of a float32 model and data that nobody loads, with `sections` laid over it."""
    return RunConfig.from_dict({"model": {"path": "a", "dtype": "float32"}, "data": {"path": "b"}} | sections)


def make_pairs(count: int, seed: int) -> list[SelfPlayPair]:
    """Pairs of random tokens, prompts and responses of 2 to 9 each; every third response was cut."""
    rng = random.Random(seed)

    def tokens() -> list[int]:
        return rng.choices(range(1, VOCABULARY), k=rng.randint(2, 9))

    return [
        SelfPlayPair(1, i, tokens(), tokens(), tokens(), "length" if i % 3 == 2 else "stop", version=0)
        for i in range(count)
    ]


def tiny_model(seed: int = 0) -> "Qwen2ForCausalLM":
    """A tied Qwen2 in float32, its weights large enough that no two tokens are equally likely."""
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(seed)
    config = Qwen2Config(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        initializer_range=0.2,
        tie_word_embeddings=True,
    )
    return Qwen2ForCausalLM(config)
