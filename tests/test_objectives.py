"""Objectives against golden values, exact identities and a small world that can be computed by hand."""

import json
import math
from pathlib import Path

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from iris_ray.errors import ConfigError
from iris_ray.objectives import Coefficients, build_objective, coefficients, register_objective, registry
from iris_ray.objectives.coefficients import effective_sample_size
from iris_ray.objectives.tilted import tilted_mean

REAL = [0.3, -0.2, 1.1, 0.05]
SYNTHETIC = [-0.4, 0.6, 0.0, -1.3]
GOLDEN_FILE = Path(__file__).parents[2] / "shared/golden/objectives_set_a.json"
# L, ∂L/∂r and ∂L/∂r' of the rewards above by order, computed with 50-digit arithmetic.
GOLDEN = {
    0.5: (
        -0.417716106232971,
        [-0.244648682200344, -0.314135126104404, -0.163992915915093, -0.277223275780158],
        [0.221840056853582, 0.365752420427826, 0.270956057311374, 0.141451465407218],
    ),
    1.000001: (
        -0.373054231551467,
        [-0.249999996874970, -0.249999871875003, -0.250000196875048, -0.249999934374979],
        [0.178041147798343, 0.483966500744485, 0.265606287724461, 0.0723860637327112],
    ),
    3.0: (
        -0.370841382962402,
        [-0.144353417058440, -0.0531046543986471, -0.714987155262684, -0.0875547732802285],
        [0.0408615922375240, 0.820727019627027, 0.135665263877764, 0.00274612425768538],
    ),
}

# Three outcomes: what annotators write, what the opponent writes, what the policy believes.
P_DATA, P_OPPONENT, P_POLICY = (0.5, 0.3, 0.2), (0.2, 0.3, 0.5), (0.4, 0.35, 0.25)
LOSS = {0.5: -0.2602802478, 1: -0.2541893581, 2: -0.2277225202, 3: -0.1963129790}
BOUND = {0.5: -0.2797352617, 1: -0.2748872196, 2: -0.2442900074, 3: -0.2067335268}

rewards = st.lists(st.floats(-20, 20), min_size=1, max_size=8)
orders = st.integers(-300, 300).map(lambda hundredths: hundredths / 100)
shifts = st.floats(-50, 50)
probabilities = st.lists(st.floats(0.01, 1), min_size=3, max_size=3).map(
    lambda weights: [weight / sum(weights) for weight in weights]
)


def vector(values: list[float]) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def evaluate(real: list[float], synthetic: list[float], alpha: float) -> Coefficients:
    return coefficients(build_objective("iris"), vector(real), vector(synthetic), alpha=alpha)


def near(value: float) -> object:
    return pytest.approx(value, rel=1e-9, abs=1e-9)


def check_golden(alpha: float, loss: float, d_real: list[float], d_synthetic: list[float]) -> None:
    result = evaluate(REAL, SYNTHETIC, alpha)
    assert result.loss == pytest.approx(loss, rel=1e-10)
    assert result.real.tolist() == pytest.approx(d_real, rel=1e-10)
    assert result.synthetic.tolist() == pytest.approx(d_synthetic, rel=1e-10)


@pytest.mark.parametrize("alpha", GOLDEN)
def test_golden_values(alpha):
    check_golden(alpha, *GOLDEN[alpha])


@pytest.mark.skipif(not GOLDEN_FILE.exists(), reason="the reference values do not lie beside this checkout")
def test_golden_values_of_every_order():
    reference = json.loads(GOLDEN_FILE.read_text())
    assert (reference["real"], reference["synthetic"]) == (REAL, SYNTHETIC)
    cases = {name: case for name, case in reference["cases"].items() if name.startswith("iris a=")}
    assert len(cases) == 8
    for name, case in cases.items():
        gradients = ([float(value) for value in case[key]] for key in ("d_real", "d_synthetic"))
        check_golden(float(name.removeprefix("iris a=")), float(case["L"]), *gradients)


@given(rewards, rewards, orders)
def test_each_side_of_the_gradient_sums_to_one(real, synthetic, alpha):
    result = evaluate(real, synthetic, alpha)
    assert result.real.sum().item() == pytest.approx(-1, abs=1e-12)
    assert result.synthetic.sum().item() == pytest.approx(1, abs=1e-12)


@given(rewards, rewards, orders)
def test_gradient_equals_finite_differences(real, synthetic, alpha):
    step = 1e-5
    result = evaluate(real, synthetic, alpha)
    for values, gradient in ((real, result.real), (synthetic, result.synthetic)):
        for i, value in enumerate(values):
            values[i] = value + step
            above = evaluate(real, synthetic, alpha).loss
            values[i] = value - step
            below = evaluate(real, synthetic, alpha).loss
            values[i] = value
            assert (above - below) / (2 * step) == pytest.approx(gradient[i].item(), abs=1e-7)


@pytest.mark.parametrize("alpha", [0, 0.5, 1 - 1e-6, 1, 1 + 1e-6, 2, 3])
def test_a_round_starts_at_loss_zero_with_uniform_weights(alpha):
    result = evaluate([0.0] * 5, [0.0] * 3, alpha)
    assert result.loss == 0
    assert result.real.tolist() == pytest.approx([-1 / 5] * 5)
    assert result.synthetic.tolist() == pytest.approx([1 / 3] * 3)


@given(rewards, rewards, orders, shifts, shifts)
def test_shifted_rewards_shift_the_loss(real, synthetic, alpha, a, b):
    shifted = evaluate([r + a for r in real], [r + b for r in synthetic], alpha)
    assert shifted.loss == near(evaluate(real, synthetic, alpha).loss - a + b)


@given(rewards, rewards, orders, st.randoms(use_true_random=False))
def test_order_of_the_samples_does_not_matter(real, synthetic, alpha, rng):
    shuffled = evaluate(rng.sample(real, len(real)), rng.sample(synthetic, len(synthetic)), alpha)
    assert shuffled.loss == near(evaluate(real, synthetic, alpha).loss)


@given(rewards, rewards, orders, st.integers(1, 4), st.integers(1, 4))
def test_repeating_either_side_changes_nothing(real, synthetic, alpha, times_real, times_synthetic):
    once = evaluate(real, synthetic, alpha)
    repeated = evaluate(real * times_real, synthetic * times_synthetic, alpha)
    assert repeated.loss == near(once.loss)
    assert repeated.real.view(times_real, -1).sum(0).tolist() == near(once.real.tolist())
    assert repeated.synthetic.view(times_synthetic, -1).sum(0).tolist() == near(once.synthetic.tolist())


@given(rewards, rewards, orders)
def test_swapping_the_sides_mirrors_the_order(real, synthetic, alpha):
    mirrored = evaluate([-r for r in synthetic], [-r for r in real], 1 - alpha)
    assert mirrored.loss == near(evaluate(real, synthetic, alpha).loss)


@given(rewards, orders, orders)
def test_scaling_the_rewards_scales_the_tilt(u, t, scale):
    scaled = tilted_mean(scale * vector(u), t)
    assert scaled.item() == near(scale * tilted_mean(vector(u), scale * t).item())


@pytest.mark.parametrize("t", [sign * 10.0**-k for sign in (1, -1) for k in range(4, 13, 2)])
def test_tilted_mean_keeps_its_digits_near_zero(t):
    u = vector(REAL)
    second_order = u.mean() + t / 2 * u.var(correction=0)
    assert tilted_mean(u, t).item() == pytest.approx(second_order.item(), abs=t**2 + 1e-15)


@pytest.mark.parametrize("alpha", [0, 1])
@pytest.mark.parametrize("distance", [1e-3, -1e-3, 1e-6, -1e-6, 1e-9, -1e-9])
def test_loss_and_gradient_are_continuous_at_the_limits(alpha, distance):
    at, beside = evaluate(REAL, SYNTHETIC, alpha), evaluate(REAL, SYNTHETIC, alpha + distance)
    assert beside.loss == pytest.approx(at.loss, abs=abs(distance))
    assert beside.real.tolist() == pytest.approx(at.real.tolist(), abs=abs(distance))
    assert beside.synthetic.tolist() == pytest.approx(at.synthetic.tolist(), abs=abs(distance))


@pytest.mark.parametrize("alpha", [0, 0.5, 1, 1 + 1e-6, 1.5, 3])
def test_huge_rewards_stay_finite(alpha):
    huge = [1e3, -1e3, 7.0]
    result = evaluate(huge, huge, alpha)
    assert abs(result.loss) <= 2e3
    assert result.real.sum().item() == pytest.approx(-1)
    assert result.synthetic.sum().item() == pytest.approx(1)


def test_float32_rewards_are_reckoned_in_float64():
    single = vector(REAL).float()
    assert coefficients(build_objective("iris"), single, single, alpha=1.5).real.dtype == torch.float64


def small_world(policy: tuple[float, ...] | list[float], alpha: float) -> float:
    """The loss over 100 samples of each side, every outcome as often as it is likely."""
    ratios = [math.log(p / q) for p, q in zip(policy, P_OPPONENT, strict=True)]

    def samples(distribution: tuple[float, ...]) -> list[float]:
        return [r for r, p in zip(ratios, distribution, strict=True) for _ in range(round(100 * p))]

    return evaluate(samples(P_DATA), samples(P_OPPONENT), alpha).loss


@pytest.mark.parametrize("alpha", LOSS)
def test_small_world(alpha):
    assert small_world(P_POLICY, alpha) == pytest.approx(LOSS[alpha], abs=1e-10)
    assert small_world(P_DATA, alpha) == pytest.approx(BOUND[alpha], abs=1e-10)


@given(probabilities, st.sampled_from(list(BOUND)))
def test_no_policy_is_below_the_bound_and_only_the_data_reach_it(policy, alpha):
    loss = small_world(policy, alpha)
    assert loss >= BOUND[alpha] - 1e-9
    assume(max(abs(p - q) for p, q in zip(policy, P_DATA, strict=True)) > 0.01)
    assert loss > BOUND[alpha] + 1e-5


def test_effective_sample_size():
    assert effective_sample_size(torch.full((7,), -1 / 7)) == pytest.approx(7)
    assert effective_sample_size(torch.tensor([0.0, 1.0, 0.0])) == 1


def test_an_unknown_objective_is_told_what_exists():
    with pytest.raises(ConfigError, match=r"objective\.name: 'irs' does not exist\. Objectives: .*iris"):
        build_objective("irs")


def test_an_unknown_option_is_told_what_exists():
    with pytest.raises(ConfigError, match=r"objective\.options\.lam: iris has no such option.*none"):
        build_objective("iris", lam=1.0)


def test_an_objective_of_a_third_party(monkeypatch):
    monkeypatch.setattr(registry, "_REGISTRY", dict(registry._REGISTRY))

    @register_objective("linear")
    def linear(real, synthetic, *, alpha, scale=1.0):
        return scale * (synthetic.mean() - alpha * real.mean())

    result = coefficients(
        build_objective("linear", scale=3.0), torch.tensor([1.0, 3.0]), torch.tensor([4.0]), alpha=0.5
    )
    assert result.loss == 3 * (4 - 0.5 * 2)
    assert (result.real.tolist(), result.synthetic.tolist()) == ([-0.75, -0.75], [3.0])
    with pytest.raises(ConfigError, match=r"linear has no such option\. It has: scale"):
        build_objective("linear", lam=1)
