"""The order of each round: gap estimators, the schedule, and the game that follows it."""

from dataclasses import replace

import pytest
from conftest import run_config
from hypothesis import given
from hypothesis import strategies as st

from iris_ray.alpha import RoundEnd, margin, next_order, variational
from iris_ray.config import Alpha
from iris_ray.game import Game

END = RoundEnd(reward_real=1.5, reward_synthetic=-2.5, loss=-0.6, alpha=2.0, response_tokens=10.0)


def with_gap(gap: float) -> RoundEnd:
    """An end whose margin is `gap` per response token."""
    return replace(END, reward_real=gap * END.response_tokens, reward_synthetic=0.0)


def test_margin_is_the_difference_of_rewards_per_token():
    assert margin(END) == pytest.approx(0.4)
    assert margin(replace(END, response_tokens=20.0)) == pytest.approx(0.2)


def test_variational_gap_is_the_divergence_bound_per_token():
    assert variational(END) == pytest.approx(0.12)
    assert variational(replace(END, loss=0.6)) == 0


def test_fixed_order_stays_but_the_gap_is_still_measured():
    config = Alpha(schedule="fixed", value=1.5, initial_gap=0.3)
    first, later = next_order(config, None), next_order(config, END)
    assert (first.alpha, first.gap) == (1.5, 0.3)
    assert (later.alpha, later.gap) == (1.5, pytest.approx(0.4))


@pytest.mark.parametrize("gap", ["margin", "variational"])
def test_gap_feedback_uses_the_chosen_estimator(gap):
    order = next_order(Alpha(gap=gap, c=0.5), END)
    assert order.gap == {"margin": margin, "variational": variational}[gap](END)
    assert order.alpha == pytest.approx(1 + 0.5 * order.gap)
    assert f"{gap} gap" in order.reason


def test_before_the_first_opponent_the_initial_gap_counts():
    order = next_order(Alpha(initial_gap=0.4, c=0.5), None)
    assert (order.alpha, order.gap) == (pytest.approx(1.2), 0.4)
    assert "initial gap" in order.reason


@given(st.floats(0, 1))
def test_no_gap_is_order_one_whatever_the_gain(c):
    assert next_order(Alpha(c=c), with_gap(0)).alpha == 1


@given(st.floats(-20, 20), st.floats(-20, 20), st.floats(0, 1))
def test_a_larger_gap_never_lowers_the_order(a, b, c):
    low, high = (next_order(Alpha(c=c), with_gap(gap)).alpha for gap in sorted((a, b)))
    assert 0.5 <= low <= high <= 3.0


@pytest.mark.parametrize(("gap", "alpha"), [(100.0, 2.5), (-100.0, 0.75)])
def test_the_order_is_clipped_on_both_sides(gap, alpha):
    assert next_order(Alpha(minimum=0.75, maximum=2.5), with_gap(gap)).alpha == alpha


def test_the_game_hands_out_its_rounds_and_ends():
    game = Game(run_config(schedule={"iterations": 3}, alpha={"c": 0.5}))
    rounds = [game.next_round(version, END if version else None) for version in range(3)]
    assert [(r.iteration, r.version) for r in rounds] == [(1, 0), (2, 1), (3, 2)]
    assert [r.alpha for r in rounds] == pytest.approx([1.0, 1.2, 1.2])
    assert game.next_round(3, END) is None
    assert game.next_round(3, END) is None
