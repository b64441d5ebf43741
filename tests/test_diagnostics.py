"""Warnings of a run: each under its cause, once an opponent, with numbers and a way out."""

import json
from dataclasses import replace
from typing import Any

import pytest

from iris_ray.config import Alpha
from iris_ray.contracts import StepReport
from iris_ray.diagnostics import Diagnostics, Finding
from iris_ray.game import Round

# 64 responses of 20 tokens, going well.
HEALTHY = StepReport(
    loss=-0.3,
    reward_real=2.0,
    reward_synthetic=-6.0,
    reward_real_sd=1.0,
    reward_synthetic_sd=3.0,
    ess_real=60.0,
    ess_synthetic=20.0,
    grad_norm=1.0,
    skipped=False,
    learning_rate=1e-6,
    pairs=64,
    truncated=6,
    identical=10,
    response_tokens=20.0,
)
TROUBLE = {
    "ess_real_collapses": {"ess_real": 3.1, "reward_real_sd": 12.5},
    "ess_synthetic_collapses": {"ess_synthetic": 1.2, "reward_synthetic_sd": 33.0},
    "rewards_explode": {"reward_real": 9.0, "reward_synthetic": -25.0},
    "annotated_fall": {"reward_real": -3.0},
    "mostly_truncated": {"truncated": 48},
    "mostly_identical": {"identical": 60},
}
every_trouble = pytest.mark.parametrize("kind", TROUBLE)


def round_(iteration: int = 1, gap: float = 0.1) -> Round:
    return Round(iteration, iteration - 1, alpha=1.0, gap=gap, reason="why")


def watching(**settings: Any) -> Diagnostics:
    return Diagnostics(Alpha(**settings))


def steps(
    diagnostics: Diagnostics, count: int, iteration: int = 1, gap: float = 0.1, **changes: float
) -> list[Finding]:
    """What is said in `count` alike steps."""
    report = replace(HEALTHY, **changes)
    against = round_(iteration, gap)
    return [finding for _ in range(count) for finding in diagnostics.stepped(against, report)]


def kinds(findings: list[Finding]) -> list[str]:
    return [finding.kind for finding in findings]


def test_nothing_is_said_of_a_healthy_run():
    diagnostics = watching()
    for iteration in range(1, 5):
        assert steps(diagnostics, 30, iteration) == []


def test_a_round_begins_at_rewards_of_zero_and_that_is_healthy():
    at_start = {"reward_real": 0.0, "reward_synthetic": 0.0, "ess_real": 64.0, "ess_synthetic": 64.0}
    assert steps(watching(), 10, **at_start, reward_real_sd=0.0, reward_synthetic_sd=0.0) == []


def test_an_objective_that_does_not_look_at_synthetic_responses_is_healthy():
    assert steps(watching(), 10, ess_synthetic=0.0) == []


@every_trouble
def test_each_trouble_is_named_and_no_other(kind):
    assert kinds(steps(watching(), 10, **TROUBLE[kind])) == [kind]


@every_trouble
def test_nothing_is_said_before_the_fifth_step(kind):
    diagnostics = watching()
    assert steps(diagnostics, 4, **TROUBLE[kind]) == []
    assert kinds(steps(diagnostics, 1, **TROUBLE[kind])) == [kind]


@every_trouble
def test_each_trouble_is_told_once_an_opponent(kind):
    diagnostics = watching()
    assert len(steps(diagnostics, 40, **TROUBLE[kind])) == 1
    assert steps(diagnostics, 4, iteration=2, **TROUBLE[kind]) == []
    assert kinds(steps(diagnostics, 36, iteration=2, **TROUBLE[kind])) == [kind]


@every_trouble
def test_an_order_set_anew_is_still_the_same_opponent(kind):
    diagnostics = watching()
    assert len(steps(diagnostics, 10, **TROUBLE[kind])) == 1
    assert steps(diagnostics, 10, gap=0.2, **TROUBLE[kind]) == []


@every_trouble
def test_steps_against_the_opponent_before_do_not_count(kind):
    diagnostics = watching()
    steps(diagnostics, 10, **TROUBLE[kind])
    assert steps(diagnostics, 20, iteration=2) == []


def test_trouble_is_what_lasts_not_a_single_step():
    diagnostics = watching()
    steps(diagnostics, 9)
    assert steps(diagnostics, 1, reward_synthetic=-100.0, truncated=64, identical=64) == []


def test_troubles_are_told_together():
    changes = {key: value for trouble in TROUBLE.values() for key, value in trouble.items()}
    assert sorted(kinds(steps(watching(), 10, **changes))) == sorted(TROUBLE)


MESSAGES = {
    "ess_real_collapses": ("3.1 of 64 annotated", "12.5 nats", "Lower learner.learning_rate"),
    "ess_synthetic_collapses": ("1.2 of 64 synthetic", "33.0 nats", "Lower learner.learning_rate"),
    "rewards_explode": ("+0.45 (annotated)", "-1.25 (synthetic)", "schedule.epochs"),
    "annotated_fall": ("-0.15 nats per token", "objective.name=sft"),
    "mostly_truncated": ("75%", "Raise data.max_response_tokens"),
    "mostly_identical": ("94%", "harder prompts"),
}


@every_trouble
def test_a_warning_tells_what_was_seen_and_what_to_do(kind):
    (finding,) = steps(watching(), 5, **TROUBLE[kind])
    for part in MESSAGES[kind]:
        assert part in finding.message


def test_numbers_are_means_over_the_last_ten_steps():
    diagnostics = watching()
    steps(diagnostics, 20)
    assert steps(diagnostics, 4, truncated=64) == []
    (finding,) = steps(diagnostics, 1, truncated=64)
    assert f"{(5 * 64 + 5 * 6) / 640:.0%}" in finding.message


@pytest.mark.parametrize("pairs", [4, 8, 10])
def test_a_small_batch_collapses_too(pairs):
    few = {"pairs": pairs, "truncated": 0, "identical": 0, "ess_real": 1.2, "ess_synthetic": pairs}
    assert kinds(steps(watching(), 5, **few)) == ["ess_real_collapses"]
    assert steps(watching(), 5, **few | {"ess_real": 2.0}) == []


def test_a_batch_of_one_cannot_collapse():
    one = {"pairs": 1, "truncated": 0, "identical": 0, "ess_real": 1.0, "ess_synthetic": 1.0}
    assert steps(watching(), 5, **one) == []


@pytest.mark.parametrize(
    ("gap", "parts"),
    [
        (5.0, ("gap 5", "α = 3.5", "above alpha.maximum=3", "Lower alpha.c")),
        (-2.0, ("gap -2", "α = 0", "below alpha.minimum=0.5", "Lower learner.learning_rate")),
    ],
)
def test_a_gap_beyond_the_limits_of_the_order_is_told_at_once(gap, parts):
    (finding,) = steps(watching(c=0.5), 1, gap=gap)
    assert finding.kind == "gap_saturates"
    for part in parts:
        assert part in finding.message


@pytest.mark.parametrize(("per", "told"), [("sequence", True), ("token", False)])
def test_counting_per_token_is_advised_where_it_is_not_done(per, told):
    (finding,) = steps(watching(gap_per=per), 1, gap=100.0)
    assert ("alpha.gap_per=token" in finding.message) == told


@pytest.mark.parametrize("gap", [4.0, -1.0, 0.0])
def test_a_gap_at_the_limits_of_the_order_is_healthy(gap):
    assert steps(watching(c=0.5), 1, gap=gap) == []


def test_a_minimum_above_one_is_a_choice():
    assert steps(watching(minimum=1.2), 1, gap=0.0) == []


@pytest.mark.parametrize("schedule", ["fixed", "geometric", "mine"])
def test_where_the_order_does_not_follow_the_gap_it_cannot_saturate(schedule):
    assert steps(watching(schedule=schedule), 1, gap=100.0) == []


def test_an_objective_without_an_order_does_not_care_for_the_gap():
    assert steps(Diagnostics(None), 10, gap=100.0) == []


def test_saturation_is_told_once_an_opponent():
    diagnostics = watching()
    said = [steps(diagnostics, 1, iteration, gap=100.0) for iteration in (1, 1, 2, 2)]
    assert [kinds(findings) for findings in said] == [["gap_saturates"], [], ["gap_saturates"], []]


@pytest.mark.parametrize("at", [0, 1, 4, 5, 12, 20, 23])
def test_diagnostics_go_on_where_they_were_kept(at):
    """Trouble in rounds of 20 steps comes and goes; what is said does not depend on a restart."""
    troubles = [*TROUBLE.values(), {}, {"grad_norm": None}]

    def said(diagnostics: Diagnostics, numbers: range) -> list[list[Finding]]:
        return [
            steps(diagnostics, 1, 1 + n // 20, gap=5.0 * (n % 3), **troubles[n // 4 % len(troubles)])
            for n in numbers
        ]

    straight, before, after = watching(), watching(), watching()
    expected = said(straight, range(60))
    assert any(expected[at:])
    first = said(before, range(at))
    state = json.loads(json.dumps(before.state_dict()))
    said(before, range(at, 30))  # for nothing
    for resumed in (before, after):
        resumed.load_state_dict(state)
        assert resumed.state_dict() == state
        assert first + said(resumed, range(at, 60)) == expected
        assert resumed.state_dict() == straight.state_dict()
