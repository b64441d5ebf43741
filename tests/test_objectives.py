"""Objectives against golden values, exact identities and a small world that can be computed by hand."""

import json
import math
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Literal

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from pydantic import PositiveFloat

from iris_ray.errors import ConfigError
from iris_ray.objectives import (
    OBJECTIVES,
    Coefficients,
    LogProbObjective,
    LogRatioObjective,
    Objective,
    build_objective,
    coefficients,
    register_objective,
)
from iris_ray.objectives.coefficients import effective_sample_size
from iris_ray.objectives.tilted import tilted_mean

REAL = [0.3, -0.2, 1.1, 0.05]
SYNTHETIC = [-0.4, 0.6, 0.0, -1.3]
GOLDEN_FILE = Path(__file__).parents[2] / "shared/golden/objectives_set_a.json"
# L, ∂L/∂r and ∂L/∂r' of the rewards above by case, computed with 50-digit arithmetic. spif's λ is 1.
GOLDEN = {
    "iris a=0.5": (
        -0.417716106232971,
        [-0.244648682200344, -0.314135126104404, -0.163992915915093, -0.277223275780158],
        [0.221840056853582, 0.365752420427826, 0.270956057311374, 0.141451465407218],
    ),
    "iris a=1.000001": (
        -0.373054231551467,
        [-0.249999996874970, -0.249999871875003, -0.250000196875048, -0.249999934374979],
        [0.178041147798343, 0.483966500744485, 0.265606287724461, 0.0723860637327112],
    ),
    "iris a=3": (
        -0.370841382962402,
        [-0.144353417058440, -0.0531046543986471, -0.714987155262684, -0.0875547732802285],
        [0.0408615922375240, 0.820727019627027, 0.135665263877764, 0.00274612425768538],
    ),
    "spin logistic lam=5": (
        1.01328724603421,
        [-0.0366402884391954, -1.22751723754739, -0.00508767214487016, -0.00146188783131939],
        [0.0366402884391954, 1.22751723754739, 0.00508767214487016, 0.00146188783131939],
    ),
    "spin hinge lam=1": (0.525, [-0.25, -0.25, 0.0, 0.0], [0.25, 0.25, 0.0, 0.0]),
    "spin linear lam=1": (-0.5875, [-0.25] * 4, [0.25] * 4),
    "space mu=3": (
        1.97606250067661,
        [-0.172419389496907, -0.196400335214910, -0.124913268055675, -0.185127082873051],
        [0.136974440435990, 0.283400131117096, 0.187500000000000, 0.0624589332365227],
    ),
    "spif c=0.5 mix=0.25": (
        -0.338359375,
        [-0.23125, -0.2625, -0.18125, -0.246875],
        [0.175, 0.3625, 0.25, 0.00625],
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

Columns = dict[str, list[float]]
KINDS = ("real", "synthetic", "initial")
# Every registered objective with all the responses it looks at, and variants of some.
CASES: dict[str, tuple[Objective, tuple[str, ...]]] = {
    **{name: (build_objective(name), build_objective(name).responses) for name in sorted(OBJECTIVES)},
    "spin hinge": (build_objective("spin", loss="hinge"), KINDS[:2]),
    "spin linear": (build_objective("spin", loss="linear"), KINDS[:2]),
    "tspin without initial": (build_objective("tspin"), KINDS[:2]),
}
every_case = pytest.mark.parametrize("case", CASES)
scores = st.floats(-20, 20)
triples = st.lists(st.tuples(scores, scores, scores), min_size=1, max_size=6)


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Vectors of a few numbers: on a busy machine threads would wait for each other most of the time."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def vector(values: Sequence[float]) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def evaluate(real: list[float], synthetic: list[float], alpha: float) -> Coefficients:
    return coefficients(build_objective("iris"), vector(real), vector(synthetic), alpha=alpha)


def columns(case: str, rows: Sequence[Sequence[float]]) -> Columns:
    """The scores that the case looks at, from rows of y, y' and y0."""
    return {kind: [row[i] for row in rows] for i, kind in enumerate(CASES[case][1])}


def evaluate_case(case: str, batch: Columns, alpha: float = 1.5) -> Coefficients:
    return coefficients(CASES[case][0], **{kind: vector(batch[kind]) for kind in batch}, alpha=alpha)


def sigmoid(t: float) -> float:
    return 1 / (1 + math.exp(-t))


def near(value: object) -> object:
    return pytest.approx(value, rel=1e-9, abs=1e-9)


def check_golden(case: str, loss: float, d_real: list[float], d_synthetic: list[float]) -> None:
    """`case` is an objective's name, then a loss or `option=number`; `a` is the order."""
    name, *words = case.split()
    options: dict[str, float | str] = {"lam": 1.0} if name == "spif" else {}
    for word in words:
        option, equals, value = word.partition("=")
        options |= {option: float(value)} if equals else {"loss": word}
    alpha = options.pop("a", None)
    result = coefficients(build_objective(name, **options), vector(REAL), vector(SYNTHETIC), alpha=alpha)
    assert result.loss == pytest.approx(loss, rel=1e-10)
    assert result.real.tolist() == pytest.approx(d_real, rel=1e-10)
    assert result.synthetic.tolist() == pytest.approx(d_synthetic, rel=1e-10)


@pytest.mark.parametrize("case", GOLDEN)
def test_golden_values(case):
    check_golden(case, *GOLDEN[case])


@pytest.mark.skipif(not GOLDEN_FILE.exists(), reason="the reference values do not lie beside this checkout")
def test_golden_values_of_every_case():
    reference = json.loads(GOLDEN_FILE.read_text())
    assert (reference["real"], reference["synthetic"]) == (REAL, SYNTHETIC)
    assert {case.split()[0] for case in reference["cases"]} == {"iris", "spin", "space", "spif"}
    assert len(reference["cases"]) >= 19
    for case, values in reference["cases"].items():
        gradients = ([float(value) for value in values[key]] for key in ("d_real", "d_synthetic"))
        check_golden(case, float(values["L"]), *gradients)


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


@every_case
def test_float32_scores_give_a_float64_loss_that_can_be_differentiated(case):
    batch = columns(case, [(0.1, -0.2, 0.3), (-0.4, 0.5, 0.0)])
    single = {kind: vector(batch[kind]).float().requires_grad_() for kind in batch}
    loss = CASES[case][0](**single, alpha=1.5)
    assert (loss.dtype, loss.dim()) == (torch.float64, 0)
    loss.backward()
    for kind, gradient in single.items():
        assert gradient.grad.tolist() == pytest.approx(
            getattr(evaluate_case(case, batch), kind).tolist(), rel=1e-5
        )


@every_case
def test_huge_scores_of_every_objective_stay_finite(case):
    extremes = (1e3, -1e3, 0.0)
    rows = [(y, y_, y0) for y in extremes for y_ in extremes for y0 in extremes]
    for some in (rows, *([row] for row in rows)):
        result = evaluate_case(case, columns(case, some))
        assert math.isfinite(result.loss)
        assert all(getattr(result, kind).isfinite().all() for kind in CASES[case][1])


# The hinge has no derivative at its corner; its golden values tell on which side it is what.
@pytest.mark.parametrize("case", [case for case in CASES if case != "spin hinge"])
@settings(max_examples=25)
@given(rows=triples, alpha=orders)
def test_gradient_of_every_objective_equals_finite_differences(case, rows, alpha):
    step, batch = 1e-5, columns(case, rows)
    result = evaluate_case(case, batch, alpha)
    for kind, values in batch.items():
        for i, value in enumerate(values):
            values[i] = value + step
            above = evaluate_case(case, batch, alpha).loss
            values[i] = value - step
            below = evaluate_case(case, batch, alpha).loss
            values[i] = value
            gradient = getattr(result, kind)[i].item()
            assert (above - below) / (2 * step) == pytest.approx(gradient, abs=1e-7)


@every_case
@settings(max_examples=25)
@given(rows=triples, alpha=orders, rng=st.randoms(use_true_random=False))
def test_order_of_the_prompts_does_not_matter_to_any_objective(case, rows, alpha, rng):
    result = evaluate_case(case, columns(case, rows), alpha)
    order = rng.sample(range(len(rows)), len(rows))
    shuffled = evaluate_case(case, columns(case, [rows[i] for i in order]), alpha)
    assert shuffled.loss == near(result.loss)
    for kind in CASES[case][1]:
        assert getattr(shuffled, kind).tolist() == near(getattr(result, kind)[order].tolist())


@every_case
@settings(max_examples=25)
@given(rows=triples, alpha=orders, times=st.integers(1, 4))
def test_repeating_all_prompts_changes_nothing_for_any_objective(case, rows, alpha, times):
    once = evaluate_case(case, columns(case, rows), alpha)
    repeated = evaluate_case(case, columns(case, rows * times), alpha)
    assert repeated.loss == near(once.loss)
    for kind in CASES[case][1]:
        totals = getattr(repeated, kind).view(times, -1).sum(0)
        assert totals.tolist() == near(getattr(once, kind).tolist())


@every_case
@pytest.mark.parametrize("alpha", [0.5, 1, 2])
def test_the_first_step_of_a_round_is_a_plain_likelihood_ratio_step_at_any_order(case, alpha):
    """All annotated up by the same, all others down by the same in total. sft has no others."""
    at_start = evaluate_case(case, columns(case, [(0.0, 0.0, 0.0)] * 4), alpha)
    total = -at_start.real.sum().item()
    assert total > 0
    assert at_start.real.tolist() == pytest.approx([-total / 4] * 4)
    if case != "sft":
        others = at_start.synthetic + (0 if at_start.initial is None else at_start.initial)
        assert others.tolist() == pytest.approx([total / 4] * 4)


@pytest.mark.parametrize("case", ["iris", "space", "spif"])
def test_counts_of_both_sides_may_differ(case):
    at_start = evaluate_case(case, {"real": [0.0] * 2, "synthetic": [0.0] * 5})
    total = -at_start.real.sum().item()
    assert at_start.real.tolist() == pytest.approx([-total / 2] * 2)
    assert at_start.synthetic.tolist() == pytest.approx([total / 5] * 5)
    apart = evaluate_case(case, {"real": [0.5, -1.0], "synthetic": [2.0]})
    assert apart.loss == near(evaluate_case(case, {"real": [0.5, -1.0], "synthetic": [2.0] * 2}).loss)


@pytest.mark.parametrize("case", ["spin", "spin hinge", "spin linear", "tspin", "tspin without initial"])
@pytest.mark.parametrize(("real", "synthetic"), [(3, 2), (2, 3), (1, 3), (3, 1)])
def test_objectives_of_pairs_refuse_unequal_counts(case, real, synthetic):
    with pytest.raises(ValueError, match=f"compares pairs.* {real} .*one side and {synthetic} "):
        evaluate_case(case, {"real": [0.0] * real, "synthetic": [0.0] * synthetic})


@pytest.mark.parametrize("initial", [1, 2])
def test_tspin_refuses_another_count_of_first_responses(initial):
    batch = {"real": [0.0] * 3, "synthetic": [0.0] * 3, "initial": [0.0] * initial}
    with pytest.raises(ValueError, match=f" 3 .*one side and {initial} "):
        evaluate_case("tspin", batch)


@every_case
@pytest.mark.parametrize("shape", [(0,), (2, 3), ()])
def test_only_non_empty_vectors_are_taken(case, shape):
    objective, responses = CASES[case]
    for wrong in responses:
        batch = {kind: torch.zeros(shape if kind == wrong else 2) for kind in responses}
        message = rf"{objective.name}: {wrong} must be a non-empty vector, not \({', '.join(map(str, shape))}"
        with pytest.raises(ValueError, match=message):
            objective(**batch, alpha=1.0)


def test_what_an_objective_does_not_look_at_is_neither_checked_nor_weighed():
    sft = build_objective("sft")
    result = coefficients(sft, vector([-1.0, -3.0]), vector([-2.0] * 3), vector([-5.0]), alpha=2.0)
    assert (result.loss, result.real.tolist()) == (2.0, [-0.5, -0.5])
    assert (result.synthetic.tolist(), result.initial.tolist()) == ([0.0] * 3, [0.0])
    assert sft(vector([-4.0]), torch.zeros(0)).item() == 4
    alone = coefficients(sft, vector([-1.0]))
    assert (alone.synthetic, alone.initial) == (None, None)
    assert build_objective("space")(vector([0.0]), vector([0.0]), vector([])).item() == near(2 * math.log(2))


KNOWN = {
    "iris": (LogRatioObjective, ("real", "synthetic"), True),
    "spin": (LogRatioObjective, ("real", "synthetic"), False),
    "space": (LogRatioObjective, ("real", "synthetic"), False),
    "spif": (LogRatioObjective, ("real", "synthetic"), False),
    "tspin": (LogProbObjective, ("real", "synthetic", "initial"), False),
    "sft": (LogProbObjective, ("real",), False),
}


def test_each_objective_says_what_it_looks_at():
    built = {name: build_objective(name) for name in OBJECTIVES}
    assert {name: (type(o), o.responses, o.has_order) for name, o in built.items()} == KNOWN
    assert all(objective.name == name for name, objective in built.items())


def test_options_have_their_defaults():
    assert build_objective("spin").options == {"lam": 0.1, "loss": "logistic"}
    assert build_objective("space").options == {"mu": 1.0}
    assert build_objective("spif").options == {"lam": 0.1, "c": 0.5, "mix": 0.5}
    assert build_objective("tspin").options == {"a": 1.0, "b": 0.1}
    assert build_objective("spif", lam=2, mix="0.25").options == {"lam": 2.0, "c": 0.5, "mix": 0.25}


@given(
    st.lists(st.tuples(*[st.floats(-60, 0)] * 4), min_size=1, max_size=6),
    st.sampled_from([0.1, 1.0, 5.0]),
)
def test_spin_is_the_official_loss_and_its_gradient_is_that_of_dpo(rows, lam):
    """From log-probs: y is chosen, y' rejected, the opponent is the reference, λ is β."""
    policy_y, policy_y_, opponent_y, opponent_y_ = map(vector, zip(*rows, strict=True))
    policy_y.requires_grad_()
    policy_y_.requires_grad_()
    loss = build_objective("spin", lam=lam)(policy_y - opponent_y, policy_y_ - opponent_y_)
    loss.backward()

    margins = [lam * ((y - y_t) - (y_ - y_t_)) for y, y_, y_t, y_t_ in rows]
    assert loss.item() == near(sum(-math.log(sigmoid(m)) for m in margins) / len(rows))
    slopes = [lam * sigmoid(-m) / len(rows) for m in margins]
    assert policy_y.grad.tolist() == near([-slope for slope in slopes])
    assert policy_y_.grad.tolist() == near(slopes)


@given(triples, st.sampled_from([0.0, 0.5, 1.0, 3.0]), st.sampled_from([0.0, 0.1, 2.0]))
def test_tspin_by_hand(rows, a, b):
    n, (real, synthetic, initial) = len(rows), map(vector, zip(*rows, strict=True))
    result = coefficients(build_objective("tspin", a=a, b=b), real, synthetic, initial)
    loss = sum(-math.log(sigmoid(a * (y - y_))) - b * math.log(sigmoid(a * (y_ - y0))) for y, y_, y0 in rows)
    assert result.loss == near(loss / n)
    up = [a * sigmoid(-a * (y - y_)) / n for y, y_, _ in rows]
    over = [b * a * sigmoid(-a * (y_ - y0)) / n for _, y_, y0 in rows]
    assert result.real.tolist() == near([-u for u in up])
    assert result.synthetic.tolist() == near([u - o for u, o in zip(up, over, strict=True)])
    assert result.initial.tolist() == near(over)


@given(triples)
def test_tspin_without_first_responses_is_tspin_with_b_zero(rows):
    real, synthetic, initial = map(vector, zip(*rows, strict=True))
    without = coefficients(build_objective("tspin", b=0.7), real, synthetic)
    zero = coefficients(build_objective("tspin", b=0), real, synthetic, initial)
    assert (without.loss, without.initial) == (zero.loss, None)
    assert (without.real.tolist(), without.synthetic.tolist()) == (
        zero.real.tolist(),
        zero.synthetic.tolist(),
    )
    assert zero.initial.tolist() == [0.0] * len(rows)


@given(triples)
def test_first_responses_that_are_the_synthetic_ones_cancel_out(rows):
    """In iteration 0 y0 is y' itself: b adds a constant to the loss and nothing to the gradient."""
    real, synthetic, _ = map(vector, zip(*rows, strict=True))
    same = coefficients(build_objective("tspin", b=0.7), real, synthetic, synthetic)
    without = coefficients(build_objective("tspin"), real, synthetic)
    assert same.loss == near(without.loss + 0.7 * math.log(2))
    assert same.real.tolist() == near(without.real.tolist())
    assert (same.synthetic + same.initial).tolist() == near(without.synthetic.tolist())


@given(rewards)
def test_sft_by_hand(logprobs):
    result = coefficients(build_objective("sft"), vector(logprobs))
    assert result.loss == near(-sum(logprobs) / len(logprobs))
    assert result.real.tolist() == near([-1 / len(logprobs)] * len(logprobs))


@given(triples, st.sampled_from([0.1, 1.0, 5.0]))
def test_hinge_and_linear_spin_by_hand(rows, lam):
    n, margins = len(rows), [lam * (r - r_) for r, r_, _ in rows]
    assume(all(abs(1 - margin) > 1e-9 for margin in margins))
    real, synthetic, _ = map(vector, zip(*rows, strict=True))
    hinge = coefficients(build_objective("spin", lam=lam, loss="hinge"), real, synthetic)
    assert hinge.loss == near(sum(max(0.0, 1 - margin) for margin in margins) / n)
    assert hinge.real.tolist() == near([-lam / n if margin < 1 else 0.0 for margin in margins])
    linear = coefficients(build_objective("spin", lam=lam, loss="linear"), real, synthetic)
    assert linear.loss == near(-sum(margins) / n)
    assert (linear.real.tolist(), linear.synthetic.tolist()) == (near([-lam / n] * n), near([lam / n] * n))


def samples(values: Sequence[float], distribution: Sequence[float], count: int = 100) -> list[float]:
    """`count` samples in all, every outcome's value as often as it is likely."""
    return [v for v, p in zip(values, distribution, strict=True) for _ in range(round(count * p))]


def on_small_world(objective: Objective, ratios: Sequence[float], alpha: float | None = None) -> Coefficients:
    """Loss and coefficients when each outcome's log-ratio is as in `ratios`."""
    real, synthetic = vector(samples(ratios, P_DATA)), vector(samples(ratios, P_OPPONENT))
    return coefficients(objective, real, synthetic, alpha=alpha)


def small_world(policy: tuple[float, ...] | list[float], alpha: float) -> float:
    ratios = [math.log(p / q) for p, q in zip(policy, P_OPPONENT, strict=True)]
    return on_small_world(build_objective("iris"), ratios, alpha).loss


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


@given(probabilities)
def test_at_order_one_the_loss_is_that_of_sft_if_every_response_is_seen(policy):
    """Σ p_t·(p_θ/p_t) = 1 for every policy: the synthetic term is constant but for the sampling."""
    ratios = [math.log(p / q) for p, q in zip(policy, P_OPPONENT, strict=True)]
    mean_ratio = sum(p * r for p, r in zip(P_DATA, ratios, strict=True))
    assert small_world(policy, 1) == pytest.approx(-mean_ratio, abs=1e-12)


TRUE_RATIOS = [math.log(p / q) for p, q in zip(P_DATA, P_OPPONENT, strict=True)]
any_ratios = st.lists(st.floats(-5, 5), min_size=3, max_size=3)


@given(any_ratios)
def test_space_is_bounded_by_the_jensen_shannon_divergence(ratios):
    """The best classifier of data against opponent is r = log p_data/p_t; its loss is 2 log 2 − 2 JSD."""
    space = build_objective("space")
    jsd = sum(
        0.5 * p * math.log(2 * p / (p + q)) + 0.5 * q * math.log(2 * q / (p + q))
        for p, q in zip(P_DATA, P_OPPONENT, strict=True)
    )
    bound = 2 * math.log(2) - 2 * jsd
    assert on_small_world(space, TRUE_RATIOS).loss == near(bound)
    assert on_small_world(space, ratios).loss >= bound - 1e-9


@pytest.mark.parametrize("mu", [0.5, 1, 3, 7])
def test_space_rests_at_the_data_for_every_mu(mu):
    result = on_small_world(build_objective("space", mu=mu), TRUE_RATIOS)
    # What data and opponent pull at an outcome cancels: the first has 50 of 100 annotated, 20 synthetic.
    real, synthetic = result.real.split([50, 30, 20]), result.synthetic.split([20, 30, 50])
    for pull_real, pull_synthetic in zip(real, synthetic, strict=True):
        assert (pull_real.sum() + pull_synthetic.sum()).item() == near(0)


@given(any_ratios, st.sampled_from([0.1, 1.0, 2.0]), st.sampled_from([0.25, 0.5]))
def test_spif_has_a_finite_optimum(ratios, lam, mix):
    """A parabola at each outcome: −(p−q)·s + c·(a·p + (1−a)·q)·s² with s = λr."""
    c = 0.5
    parabolas = [(p - q, c * (mix * p + (1 - mix) * q)) for p, q in zip(P_DATA, P_OPPONENT, strict=True)]
    best = [slope / (2 * width) / lam for slope, width in parabolas]
    bound = -sum(slope**2 / (4 * width) for slope, width in parabolas)
    spif = build_objective("spif", lam=lam, c=c, mix=mix)
    assert on_small_world(spif, best).loss == near(bound)
    assert on_small_world(spif, ratios).loss >= bound - 1e-9


def test_linear_spin_has_no_optimum_where_spif_turns_back():
    spin, spif = build_objective("spin", loss="linear", lam=1), build_objective("spif", lam=1)

    def far_out(objective: Objective, size: float) -> float:
        return objective(vector([size]), vector([-size])).item()

    assert [far_out(spin, size) for size in (1, 100, 1e6)] == [-2, -200, -2e6]
    assert far_out(spif, 1) < 0 < far_out(spif, 100) < far_out(spif, 1e6)


def self_play(objective: Objective, iterations: int, alpha: float | None = None) -> list[float]:
    """Total variation between policy and data before the first iteration and after each one.

    Every iteration is played to its optimum: 10 annotated samples against 1000 of the opponent (all
    pairs of both, where pairs are compared), each outcome as often as it is likely.
    """
    logits, distances = vector(P_OPPONENT).log(), []
    for _ in range(iterations + 1):
        opponent = logits.log_softmax(0)
        distances.append(0.5 * (opponent.exp() - vector(P_DATA)).abs().sum().item())
        real = torch.tensor(samples(range(3), P_DATA, 10))
        synthetic = torch.tensor(samples(range(3), opponent.exp().tolist(), 1000))
        if objective.name == "spin":
            real, synthetic = torch.cartesian_prod(real, synthetic).T
        policy = logits.clone().requires_grad_()
        search = torch.optim.LBFGS([policy], max_iter=100, line_search_fn="strong_wolfe")

        def loss(policy=policy, opponent=opponent, real=real, synthetic=synthetic) -> torch.Tensor:
            policy.grad = None
            ratios = policy.log_softmax(0) - opponent
            value = objective(ratios[real], ratios[synthetic], alpha=alpha)
            value.backward()
            return value

        search.step(loss)
        logits = policy.detach()
    return distances


@pytest.mark.parametrize("alpha", [0.5, 1, 2, 3])
def test_one_iteration_of_iris_finds_the_data_at_every_order(alpha):
    start, first, second = self_play(build_objective("iris"), 2, alpha)
    assert start == pytest.approx(0.3)
    assert first < 1e-3
    assert second < 1e-3


@pytest.mark.parametrize(
    ("name", "options"), [("spin", {"lam": 1}), ("space", {"mu": 1}), ("space", {"mu": 3})]
)
def test_one_iteration_also_does_where_the_best_classifier_is_a_ratio_of_policies(name, options):
    assert max(self_play(build_objective(name, **options), 2)[1:]) < 1e-3


@pytest.mark.parametrize("name", ["spin", "spif"])
@pytest.mark.parametrize("lam", [2, 5])
def test_iterations_with_a_larger_lam_come_closer_each_time(name, lam):
    distances = self_play(build_objective(name, lam=lam), 6)
    assert all(later < 0.9 * earlier for earlier, later in pairwise(distances))
    assert lam > 2 or distances[-1] < 0.01


@pytest.mark.parametrize("name", ["spin", "spif"])
def test_a_small_lam_overshoots_when_an_iteration_is_played_to_its_optimum(name):
    """Nothing holds the policy back: it leaves for single outcomes. Practice takes a few small steps."""
    assert min(self_play(build_objective(name, lam=0.1), 3)[1:]) > 0.3


def test_effective_sample_size():
    assert effective_sample_size(torch.full((7,), -1 / 7)) == pytest.approx(7)
    assert effective_sample_size(torch.tensor([0.0, 1.0, 0.0])) == 1
    assert effective_sample_size(torch.zeros(3)) == 0


def test_an_unknown_objective_is_told_what_exists():
    with pytest.raises(ConfigError, match=r"objective\.name: 'irs' does not exist\. Objectives: .*iris"):
        build_objective("irs")


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("iris", {"lam": 1.0}, r"options\.lam: iris has no such option\. It has: none\."),
        ("spin", {"beta": 1.0}, r"options\.beta: spin has no such option\. It has: lam, loss\."),
        ("sft", {"alpha": 1.0}, r"options\.alpha: sft has no such option\. It has: none\."),
        ("iris", {"alpha": 1.0}, r"options\.alpha: iris has no such option\. It has: none\."),
        ("spin", {"lam": 0}, r"options\.lam: 0 does not fit: .*greater than 0"),
        ("spin", {"loss": "x"}, r"options\.loss: 'x' does not fit: .*'logistic', 'hinge' or 'linear'"),
        ("spif", {"mix": 2}, r"options\.mix: 2 does not fit: .*less than or equal to 1"),
        ("spif", {"c": -0.1}, r"options\.c: -0\.1 does not fit: .*greater than or equal to 0"),
        ("space", {"mu": -1}, r"options\.mu: -1 does not fit: .*greater than 0"),
        ("space", {"mu": "a"}, r"options\.mu: 'a' does not fit: .*valid number"),
        ("space", {"mu": math.inf}, r"options\.mu: inf does not fit: .*finite number"),
        ("tspin", {"b": math.nan}, r"options\.b: nan does not fit: .*finite number"),
    ],
)
def test_a_wrong_option_is_told_what_fits(name, options, message):
    with pytest.raises(ConfigError, match=r"^objective\." + message):
        build_objective(name, **options)


def test_all_wrong_options_are_told_at_once():
    with pytest.raises(ConfigError) as error:
        build_objective("spin", lam=-1, loss="x", beta=2)
    assert [line.split(":")[0] for line in str(error.value).splitlines()] == [
        "objective.options.lam",
        "objective.options.loss",
        "objective.options.beta",
    ]


@pytest.fixture
def third():
    """The name of an objective of a third party."""
    yield "third"
    OBJECTIVES.discard("third")


def test_an_objective_of_a_third_party(third):
    @register_objective(third)
    def linear(real, synthetic, *, alpha, scale=1.0):
        return scale * (synthetic.mean() - alpha * real.mean())

    objective = build_objective(third, scale=3.0)
    result = coefficients(objective, torch.tensor([1.0, 3.0]), torch.tensor([4.0]), alpha=0.5)
    assert result.loss == 3 * (4 - 0.5 * 2)
    assert (result.real.tolist(), result.synthetic.tolist()) == ([-0.75, -0.75], [3.0])
    assert (type(objective), objective.has_order) == (LogRatioObjective, True)
    with pytest.raises(ConfigError, match=r"third has no such option\. It has: scale"):
        build_objective(third, lam=1)


def test_options_of_a_third_party_are_checked_by_their_types(third):
    @register_objective(third, kind=LogProbObjective)
    def clipped(real, *, margin: PositiveFloat, side: Literal["low", "high"] = "low"):
        return -real.clamp(max=margin).mean()

    objective = build_objective(third, margin=2)
    assert (type(objective), objective.responses) == (LogProbObjective, ("real",))
    assert objective.options == {"margin": 2.0, "side": "low"}
    with pytest.raises(ConfigError, match=r"objective\.options\.margin: is missing; third needs it"):
        build_objective(third)
    with pytest.raises(ConfigError, match=r"objective\.options\.margin: -2 does not fit: .*greater than 0"):
        build_objective(third, margin=-2)
    with pytest.raises(ConfigError, match=r"objective\.options\.side: 'mid' does not fit: .*'low' or 'high'"):
        build_objective(third, margin=2, side="mid")


def test_a_discarded_objective_is_gone():
    register_objective("third")(lambda real: -real.mean())
    assert "third" in OBJECTIVES
    OBJECTIVES.discard("third")
    OBJECTIVES.discard("third")
    with pytest.raises(ConfigError, match=r"'third' does not exist"):
        build_objective("third")


@pytest.mark.parametrize(
    "function",
    [
        lambda: 0,
        lambda *, alpha: 0,
        lambda synthetic, real: 0,
        lambda real, initial: 0,
        lambda r, r_: 0,
        lambda real, synthetic, alpha: 0,
    ],
)
def test_a_function_that_does_not_start_with_the_responses_is_refused(function):
    with pytest.raises(TypeError, match="third: its first parameters must be real, synthetic, initial"):
        register_objective("third")(function)
    assert "third" not in OBJECTIVES


@every_case
def test_shards_add_up_to_the_gradient_of_the_whole_batch(case):
    """Coefficients of the full vectors, then Σ coefficient·log p shard by shard: no shard's own means."""
    objective, kinds = CASES[case]
    generator = torch.Generator().manual_seed(0)
    tables = torch.randn(len(kinds), 12, 5, 7, generator=generator, dtype=torch.float64)
    opponent = torch.randn(7, generator=generator, dtype=torch.float64)
    policy = torch.randn(7, generator=generator, dtype=torch.float64).requires_grad_()

    def logprobs(table: torch.Tensor, theta: torch.Tensor) -> torch.Tensor:
        """Of the first of five choices, for each sequence."""
        return (table @ theta).log_softmax(-1)[:, 0]

    vectors = [logprobs(table, policy) - logprobs(table, opponent) for table in tables]
    (whole,) = torch.autograd.grad(objective(*vectors, alpha=1.7), policy)

    result = coefficients(objective, *vectors, alpha=1.7)
    added = torch.zeros_like(policy)
    for shard in torch.randperm(12, generator=generator).split([1, 4, 2, 5]):
        for kind, table in zip(kinds, tables, strict=True):
            share = (getattr(result, kind)[shard] * logprobs(table[shard], policy)).sum()
            added += torch.autograd.grad(share, policy)[0]
    torch.testing.assert_close(added, whole, rtol=1e-12, atol=1e-12)
