"""Sequence log-probs and their gradients are those of sequences scored one by one, whatever the model."""

import copy
import random
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from conftest import VOCABULARY
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from iris_ray.learner import sequence_scorer, shared_prompts
from iris_ray.learner.compilation import compile_layers
from iris_ray.learner.sequence_scorer import SequenceScorer
from iris_ray.learner.token_batch import PromptGroup, repeated_length

MAX_LENGTH = 40


@dataclass(frozen=True)
class Architecture:
    """A kind of model, and the ways in which it can be computed."""

    kind: str
    shares_prompts: bool = True
    options: dict[str, Any] = field(default_factory=dict)

    def build(self, **options: Any) -> PreTrainedModel:
        """Tiny and random, with weights so large that no two tokens are equally likely."""
        torch.manual_seed(0)
        config = AutoConfig.for_model(self.kind, **(SMALL | self.options | options))
        return AutoModelForCausalLM.from_config(config).double().eval()


SMALL = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "initializer_range": 0.2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "tie_word_embeddings": False,
}
MIXTURE = {"num_experts_per_tok": 2, "num_local_experts": 4, "experts_implementation": "eager"}
LATENT = {
    "experts_implementation": "eager",
    "n_routed_experts": 4,
    "n_group": 1,
    "topk_group": 1,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
    "first_k_dense_replace": 1,
    "q_lora_rank": 16,
    "kv_lora_rank": 8,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 6,
    "num_key_value_heads": 4,
}
QWEN2 = Architecture("qwen2", options={"tie_word_embeddings": True})
BLOOM = Architecture("bloom", shares_prompts=False, options={"n_layer": 2, "n_head": 4})
ARCHITECTURES = {
    "qwen2": QWEN2,
    "llama": Architecture("llama"),
    "gpt2": Architecture("gpt2", options={"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}),
    "opt": Architecture("opt", options={"ffn_dim": 64, "word_embed_proj_dim": 32}),
    "gpt_neox": Architecture("gpt_neox"),
    "mistral": Architecture("mistral", options={"sliding_window": None}),
    "mistral, long window": Architecture("mistral", options={"sliding_window": MAX_LENGTH}),
    "mistral, short window": Architecture("mistral", shares_prompts=False, options={"sliding_window": 8}),
    "gemma2": Architecture(
        "gemma2",
        shares_prompts=False,
        options={"head_dim": 8, "final_logit_softcapping": 2.0, "attn_logit_softcapping": 2.0},
    ),
    "gemma3": Architecture("gemma3_text", options={"head_dim": 8, "sliding_window": MAX_LENGTH}),
    "granite": Architecture("granite", options={"logits_scaling": 3.0}),
    "olmo2": Architecture("olmo2"),
    "bloom": BLOOM,
    "mamba": Architecture("mamba", shares_prompts=False),
    "mixtral": Architecture("mixtral", options=MIXTURE),
    "deepseek_v3": Architecture("deepseek_v3", options=LATENT),
}
ROUNDING = 1e-10  # relative to the largest number


def groups_of_each_size(seed: int = 0) -> list[PromptGroup]:
    """Prompts with 1, 2 and 3 responses, of varied lengths; some prompts and responses are one token long."""
    rng = random.Random(seed)

    def tokens(longest: int) -> list[int]:
        return rng.choices(range(3, VOCABULARY), k=rng.randint(1, longest))

    made = [PromptGroup(tokens(12), [tokens(16) for _ in range(count)]) for count in (1, 2, 3, 2)]
    return [*made, PromptGroup([5], [[6], tokens(9), [7]]), PromptGroup(tokens(9), [[8]])]


GROUPS = groups_of_each_size()


def one_by_one(model: PreTrainedModel, groups: list[PromptGroup], temperature: float = 1.0) -> torch.Tensor:
    """log p of each sequence from the full table of its own forward pass: (S,)."""
    scores = []
    for prompt, responses in groups:
        for response in responses:
            logits = model(input_ids=torch.tensor([prompt + response]), use_cache=False).logits[0]
            wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
            table = (wide / temperature).log_softmax(-1)
            predicted = table[len(prompt) - 1 : -1]
            scores.append(predicted.gather(1, torch.tensor(response)[:, None]).sum())
    return torch.stack(scores)


def by_scorer(scorer: SequenceScorer, groups: list[PromptGroup], temperature: float = 1.0) -> torch.Tensor:
    batch = scorer.lay_out(groups, temperature)
    return batch.sum_by_sequence(scorer(batch))


def gradients(scores_S: torch.Tensor, model: nn.Module) -> dict[str, torch.Tensor]:
    """Of a random weighted sum of the scores, with respect to all parameters."""
    weights_S = torch.randn(len(scores_S), generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    names, parameters = zip(*model.named_parameters(), strict=True)
    found = torch.autograd.grad((weights_S * scores_S).sum(), parameters, allow_unused=True)
    return {name: grad for name, grad in zip(names, found, strict=True) if grad is not None}


def assert_same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], rounding: float) -> None:
    """Equal up to `rounding`, relative to the largest number."""
    assert found.keys() == expected.keys()
    largest = max(value.abs().max().item() for value in expected.values())
    for name, value in expected.items():
        difference = (found[name] - value).abs().max().item()
        assert difference <= rounding * largest, f"{name}: {difference:.1e} beside {largest:.1e}"


def assert_scores_and_gradients_agree(
    scorer: SequenceScorer, model: PreTrainedModel, rounding: float
) -> None:
    """`scorer` makes of its model what `model`, with the same weights, gives one by one."""
    found_S, expected_S = by_scorer(scorer, GROUPS), one_by_one(model, GROUPS)
    assert_same({"scores": found_S.detach()}, {"scores": expected_S.detach()}, rounding)
    assert_same(gradients(found_S, scorer.model), gradients(expected_S, model), rounding)


@pytest.fixture
def exact_norms(monkeypatch) -> None:
    """Models in float64 compute everything in it: the library has norms and angles in float32 otherwise."""
    monkeypatch.setattr(torch, "float32", torch.float64)
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)


@pytest.fixture(params=ARCHITECTURES)
def architecture(request) -> Architecture:
    return ARCHITECTURES[request.param]


@pytest.fixture
def model(architecture, exact_norms) -> PreTrainedModel:
    """With attention as its authors wrote it down."""
    model = architecture.build()
    model.set_attn_implementation("eager")
    return model


@pytest.fixture
def scorer(architecture, exact_norms) -> SequenceScorer:
    return SequenceScorer.fastest(architecture.build(), MAX_LENGTH)


def test_the_fastest_way_is_found(architecture, scorer):
    assert (scorer.head_apart, scorer.shares_prompts) == (True, architecture.shares_prompts)
    assert (scorer.lay_out(GROUPS).shared is not None) == architecture.shares_prompts


def test_scores_and_gradients_are_those_of_sequences_one_by_one(architecture, model, scorer):
    assert_scores_and_gradients_agree(scorer, model, ROUNDING)


@torch.no_grad()
@pytest.mark.parametrize("temperature", [0.7, 1.3])
def test_scores_at_a_temperature_are_those_of_logits_divided_by_it(
    temperature, architecture, model, scorer, monkeypatch
):
    expected_S, plain_S = one_by_one(model, GROUPS, temperature), one_by_one(model, GROUPS)
    assert ((plain_S - expected_S).abs() / expected_S.abs()).min() > 1e4 * ROUNDING
    for logits_bytes in (sequence_scorer.LOGITS_BYTES, 4 * VOCABULARY * 3):
        monkeypatch.setattr(sequence_scorer, "LOGITS_BYTES", logits_bytes)
        found_S = by_scorer(scorer, GROUPS, temperature)
        assert_same({"scores": found_S}, {"scores": expected_S}, ROUNDING)
        assert_same({"scores": by_scorer(scorer, GROUPS)}, {"scores": plain_S}, ROUNDING)


@torch.no_grad()
def test_a_response_is_blind_to_the_others(scorer):
    prompt, y, other = [9, 8, 7], [3, 4, 5, 6], [11, 12, 13, 14, 15]

    def score(first: list[int]) -> torch.Tensor:
        batch = scorer.lay_out([PromptGroup(prompt, [first, other])])
        return scorer(batch)[batch.sequences_R == 1]

    alone = score(y)
    for changed in (y[::-1], y[:1], 5 * y, other):
        torch.testing.assert_close(score(changed), alone, rtol=1e-12, atol=1e-12)


def test_logits_in_chunks_are_the_same_logits(model, scorer, monkeypatch):
    rows = 3
    monkeypatch.setattr(sequence_scorer, "LOGITS_BYTES", 4 * VOCABULARY * rows)
    sizes = []
    scorer.model.get_output_embeddings().register_forward_hook(
        lambda _, __, logits: sizes.append(logits.shape[-2])
    )
    assert_scores_and_gradients_agree(scorer, model, ROUNDING)
    assert max(sizes) == rows
    count = len(scorer.lay_out(GROUPS).labels_R)
    assert sum(sizes) == 2 * repeated_length(count)  # once more in the backward pass


class LargestTensor(TorchDispatchMode):
    """Bytes of the largest tensor that any operation returns."""

    bytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for each in result if isinstance(result, tuple | list) else (result,):
            if isinstance(each, torch.Tensor):
                self.bytes = max(self.bytes, each.untyped_storage().nbytes())
        return result


@pytest.mark.parametrize("architecture", [QWEN2, ARCHITECTURES["gemma2"]], ids=lambda each: each.kind)
def test_no_full_table_of_logits_is_held(architecture, monkeypatch):
    vocabulary, tokens, limit = 150_000, 300, 16 << 20
    monkeypatch.setattr(sequence_scorer, "LOGITS_BYTES", limit)
    model = architecture.build(
        vocab_size=vocabulary, hidden_size=16, num_hidden_layers=1, max_position_embeddings=2 * tokens
    )
    scorer = SequenceScorer.fastest(model.float(), max_length=2 * tokens)
    batch = scorer.lay_out([PromptGroup([1, 2, 3], [[4] * tokens, [5] * tokens])])
    with LargestTensor() as largest:
        scorer(batch).sum().backward()
    assert 0.9 * limit < largest.bytes <= 2 * limit


class SmearedHead(nn.Module):
    """What it makes of a position depends on those before it."""

    def __init__(self, head: nn.Module):
        super().__init__()
        self.head = head

    def forward(self, hidden_BTD: torch.Tensor) -> torch.Tensor:
        return self.head(hidden_BTD.cumsum(1))


def test_a_head_that_looks_at_other_positions_gets_them_all():
    model = QWEN2.build()
    model.lm_head = SmearedHead(model.lm_head)
    scorer = SequenceScorer.fastest(copy.deepcopy(model), MAX_LENGTH)
    assert (scorer.head_apart, scorer.shares_prompts) == (False, False)
    assert_scores_and_gradients_agree(scorer, model, 1e-6)


def test_attention_with_sinks_is_not_replaced():
    """However small the weights, so that the tokens of a trial hardly tell."""
    model = Architecture(
        "gpt_oss", options={"head_dim": 8, "num_local_experts": 4, "initializer_range": 0.02}
    ).build()
    assert not SequenceScorer.fastest(model.bfloat16(), MAX_LENGTH).shares_prompts


def test_bfloat16_is_as_good_by_own_kernels_as_by_the_library(monkeypatch):
    model = QWEN2.build()
    scorer = SequenceScorer.fastest(copy.deepcopy(model).bfloat16(), MAX_LENGTH)
    assert scorer.shares_prompts
    scores_S = one_by_one(model, GROUPS)
    right = gradients(scores_S, model)

    def errors() -> tuple[float, float]:
        """Of scores and of gradients."""
        found_S = by_scorer(scorer, GROUPS)
        found = gradients(found_S, scorer.model)
        error = sum((found[name] - right[name]).square().sum() for name in right)
        return (found_S - scores_S).abs().mean().item(), error.sqrt().item()

    kernels = errors()
    monkeypatch.setattr(shared_prompts, "HAS_KERNELS", ())
    library = errors()
    assert kernels != library
    assert all(ours <= 2 * theirs for ours, theirs in zip(kernels, library, strict=True))


def test_sequences_apart_give_the_same(model, scorer, monkeypatch):
    """As on GPUs."""
    monkeypatch.setattr(shared_prompts, "HAS_KERNELS", ())
    assert_scores_and_gradients_agree(scorer, model, ROUNDING)


def test_compiled_layers_give_the_same_whatever_the_shape():
    model = QWEN2.build().float()
    plain = SequenceScorer.fastest(copy.deepcopy(model), MAX_LENGTH)
    compiled = SequenceScorer.fastest(model, MAX_LENGTH)
    compile_layers(model)
    for seed, stance in enumerate(["default", "fail_on_recompile"]):
        groups = groups_of_each_size(seed)
        with torch.compiler.set_stance(stance):
            found_S = by_scorer(compiled, groups)
            found = gradients(found_S, compiled.model)
            tempered_S = by_scorer(compiled, groups, 0.7)
        expected_S = by_scorer(plain, groups)
        assert_same({"scores": found_S.detach()}, {"scores": expected_S.detach()}, 1e-5)
        assert_same(found, gradients(expected_S, plain.model), 1e-5)
        assert_same({"scores": tempered_S}, {"scores": by_scorer(plain, groups, 0.7)}, 1e-5)
