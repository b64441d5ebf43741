"""The order of each round: the schedules, and the game that follows them."""

import json
from dataclasses import replace
from itertools import pairwise, product
from typing import Any

import pytest
from conftest import MEANS, run_config
from hypothesis import given
from hypothesis import strategies as st

from iris_ray.alpha import SCHEDULES
from iris_ray.config import Alpha, RunConfig
from iris_ray.errors import ConfigError
from iris_ray.game import Game, Round
from iris_ray.gap import GAP_ESTIMATORS, PairMeans

# Gaps of these means in nats per token.
GAPS = {"margin": 0.4, "variational": 0.12, "nll": 1.5}
gains = st.floats(0, 1)


def order(gaps: list[float], iterations: int = 5, **settings: Any) -> float:
    config = Alpha(**settings)
    return SCHEDULES[config.schedule](config, gaps, iterations)


def config_of(iterations: int = 3, **alpha: Any) -> RunConfig:
    return run_config(schedule={"iterations": iterations}, alpha=alpha)


def means_of(iteration: int) -> PairMeans:
    """How an opponent's round goes: each one differently."""
    return replace(
        MEANS,
        reward_real=3.0 / iteration,
        reference_real=-30.0 + 2 * iteration,
        iris_loss=-0.9 / iteration,
        tokens_real=12.0 + iteration,
    )


def play(game: Game, rounds: int = 100) -> list[Round]:
    """Rounds of the game as they stood after their first batch, at most `rounds`."""
    played: list[Round] = []
    while len(played) < rounds and (round_ := game.next_round(version=len(game.gaps))):
        played.append(game.measured_start(round_, means_of(round_.iteration)))
        game.measured_end(means_of(round_.iteration))
    return played


def test_the_schedules_there_are():
    assert set(SCHEDULES) == {"fixed", "geometric", "gap_feedback"}


def test_an_unknown_schedule_is_told_what_exists():
    message = r"^alpha\.schedule: 'cosine' does not exist\. Schedules: fixed, gap_feedback, geometric\.$"
    with pytest.raises(ConfigError, match=message):
        Game(config_of(schedule="cosine"))


def test_an_unknown_estimator_is_told_what_exists():
    with pytest.raises(ConfigError, match=r"^alpha\.gap: 'kl' does not exist\. Gap estimators: margin, nll,"):
        Game(config_of(gap="kl"))


@given(st.lists(st.floats(-100, 100), min_size=1), st.floats(0.1, 5))
def test_the_fixed_order_never_changes(gaps, value):
    assert order(gaps, schedule="fixed", value=value) == value


@given(st.floats(0.1, 5), st.floats(0.1, 5), st.integers(2, 9))
def test_the_geometric_order_goes_from_first_to_last_by_equal_factors(first, last, iterations):
    orders = [
        order([0.0] * played, iterations, schedule="geometric", first=first, last=last)
        for played in range(1, iterations + 1)
    ]
    assert (orders[0], orders[-1]) == (first, last)
    factor = (last / first) ** (1 / (iterations - 1))
    assert [later / earlier for earlier, later in pairwise(orders)] == pytest.approx(
        [factor] * (iterations - 1)
    )


def test_a_single_iteration_is_played_at_the_first_geometric_order():
    assert order([0.0], 1, schedule="geometric", first=2.5, last=0.5) == 2.5


@given(st.lists(st.floats(-100, 100), max_size=4), gains)
def test_no_gap_is_order_one_whatever_the_gain_and_the_past(past, c):
    assert order([*past, 0.0], c=c) == 1


@given(st.floats(-20, 20), gains)
def test_gap_feedback_is_one_plus_the_gap_times_its_gain_within_its_limits(gap, c):
    wanted = 1 + c * gap
    assert order([gap], c=c) == (0.5 if wanted < 0.5 else 3.0 if wanted > 3 else wanted)


@given(st.floats(-20, 20), st.floats(-20, 20), gains)
def test_a_larger_gap_never_lowers_the_order(a, b, c):
    low, high = (order([gap], c=c) for gap in sorted((a, b)))
    assert 0.5 <= low <= high <= 3.0


@pytest.mark.parametrize(("gap", "alpha"), [(100.0, 2.5), (-100.0, 0.75)])
def test_the_order_is_clipped_on_both_sides(gap, alpha):
    assert order([gap], minimum=0.75, maximum=2.5) == alpha


def test_the_game_hands_out_its_rounds_and_ends():
    game = Game(config_of(iterations=3, gap="margin", c=0.5))
    rounds = []
    for version in range(3):
        rounds.append(game.next_round(version))
        game.measured_end(MEANS)
    assert [(r.iteration, r.version) for r in rounds] == [(1, 0), (2, 1), (3, 2)]
    assert [r.gap for r in rounds] == pytest.approx([0.0, 0.4, 0.4])
    assert [r.alpha for r in rounds] == pytest.approx([1.0, 1.2, 1.2])
    assert [r.reason for r in rounds] == [
        "gap_feedback, initial gap 0.0000",
        "gap_feedback, margin gap 0.4000",
        "gap_feedback, margin gap 0.4000",
    ]
    assert game.next_round(3) is None
    assert game.next_round(3) is None
    shortened = Game(config_of(iterations=2, gap="margin", c=0.5))
    shortened.load_state_dict(game.state_dict())
    assert shortened.next_round(3) is None


def test_a_round_says_its_opponents_version_whatever_its_iteration():
    assert Game(config_of()).next_round(version=7) == Round(
        1, 7, 1.0, 0.0, "gap_feedback, initial gap 0.0000"
    )


def test_before_the_first_opponent_the_initial_gap_counts():
    opened = Game(config_of(initial_gap=0.4, c=0.5)).next_round(0)
    assert (opened.alpha, opened.gap) == (pytest.approx(1.2), 0.4)
    assert "initial gap" in opened.reason


def test_a_fixed_order_stays_but_the_gap_is_still_measured():
    settings = {"schedule": "fixed", "value": 1.5, "gap": "margin", "initial_gap": 0.3}
    first, second = play(Game(config_of(iterations=2, **settings)))
    assert (first.alpha, first.gap) == (1.5, 0.3)
    assert (second.alpha, second.gap) == (1.5, pytest.approx(GAP_ESTIMATORS["margin"].estimate(means_of(1))))


@pytest.mark.parametrize("gap", ["margin", "variational"])
def test_gaps_at_the_end_decide_on_the_next_opponent_and_a_first_batch_changes_nothing(gap):
    game = Game(config_of(gap=gap))
    first = game.next_round(0)
    assert game.measured_start(first, MEANS) is first
    game.measured_end(MEANS)
    second = game.next_round(1)
    assert second.gap == pytest.approx(GAPS[gap])
    assert second.alpha == pytest.approx(1 + 0.5 * GAPS[gap])
    assert second.reason == f"gap_feedback, {gap} gap {GAPS[gap]:.4f}"
    assert game.measured_start(second, replace(MEANS, reward_real=50.0)) is second
    assert game.gaps == [0.0, second.gap]


def test_a_gap_at_the_start_sets_the_order_of_the_open_round():
    game = Game(config_of(gap="nll", initial_gap=0.2))
    opened = game.next_round(0)
    assert (opened.alpha, opened.gap) == (pytest.approx(1.1), 0.2)
    started = game.measured_start(opened, MEANS)
    assert (started.iteration, started.version) == (1, 0)
    assert (started.alpha, started.gap) == (pytest.approx(1.75), pytest.approx(1.5))
    assert started.reason == "gap_feedback, nll gap 1.5000"
    game.measured_end(replace(MEANS, reference_real=-1000.0))
    # The next opponent's gap is not known before its own first batch.
    assert (game.next_round(1).gap, len(game.gaps)) == (0.2, 2)


@pytest.mark.parametrize(("gap", "times"), [("margin", 10), ("variational", 10), ("nll", 10)])
def test_a_gap_per_sequence_is_that_per_token_times_the_mean_length(gap, times):
    game = Game(config_of(gap=gap, gap_per="sequence", maximum=100))
    started = game.measured_start(game.next_round(0), MEANS)
    game.measured_end(MEANS)
    measured = started if gap == "nll" else game.next_round(1)
    assert measured.gap == pytest.approx(times * GAPS[gap])
    assert measured.alpha == pytest.approx(1 + 0.5 * times * GAPS[gap])


def test_the_initial_gap_is_taken_as_it_is():
    assert Game(config_of(initial_gap=0.2, gap_per="sequence")).next_round(0).gap == 0.2


EVENTS = 9  # three rounds of three


@pytest.mark.parametrize(("schedule", "gap"), list(product(SCHEDULES, GAP_ESTIMATORS)))
@pytest.mark.parametrize("gap_per", ["token", "sequence"])
def test_a_game_restored_at_any_point_goes_on_as_if_it_had_never_stopped(schedule, gap, gap_per):
    config = config_of(schedule=schedule, gap=gap, gap_per=gap_per, initial_gap=0.1, maximum=10)
    unbroken = play(Game(config))
    assert len(unbroken) == 3
    assert len({round_.gap for round_ in unbroken}) == 3
    for stop in range(EVENTS + 1):
        game, rounds = Game(config), []
        for event in range(EVENTS):
            if event == stop:
                kept = json.dumps(game.state_dict())
                game = Game(config)
                game.load_state_dict(json.loads(kept))
            iteration, what = event // 3 + 1, event % 3
            if what == 0:
                rounds.append(game.next_round(iteration - 1))
            elif what == 1:
                rounds[-1] = game.measured_start(rounds[-1], means_of(iteration))
            else:
                game.measured_end(means_of(iteration))
        assert rounds == unbroken
        assert game.next_round(3) is None


def test_a_new_games_state_is_that_of_a_game_not_begun():
    game = Game(config_of())
    game.load_state_dict(json.loads(json.dumps(Game(config_of()).state_dict())))
    assert play(game) == play(Game(config_of()))


def test_a_game_over_stays_over():
    game, restored = Game(config_of()), Game(config_of())
    play(game)
    restored.load_state_dict(json.loads(json.dumps(game.state_dict())))
    assert restored.next_round(3) is None


@pytest.fixture
def steepest():
    """A schedule of a third party, by its name."""

    @SCHEDULES.register("steepest")
    def schedule(settings, gaps, iterations):
        falls = [earlier - later for earlier, later in pairwise(gaps)]
        return settings.options["start"] + max(falls, default=0.0) + iterations / 100

    yield "steepest"
    SCHEDULES.discard("steepest")


def test_a_schedule_of_a_third_party_sees_all_gaps_its_options_and_the_iterations(steepest):
    config = config_of(iterations=4, schedule=steepest, gap="nll", options={"start": 1.5})
    game = Game(config)
    orders = []
    for iteration, nats in enumerate((-24.0, -12.0, -9.0, -36.0), start=1):
        opened = game.next_round(iteration - 1)
        orders.append(game.measured_start(opened, replace(MEANS, reference_real=nats)).alpha)
    # The gaps are 1.5, 0.5, 0.25 and 2.5.
    assert orders == pytest.approx([1.54, 2.54, 2.54, 2.54])


def test_a_schedule_of_a_third_party_goes_on_from_a_checkpoint(steepest):
    config = config_of(iterations=4, schedule=steepest, options={"start": 1.5})
    unbroken = play(Game(config))
    game = Game(config)
    before = play(game, rounds=2)
    restored = Game(config)
    restored.load_state_dict(json.loads(json.dumps(game.state_dict())))
    assert before + play(restored) == unbroken
