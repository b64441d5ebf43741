"""Layers are compiled when a learner is built: its steps find them ready."""

from dataclasses import replace

import pytest
import torch
from conftest import make_pairs, run_config, tiny_model

pytestmark = pytest.mark.usefixtures("one_rank")


@pytest.mark.parametrize(
    "settings",
    [{"zero_stage": 0}, {"zero_stage": 2}, {"zero_stage": 0, "reference": "generator"}],
    ids=["plain", "ZeRO 2", "no opponent"],
)
def test_no_step_compiles_anything(settings) -> None:
    from iris_ray.learner.self_play_learner import SelfPlayLearner

    def step(compiled: bool) -> float | None:
        config = run_config(learner=settings | {"compile": compiled, "learning_rate": 1e-2})
        learner = SelfPlayLearner(tiny_model(), config, torch.device("cpu"))
        learner.start_round(iteration=1, steps=10)
        with torch.compiler.set_stance("fail_on_recompile" if compiled else "default"):
            for seed in (0, 1):  # of another length
                pairs = make_pairs(4 + 3 * seed, seed=seed)
                if settings.get("reference") == "generator":
                    pairs = [replace(pair, reference=[-3.0, -4.0]) for pair in pairs]
                report = learner.step(pairs, alpha=1.5).report
        return report.grad_norm

    torch._dynamo.reset()
    assert step(compiled=True) == pytest.approx(step(compiled=False), rel=1e-4)
