"""LoRA: what is trained, what is published, and the merged model."""

import json
from pathlib import Path

import pytest
import torch
from conftest import VOCABULARY, run_config, tiny_model, untied_llama
from peft import PeftModel, get_peft_model_state_dict
from safetensors.torch import load_file
from test_sequence_scorer import ARCHITECTURES
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from iris_ray import lora
from iris_ray.config import Lora, RunConfig
from iris_ray.errors import ConfigError

SPEC = Lora(rank=4, alpha=8)
TOKENS = torch.randint(VOCABULARY, (3, 12), generator=torch.Generator().manual_seed(0))
LINEAR = ["down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"]


MODELS = pytest.mark.parametrize("make", [tiny_model, untied_llama], ids=["tied-qwen2", "untied-llama"])


@torch.no_grad()
def logits(model: nn.Module) -> torch.Tensor:
    return model.eval()(TOKENS).logits


def trained(model: PreTrainedModel, seed: int = 0) -> PeftModel:
    """`model` with an adapter that changes its answers."""
    wrapped = lora.add_adapter(model, SPEC, seed)
    generator = torch.Generator().manual_seed(seed)
    for _, parameter in lora.adapter_tensors(wrapped):
        parameter.data.normal_(std=0.2, generator=generator)
    return wrapped


@MODELS
def test_the_game_starts_on_the_model_itself_and_trains_only_the_policys_adapter(make) -> None:
    before = logits(make())
    wrapped = lora.add_adapter(make(), SPEC, seed=0)
    assert torch.equal(logits(wrapped), before)
    with lora.as_opponent(wrapped):
        assert torch.equal(logits(wrapped), before)
    required = {id(p) for p in wrapped.parameters() if p.requires_grad}
    assert required == {id(p) for _, p in lora.adapter_tensors(wrapped)}
    assert len(required) == 2 * 2 * len(LINEAR)


def test_the_seed_decides_the_adapter_and_nothing_else_does() -> None:
    def adapter(seed: int) -> dict[str, torch.Tensor]:
        return dict(lora.adapter_tensors(lora.add_adapter(tiny_model(), SPEC, seed)))

    first, again, other = adapter(0), adapter(0), adapter(1)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)
    model, state = tiny_model(), torch.get_rng_state()
    lora.add_adapter(model, SPEC, seed=2)
    assert torch.equal(torch.get_rng_state(), state)


def test_experts_that_are_one_parameter_get_no_adapter() -> None:
    with pytest.raises(ConfigError, match=r"target_modules: 'all-linear' .* experts"):
        lora.add_adapter(ARCHITECTURES["deepseek_v3"].build(), SPEC, seed=0)


def test_adapters_have_the_models_dtype() -> None:
    wrapped = lora.add_adapter(tiny_model().bfloat16(), SPEC, seed=0)
    assert {p.dtype for p in wrapped.parameters()} == {torch.bfloat16}


@MODELS
def test_the_opponent_stays_until_it_is_replaced(make) -> None:
    wrapped = trained(make())
    policy = logits(wrapped)
    with lora.as_opponent(wrapped):
        assert torch.equal(logits(wrapped), logits(make()))
    assert torch.equal(logits(wrapped), policy)
    lora.freeze_opponent(wrapped)
    for _, parameter in lora.adapter_tensors(wrapped):
        parameter.data.mul_(2)
    with lora.as_opponent(wrapped):
        assert torch.equal(logits(wrapped), policy)
    assert not torch.equal(logits(wrapped), policy)


def test_the_opponents_pass_disturbs_no_gradient() -> None:
    def gradients(play_opponent: bool) -> list[torch.Tensor]:
        wrapped = trained(tiny_model())
        loss = wrapped(TOKENS).logits.square().mean()
        if play_opponent:  # as in a step: between the policy's forward and its backward pass
            with torch.no_grad(), lora.as_opponent(wrapped):
                wrapped(TOKENS)
        loss.backward()
        assert all(p.grad is None for _, p in lora.adapter_tensors(wrapped, lora.OPPONENT))
        return [p.grad for _, p in lora.adapter_tensors(wrapped)]

    alone, between = gradients(False), gradients(True)
    assert all(torch.equal(a, b) for a, b in zip(alone, between, strict=True))


@MODELS
def test_peft_reads_what_is_written(make, tmp_path: Path) -> None:
    wrapped = trained(make())
    lora.write_adapter(tmp_path, lora.adapter_config(make(), SPEC), lora.adapter_tensors(wrapped))
    names = set(get_peft_model_state_dict(wrapped, adapter_name=lora.POLICY))
    assert set(load_file(tmp_path / "adapter_model.safetensors")) == names
    written = json.loads((tmp_path / "adapter_config.json").read_text())
    assert (written["r"], written["lora_alpha"], written["lora_dropout"]) == (4, 8, 0)
    assert torch.equal(logits(PeftModel.from_pretrained(make(), tmp_path)), logits(wrapped))


def test_adapter_tensors_have_the_same_names_inside_other_modules() -> None:
    wrapped = trained(tiny_model())
    inside = nn.ModuleDict({"module": nn.ModuleDict({"model": wrapped})})
    assert dict(lora.adapter_tensors(inside)) == dict(lora.adapter_tensors(wrapped))


@MODELS
def test_the_merged_model_answers_as_model_and_adapter_do(make, tmp_path: Path) -> None:
    wrapped = trained(make())
    before = logits(wrapped)
    merged = lora.merged_state_dict(wrapped)
    assert list(merged) == [name for name, _ in make().named_parameters()]
    assert torch.equal(logits(wrapped), before)
    wrapped.get_base_model().save_pretrained(tmp_path, state_dict=merged)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert type(loaded) is type(make())
    torch.testing.assert_close(logits(loaded), before, atol=2e-5, rtol=1e-5)


def test_a_bfloat16_model_is_merged_in_float32() -> None:
    wrapped = trained(tiny_model().bfloat16())
    name = "model.layers.1.self_attn.v_proj"
    layer = wrapped.get_submodule(f"{lora.PREFIX}{name}")
    a, b = (layer.get_submodule(f"lora_{x}.{lora.POLICY}").weight.float() for x in "AB")
    expected = (layer.base_layer.weight.float() + SPEC.alpha / SPEC.rank * b @ a).bfloat16()
    assert torch.equal(lora.merged_state_dict(wrapped)[f"{name}.weight"], expected)


@MODELS
def test_all_linear_means_all_but_the_output_head(make, tmp_path: Path) -> None:
    make().save_pretrained(tmp_path)
    model = lora.meta_model(str(tmp_path), trust_remote_code=False)
    assert {parameter.device.type for parameter in model.parameters()} == {"meta"}
    assert lora.target_modules(model, SPEC) == LINEAR
    assert lora.target_modules(model, Lora(target_modules=["v_proj", "q_proj"])) == ["q_proj", "v_proj"]


@pytest.mark.parametrize("name", ["lm_head", "embed_tokens", "q_prj"])
def test_what_cannot_be_adapted_is_refused_by_name(name: str) -> None:
    message = rf"model\.lora\.target_modules: \['{name}'\] does not fit LlamaForCausalLM.*q_proj, up_proj"
    with pytest.raises(ConfigError, match=message):
        lora.add_adapter(untied_llama(), Lora(target_modules=[name]), seed=0)


@pytest.mark.parametrize(
    ("section", "field"),
    [
        ({"rank": 0}, "model.lora.rank"),
        ({"rank": 513}, "model.lora.rank"),
        ({"alpha": 0}, "model.lora.alpha"),
        ({"target_modules": []}, "model.lora.target_modules"),
        ({"target_modules": "all"}, "model.lora.target_modules"),
        ({"dropout": 0.1}, "model.lora.dropout"),
    ],
)
def test_settings_that_do_not_fit_are_named(section: dict, field: str) -> None:
    with pytest.raises(ConfigError, match=field.replace(".", r"\.")):
        run_config(model={"path": "a", "lora": section})


def test_lora_is_off_unless_asked_for() -> None:
    assert run_config().model.lora is None
    config: RunConfig = run_config(model={"path": "a", "lora": {}})
    assert config.model.lora == Lora(rank=16, alpha=32, target_modules="all-linear")
