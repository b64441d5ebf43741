"""What a step knows of its batch, and what a round keeps of its last steps."""

from dataclasses import replace

import pytest
import torch

from iris_ray.contracts import SelfPlayPair, VersionSpan
from iris_ray.learner.batch_rows import BatchRows, given_references
from iris_ray.learner.round_tail import RoundTail
from iris_ray.objectives import build_objective


def batch_rows(step: int, present: int = 2) -> BatchRows:
    """Two pairs whose rewards follow from `step`; the second was cut and is no copy."""
    pairs = [
        SelfPlayPair(1, 7, [1], [1] * 9, [1] * 9, "stop", 0, [VersionSpan(0, 9)]),
        SelfPlayPair(1, 2**40, [1], [1] * 19, [2] * 21, "length", 0, [VersionSpan(0, 21)], replica=3),
    ]
    logprobs = torch.full((2, 3), torch.nan, dtype=torch.float64)
    references = logprobs.clone()
    references[:, :present] = torch.tensor([[-9.0, -7, -5], [-11, -9, -8]])[:, :present]
    rewards = torch.tensor([[step, -step, 1], [step + 2, -step, 2]])
    return BatchRows.of(pairs, references + rewards, references)


def test_rows_tell_prompts_lengths_cuts_and_copies():
    rows = batch_rows(step=3)
    assert (rows.prompt_ids, rows.replicas) == ([7, 2**40], [0, 3])
    assert (len(rows), rows.truncated, rows.identical) == (2, 1, 1)
    assert rows.tokens.tolist() == [[9, 9], [19, 21]]
    assert rows.rewards[:, :2].tolist() == [[3, -3], [5, -3]]


def test_references_that_pairs_bring():
    pair = SelfPlayPair(1, 7, [1], [1], [2], "stop", 0, [VersionSpan(0, 1)], reference=[-1 / 3, -2.5])
    rows = given_references([pair, replace(pair, initial_tokens=[3], reference=[-1.0, -2.0, -3.0])])
    assert rows[0, :2].tolist() == [-1 / 3, -2.5]  # in float64, as they came
    assert rows[0, 2].isnan()
    assert rows[1].tolist() == [-1, -2, -3]
    assert given_references([]).shape == (0, 3)


def test_a_rank_without_pairs_has_a_table_without_rows():
    nothing = torch.empty(0, 3, dtype=torch.float64)
    assert BatchRows.of([], nothing, nothing).table.shape == (0, batch_rows(step=3).table.shape[1])


def test_objectives_get_log_ratios_or_log_probs():
    rows = batch_rows(step=3, present=3)
    spin, tspin, sft = (build_objective(name) for name in ("spin", "tspin", "sft"))
    r, s, _ = rows.rewards.T
    assert rows.coefficients(spin, alpha=1.0)[0] == pytest.approx(spin(r, s).item())
    y, y1, y0 = rows.logprobs.T
    assert rows.coefficients(tspin, alpha=1.0)[0] == pytest.approx(tspin(y, y1, y0).item())
    loss, factors = rows.coefficients(sft, alpha=1.0)
    assert loss == 6  # both are -9 + 3 and -11 + 5
    assert factors.tolist() == [[-0.5, 0, 0], [-0.5, 0, 0]]


def test_without_first_responses_their_factors_are_zero():
    loss, factors = batch_rows(step=3, present=2).coefficients(build_objective("tspin"), alpha=1.0)
    assert loss > 0
    assert factors[:, 2].tolist() == [0, 0]
    assert factors[:, :2].abs().min() > 0


def test_the_end_of_a_round_is_its_last_tenth():
    tail = RoundTail(steps=20)
    for step in range(20):
        tail.add(batch_rows(step))
    spin, iris = build_objective("spin"), build_objective("iris")
    end = tail.means(spin, alpha=1.5)
    assert (end.reward_real, end.reward_synthetic) == (19.5, -18.5)  # of steps 18 and 19
    assert (end.reference_real, end.reference_synthetic) == (-10, -8)
    assert (end.tokens_real, end.tokens_synthetic, end.tokens, end.alpha) == (14, 15, 14.5, 1.5)
    real, synthetic = torch.tensor([18.0, 20, 19, 21]), torch.tensor([-18.0, -18, -19, -19])
    assert end.loss == pytest.approx(spin(real, synthetic).item())
    assert end.iris_loss == pytest.approx(iris(real, synthetic, alpha=1.5).item())


def test_a_short_round_ends_with_its_last_two_steps():
    tail = RoundTail(steps=3)
    for step in range(3):
        tail.add(batch_rows(step))
    assert tail.means(build_objective("iris"), alpha=1.0).reward_real == 2.5
