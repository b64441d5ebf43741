"""bfloat16 on a CPU without products of it: they are taken in float32, and nothing else changes."""

import copy

import pytest
import torch
from conftest import make_pairs, run_config, tiny_model
from torch import nn

from iris_ray import precision
from iris_ray.precision import WideLinear, widen_products


@pytest.fixture
def no_bfloat16(monkeypatch) -> None:
    monkeypatch.setattr(precision, "cpu_multiplies", lambda dtype: dtype != torch.bfloat16)


def wide_layers(model: nn.Module) -> int:
    return sum(isinstance(module, WideLinear) for module in model.modules())


@pytest.mark.usefixtures("no_bfloat16")
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("rows", [(9,), (3, 5)])
def test_results_and_gradients_are_rounded_once(rows, bias):
    torch.manual_seed(0)
    layer = nn.Linear(48, 32, bias=bias).bfloat16()
    exact = copy.deepcopy(layer).double()
    widen_products(layer)
    assert wide_layers(layer) == 1
    x = torch.randn(*rows, 48).bfloat16().requires_grad_()
    exact_x = x.detach().double().requires_grad_()
    grad = torch.randn(*rows, 32).bfloat16()

    y, exact_y = layer(x), exact(exact_x)
    y.backward(grad)
    exact_y.backward(grad.double())
    found = [y, x.grad, *(parameter.grad for parameter in layer.parameters())]
    expected = [exact_y, exact_x.grad, *(parameter.grad for parameter in exact.parameters())]
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == torch.bfloat16
        # A sum of float32 that lies between two numbers of bfloat16 may be rounded to either.
        torch.testing.assert_close(one.double(), other, rtol=2**-8, atol=1e-6)


@pytest.mark.usefixtures("no_bfloat16")
def test_a_layer_without_gradient_gets_none():
    layer = nn.Linear(8, 8).bfloat16().requires_grad_(False)
    widen_products(layer)
    x = torch.randn(2, 8).bfloat16().requires_grad_()
    layer(x).sum().backward()
    assert x.grad is not None
    assert layer.weight.grad is None


def test_only_where_the_processor_has_no_such_products(monkeypatch):
    for multiplies, dtype in ((True, torch.bfloat16), (False, torch.float32)):
        monkeypatch.setattr(
            precision, "cpu_multiplies", lambda dtype, it=multiplies: it or dtype == torch.float32
        )
        model = tiny_model().to(dtype)
        widen_products(model)
        assert wide_layers(model) == 0


def test_every_processor_multiplies_float32():
    assert precision.cpu_multiplies(torch.float32)


@pytest.mark.usefixtures("one_rank")
@pytest.mark.parametrize(
    "settings", [{}, {"compile": True}, {"zero_stage": 3}], ids=["plain", "compiled", "ZeRO 3"]
)
def test_a_learner_takes_the_same_steps(monkeypatch, settings):
    from iris_ray.learner.self_play_learner import SelfPlayLearner

    def gradient_norms(multiplies: bool, **settings) -> list[float | None]:
        monkeypatch.setattr(precision, "cpu_multiplies", lambda dtype: multiplies)
        given = {"zero_stage": 0, "learning_rate": 1e-3} | settings
        config = run_config(model={"path": "a", "dtype": "bfloat16"}, learner=given)
        learner = SelfPlayLearner(tiny_model(), config, torch.device("cpu"))
        assert (wide_layers(learner.players.scorer) > 0) != multiplies
        learner.start_round(iteration=1, steps=10)
        return [learner.step(make_pairs(4, seed=seed), alpha=1.5).report.grad_norm for seed in (0, 1)]

    torch._dynamo.reset()
    assert gradient_norms(False, **settings) == pytest.approx(gradient_norms(True), rel=0.02)


@pytest.mark.usefixtures("no_bfloat16", "one_rank")
def test_an_adapter_s_layers_too():
    from iris_ray.learner.self_play_learner import SelfPlayLearner

    model = {"path": "a", "dtype": "bfloat16", "lora": {"rank": 2}}
    config = run_config(model=model, learner={"compile": False})
    learner = SelfPlayLearner(tiny_model(), config, torch.device("cpu"))
    linear = [module for module in learner.players.scorer.modules() if isinstance(module, nn.Linear)]
    assert any(module.weight.shape[0] == 2 for module in linear)
    assert all(isinstance(module, WideLinear) for module in linear)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("remove_weight", [True, False])
def test_an_engine_rounds_once_too(monkeypatch, bias, remove_weight):
    from iris_ray.weights import wide_layers

    monkeypatch.setattr(wide_layers, "cpu_multiplies", lambda dtype: False)
    torch.manual_seed(0)
    layer = nn.Linear(64, 32, bias=bias).bfloat16().requires_grad_(False)
    exact = copy.deepcopy(layer).double()
    x = torch.randn(5, 64).bfloat16()
    wide_layers.dispatch(layer, remove_weight)
    assert layer.weight.numel() == (0 if remove_weight else 64 * 32)
    y = layer.cpu_linear(x, layer.weight, layer.bias)
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y.double(), exact(x.double()), rtol=2**-8, atol=1e-6)
