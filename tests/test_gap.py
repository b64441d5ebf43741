"""Estimators of the gap between annotated data and an opponent."""

from dataclasses import replace

import pytest
from conftest import MEANS
from hypothesis import given
from hypothesis import strategies as st

from iris_ray.errors import ConfigError
from iris_ray.gap import GAP_ESTIMATORS, PairMeans, margin, nll, register_gap_estimator, variational

nats = st.floats(-100, 100)
lengths = st.floats(1, 1000)
means = st.builds(
    PairMeans, nats, nats, nats, nats, lengths, lengths, loss=nats, iris_loss=nats, alpha=st.floats(0.1, 3)
)


def test_tokens_are_the_mean_length_of_both_kinds():
    assert MEANS.tokens == 10


def test_margin_is_the_difference_of_rewards_per_token():
    assert margin(MEANS) == pytest.approx((1.5 + 2.5) / 10)
    assert margin(replace(MEANS, tokens_real=32.0)) == pytest.approx(0.2)


def test_margin_may_be_negative():
    assert margin(replace(MEANS, reward_real=-4.5)) == pytest.approx(-0.2)


def test_variational_gap_is_the_divergence_bound_per_token():
    assert variational(MEANS) == pytest.approx(2.0 * 0.6 / 10)
    assert variational(replace(MEANS, iris_loss=0.6)) == 0


def test_variational_gap_does_not_ask_which_objective_was_trained():
    assert variational(replace(MEANS, loss=-100.0)) == variational(MEANS)


def test_nll_gap_is_the_difference_under_the_opponent_per_token_of_each_kind():
    assert nll(MEANS) == pytest.approx(24 / 12 - 4 / 8)
    assert nll(replace(MEANS, tokens_real=24.0)) == pytest.approx(24 / 24 - 4 / 8)
    assert nll(replace(MEANS, tokens_synthetic=4.0)) == pytest.approx(24 / 12 - 4 / 4)


def test_nll_gap_is_never_negative():
    assert nll(replace(MEANS, reference_real=-1.0)) == 0


def test_nll_gap_looks_at_the_opponent_alone():
    assert nll(
        replace(MEANS, reward_real=9.0, reward_synthetic=9.0, loss=9.0, iris_loss=9.0, alpha=0.5)
    ) == nll(MEANS)


@given(means)
def test_gaps_that_are_divergences_are_never_negative(some):
    assert variational(some) >= 0
    assert nll(some) >= 0


@given(means, st.floats(1, 10))
def test_gaps_are_per_token(some, times):
    """The same text in pieces `times` as long, with `times` the nats: nothing changes."""
    longer = PairMeans(
        reward_real=some.reward_real * times,
        reward_synthetic=some.reward_synthetic * times,
        reference_real=some.reference_real * times,
        reference_synthetic=some.reference_synthetic * times,
        tokens_real=some.tokens_real * times,
        tokens_synthetic=some.tokens_synthetic * times,
        loss=some.loss * times,
        iris_loss=some.iris_loss * times,
        alpha=some.alpha,
    )
    for name in GAP_ESTIMATORS:
        estimate = GAP_ESTIMATORS[name].estimate
        assert estimate(longer) == pytest.approx(estimate(some), rel=1e-9, abs=1e-9)


def test_each_estimator_says_which_pairs_it_wants():
    assert {name: GAP_ESTIMATORS[name].at for name in GAP_ESTIMATORS} == {
        "margin": "end",
        "variational": "end",
        "nll": "start",
    }


def test_an_unknown_estimator_is_told_what_exists():
    message = r"^alpha\.gap: 'kl' does not exist\. Gap estimators: margin, nll, variational\.$"
    with pytest.raises(ConfigError, match=message):
        GAP_ESTIMATORS["kl"]


def test_an_estimator_of_a_third_party():
    @register_gap_estimator("loss", at="end")
    def loss(means):
        return -means.loss / means.tokens

    try:
        assert GAP_ESTIMATORS["loss"].at == "end"
        assert GAP_ESTIMATORS["loss"].estimate(MEANS) == loss(MEANS) == pytest.approx(-0.07)
    finally:
        GAP_ESTIMATORS.discard("loss")
    assert "loss" not in GAP_ESTIMATORS
