"""Steps whose loss or gradient is not finite, on a whole learner: DeepSpeed on one rank."""

from typing import TYPE_CHECKING

import pytest
import torch
from conftest import make_pairs, run_config, tiny_model

from iris_ray.errors import IrisRayError

if TYPE_CHECKING:
    from iris_ray.learner.self_play_learner import SelfPlayLearner

pytestmark = pytest.mark.usefixtures("one_rank")

PAIRS = make_pairs(4, seed=0)


@pytest.fixture(params=[40, 10_000], ids=["several micro-batches", "one micro-batch"])
def learner(request) -> "SelfPlayLearner":
    from iris_ray.learner.self_play_learner import SelfPlayLearner

    settings = {"learning_rate": 1e-2, "max_skipped_steps": 2, "micro_batch_tokens": request.param}
    learner = SelfPlayLearner(tiny_model(), run_config(learner=settings), torch.device("cpu"))
    learner.start_round(iteration=1, steps=10)
    return learner


def weights(learner: "SelfPlayLearner") -> list[torch.Tensor]:
    return [weight.clone() for _, weight in learner.weights()]


def test_a_step_without_a_finite_loss_trains_nothing(learner: "SelfPlayLearner") -> None:
    learner.score_references(PAIRS)
    good = learner.references[0].clone()
    learner.references[0].fill_(torch.nan)
    before = weights(learner)
    report = learner.step(PAIRS, alpha=1.5).report
    assert report.skipped
    assert report.grad_norm is None
    assert all(map(torch.equal, before, weights(learner)))
    learner.references[0].copy_(good)
    assert not learner.step(PAIRS, alpha=1.5).report.skipped
    assert not any(map(torch.equal, before, weights(learner)))


def test_a_step_without_a_finite_gradient_trains_nothing(learner: "SelfPlayLearner") -> None:
    parameter = next(p for p in learner.players.model.parameters() if p.requires_grad)
    hook = parameter.register_hook(lambda grad: grad * torch.inf)
    before = weights(learner)
    report = learner.step(PAIRS, alpha=1.5).report
    hook.remove()
    assert report.skipped
    assert report.loss == pytest.approx(0, abs=1e-5)
    assert all(map(torch.equal, before, weights(learner)))
    assert not learner.step(PAIRS, alpha=1.5).report.skipped


def test_the_run_ends_when_too_many_steps_in_a_row_are_skipped(learner: "SelfPlayLearner") -> None:
    learner.score_references(PAIRS)
    learner.references[0].fill_(torch.nan)
    for _ in range(2):
        learner.step(PAIRS, alpha=1.5)
    with pytest.raises(IrisRayError, match=r"3 steps in a row.*learner\.max_skipped_steps"):
        learner.step(PAIRS, alpha=1.5)
