"""The learner's step: real DeepSpeed on one and two ranks against one plain full-batch step of torch."""

import functools
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from conftest import VOCABULARY, make_pairs, on_ranks, run_config, set_deepspeed, tiny_model
from torch import distributed as dist
from transformers import AutoModelForCausalLM, Qwen2ForCausalLM

from iris_ray.batching import balance
from iris_ray.contracts import SelfPlayPair, StepReport
from iris_ray.learner.batch_rows import BatchRows

if TYPE_CHECKING:
    from iris_ray.learner.self_play_learner import SelfPlayLearner

ALPHA = 1.7
LEARNING_RATE = 1e-2
CHUNK = 24  # response tokens
BATCHES = [
    [
        replace(pair, prompt_id=100 * step + pair.prompt_id, initial_tokens=other.synthetic_tokens)
        for pair, other in zip(make_pairs(7, seed=step), make_pairs(7, seed=10 + step), strict=True)
    ]
    for step in range(4)
]
LOPSIDED_STEP = 2  # rank 0 trains on the whole batch, the other one on nothing
OBJECTIVES = {
    "iris": {},
    "spin": {"lam": 1.0},
    "space": {"mu": 3.0},
    "spif": {"lam": 0.5, "mix": 0.3},
    "tspin": {"a": 0.5, "b": 0.7},
    "sft": {},
}
CASES = [
    (name, stage, micro_batch_tokens)
    for name in OBJECTIVES
    for stage in (0, 1, 2, 3)
    for micro_batch_tokens in (40, 10_000)
    # How gradients come together does not depend on the objective.
    if name == "iris" or (stage in (0, 3) and micro_batch_tokens == 40)
]
COURSES = {"constant": [0.5, 1, 1, 1], "linear": [0.5, 1, 2 / 3, 1 / 3], "cosine": [0.5, 1, 0.75, 0.25]}
PROBE = [pair.prompt_tokens + pair.real_tokens for pair in BATCHES[0]]

# With its own eps of 1e-8, AdamW's first steps are the signs of the gradient: that makes whole steps of
# rounding errors near zero and hides a gradient of the wrong scale. With 1 they follow the gradient.
EPS = 1.0

Weights = dict[str, torch.Tensor]
Scores = tuple[torch.Tensor, torch.Tensor]


@dataclass
class Outcome:
    """What one rank saw of one case: a round of four steps, and the first step of the next round."""

    reports: list[StepReport]
    policy: Weights
    opponent: Weights
    logprobs: list[list[float]]
    saved: Path
    next_report: StepReport
    next_rows: BatchRows


def share(step: int, rank: int, ranks: int) -> list[SelfPlayPair]:
    batch = BATCHES[step]
    if step == LOPSIDED_STEP:
        return batch if rank == 0 else []
    return [batch[i] for i in balance([pair.num_tokens for pair in batch], ranks)[rank]]


def build_learner(objective: str = "iris", **settings: Any) -> "SelfPlayLearner":
    from iris_ray.learner.self_play_learner import SelfPlayLearner

    config = run_config(
        learner={"learning_rate": LEARNING_RATE, "max_grad_norm": 1e9} | settings,
        objective={"name": objective, "options": OBJECTIVES[objective]},
    )
    return SelfPlayLearner(tiny_model(), config, torch.device("cpu"))


def play(rank: int, ranks: int, objective: str, stage: int, micro_batch_tokens: int, folder: Path) -> Outcome:
    from iris_ray.weights.buckets import pack_buckets, unpack_tensors

    learner = build_learner(
        objective,
        zero_stage=stage,
        micro_batch_tokens=micro_batch_tokens,
        lr_schedule="constant",
        lr_warmup_ratio=0,
    )
    for group in learner.optimizer.param_groups:
        group["eps"] = EPS
    learner.start_round(1, len(BATCHES))
    reports = [learner.step(share(step, rank, ranks), ALPHA).report for step in range(len(BATCHES))]
    published = pack_buckets(learner.weights(), 10_000)
    policy = {name: tensor for bucket in published for name, tensor in unpack_tensors(*bucket)}
    opponent = {name: weight.clone() for name, weight in learner.weights(opponent=True)}
    logprobs = learner.token_logprobs(PROBE)
    learner.save(str(folder))
    learner.start_round(2, 1)
    following = learner.step(share(0, rank, ranks), ALPHA)
    return Outcome(reports, policy, opponent, logprobs, folder, following.report, following.rows)


def learning_rates(rank: int, ranks: int, schedule: str) -> list[list[float]]:
    """The learning rates of two rounds whose first half is warm-up."""
    learner = build_learner(lr_schedule=schedule, lr_warmup_ratio=0.5)
    rounds = []
    for iteration in (1, 2):
        learner.start_round(iteration, len(BATCHES))
        steps = [learner.step(share(step, rank, ranks), ALPHA) for step in range(len(BATCHES))]
        rounds.append([step.report.learning_rate for step in steps])
    return rounds


def everything(folder: Path) -> dict[Any, Any]:
    split_finely()
    rank, ranks = dist.get_rank(), dist.get_world_size()
    results: dict[Any, Any] = {case: play(rank, ranks, *case, folder / str(case)) for case in CASES}
    return results | {schedule: learning_rates(rank, ranks, schedule) for schedule in COURSES}


def split_finely() -> None:
    """As large models are: ZeRO-3 leaves no parameter whole, and the head gets few tokens at a time."""
    from iris_ray.learner import sequence_scorer

    set_deepspeed(stage3_param_persistence_threshold=0)
    sequence_scorer.LOGITS_BYTES = 4 * VOCABULARY * CHUNK


@pytest.fixture(scope="module", params=[1, 2], ids=["1 rank", "2 ranks"])
def results(request, tmp_path_factory) -> list[dict[Any, Any]]:
    """What each rank saw of everything."""
    return on_ranks(request.param, everything, tmp_path_factory.mktemp("learner"))


@pytest.fixture(params=CASES, ids=lambda case: "{} ZeRO {} micro-batches of {}".format(*case))
def case(request) -> tuple[str, int, int]:
    return request.param


@pytest.fixture
def by_rank(case, results) -> list[Outcome]:
    return [seen[case] for seen in results]


@pytest.fixture
def outcome(by_rank) -> Outcome:
    return by_rank[-1]  # which one does not matter, and the last is the one that neither writes nor leads


@dataclass
class Reference:
    losses: list[float]
    grad_norms: list[float]
    start: Weights
    trained: Weights


def sequence_logprob(model: Qwen2ForCausalLM, prompt: list[int], response: list[int]) -> torch.Tensor:
    tokens = torch.tensor(prompt + response)
    table = model(tokens[None]).logits[0].log_softmax(-1)
    at = torch.arange(len(prompt), len(tokens))
    return table[at - 1, tokens[at]].double().sum()


def sequence_logprobs(
    policy: Qwen2ForCausalLM, opponent: Qwen2ForCausalLM, sequences: list[tuple[list[int], list[int]]]
) -> Scores:
    with torch.no_grad():
        fixed = torch.stack([sequence_logprob(opponent, *each) for each in sequences])
    return torch.stack([sequence_logprob(policy, *each) for each in sequences]), fixed


def plain_loss(name: str, y: Scores, y1: Scores, y0: Scores) -> torch.Tensor:
    """The objective written down once more; y, y1 and y0 are log-probs under policy and opponent."""
    r, r1 = y[0] - y[1], y1[0] - y1[1]
    if name == "iris":
        return (ALPHA * r1).exp().mean().log() / ALPHA - ((ALPHA - 1) * r).exp().mean().log() / (ALPHA - 1)
    if name == "spin":
        return (1 + (r1 - r).exp()).log().mean()
    if name == "space":
        return (1 + 3 * (-r).exp()).log().mean() + 3 * (1 + r1.exp() / 3).log().mean()
    if name == "spif":
        return (-0.5 * r + 0.5 * r1 + 0.5 * (0.3 * 0.25 * r**2 + 0.7 * 0.25 * r1**2)).mean()
    if name == "tspin":
        first = (1 + (-0.5 * (y[0] - y1[0])).exp()).log()
        return (first + 0.7 * (1 + (-0.5 * (y1[0] - y0[0])).exp()).log()).mean()
    return -y[0].mean()


@functools.cache
def full_batch_round(name: str) -> Reference:
    """The same round by autograd of the whole batch's loss: no micro-batches, no padding, no DeepSpeed."""
    torch.set_num_threads(1)  # a second one only costs time on sequences this short
    policy, opponent = tiny_model().eval(), tiny_model().eval()
    optimizer = torch.optim.AdamW(policy.parameters(), lr=LEARNING_RATE, eps=EPS, weight_decay=0.0)
    losses, grad_norms = [], []
    for batch in BATCHES:
        scores = [
            sequence_logprobs(
                policy, opponent, [(pair.prompt_tokens, getattr(pair, f"{kind}_tokens")) for pair in batch]
            )
            for kind in ("real", "synthetic", "initial")
        ]
        loss = plain_loss(name, *scores)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        grad_norms.append(flat(parameter.grad for parameter in policy.parameters()).norm().item())
    start, trained = (dict(model.named_parameters()) for model in (opponent, policy))
    return Reference(losses, grad_norms, start, trained)


@pytest.fixture
def reference(case) -> Reference:
    return full_batch_round(case[0])


def flat(tensors: Iterable[torch.Tensor]) -> torch.Tensor:
    return torch.cat([tensor.detach().double().flatten() for tensor in tensors])


def same(left: Weights, right: Weights) -> bool:
    return left.keys() == right.keys() and torch.equal(flat(left.values()), flat(right.values()))


def test_losses_are_those_of_the_full_batch(by_rank, reference):
    # Log-probs of about 40 nats carry float32 errors of some 4e-6, whatever is left of their difference.
    expected = pytest.approx(reference.losses, rel=1e-5, abs=1e-5)
    assert max(map(abs, reference.losses)) > 0.1
    for outcome in by_rank:
        assert [report.loss for report in outcome.reports] == expected


def test_trained_weights_are_those_of_the_full_batch(outcome, reference):
    assert outcome.policy.keys() == reference.trained.keys()
    trained, expected, start = (
        flat(weights.values()) for weights in (outcome.policy, reference.trained, reference.start)
    )
    # Measured: 3e-6 of the way the weights went. A wrong scale or share of the gradient is 1e-2 and more.
    assert (trained - expected).norm() < 1e-4 * (expected - start).norm()
    assert (trained - expected).abs().max() < 1e-4 * (expected - start).abs().max()


def test_gradient_norms_are_those_of_the_full_batch(outcome, reference):
    norms = [report.grad_norm for report in outcome.reports]
    assert norms == pytest.approx(reference.grad_norms, rel=1e-4)


def test_reports_are_about_the_whole_batch(outcome):
    assert {report.pairs for report in outcome.reports} == {7}
    assert {report.truncated for report in outcome.reports} == {2}
    assert {report.learning_rate for report in outcome.reports} == {LEARNING_RATE}


def test_a_round_starts_with_nothing_to_tell_apart(outcome, case):
    assert outcome.next_rows.rewards.abs().max() < 1e-5
    for report in (outcome.reports[0], outcome.next_report):
        assert (report.reward_real, report.reward_synthetic) == pytest.approx((0, 0), abs=1e-5)
        assert (report.reward_real_sd, report.reward_synthetic_sd) == pytest.approx((0, 0), abs=1e-5)
        if case[0] == "iris":
            assert report.loss == pytest.approx(0, abs=1e-5)
            assert (report.ess_real, report.ess_synthetic) == (pytest.approx(7), pytest.approx(7))


def test_effective_sample_sizes_follow_the_coefficients(outcome, case):
    last = outcome.reports[-1]
    if case[0] == "sft":
        assert (last.ess_real, last.ess_synthetic) == (pytest.approx(7), 0)
    else:
        assert 1 < last.ess_synthetic < 7 - 1e-4


def test_the_opponent_is_a_frozen_copy(outcome, reference):
    assert same(outcome.opponent, reference.start)
    assert not same(outcome.opponent, outcome.policy)


def test_the_saved_model_is_the_policy(outcome):
    model = AutoModelForCausalLM.from_pretrained(outcome.saved)
    assert same(dict(model.named_parameters()), outcome.policy)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    with torch.no_grad():
        for tokens, logprobs in zip(PROBE, outcome.logprobs, strict=True):
            expected = [sequence_logprob(model, tokens[:i], tokens[i : i + 1]) for i in range(1, len(tokens))]
            assert logprobs == pytest.approx([value.item() for value in expected], abs=1e-4)


@pytest.mark.parametrize("schedule", COURSES)
def test_the_learning_rate_follows_its_course_in_every_round(results, schedule):
    course = [LEARNING_RATE * part for part in COURSES[schedule]]
    for rates in results[0][schedule]:
        assert rates == pytest.approx(course)
