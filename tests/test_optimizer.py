"""Optimisers, learning rates and the engine's step: real DeepSpeed on one and two ranks, and plain torch."""

import functools
import gc
from typing import Any

import pytest
import torch
from conftest import on_ranks, tiny_model
from torch import distributed as dist
from torch import nn
from torch.nn import functional as F

from iris_ray.config import Learner
from iris_ray.errors import ConfigError

STEPS = 3
BATCHES = torch.randn(STEPS, 8, 6, generator=torch.Generator().manual_seed(1))
SETTINGS: dict[str, Any] = {"learning_rate": 1e-2, "weight_decay": 0.5, "max_grad_norm": 0.5}
CASES = [
    *((stage, dtype, "adamw", "none") for stage in range(4) for dtype in ("float32", "bfloat16")),
    *((stage, "float32", "rmsprop", "none") for stage in (0, 2)),
    *((stage, dtype, "adamw", "optimizer") for stage in (1, 2, 3) for dtype in ("float32", "bfloat16")),
    (3, "float32", "adamw", "parameters"),
    (3, "bfloat16", "adamw", "parameters"),
]
SPOILED = {"float32": 1, "bfloat16": 0}  # with and without a state of the optimiser to spoil
COURSES = {"constant": [0.5, 1, 1, 1], "linear": [0.5, 1, 2 / 3, 1 / 3], "cosine": [0.5, 1, 0.75, 0.25]}


def made_model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 16), nn.LayerNorm(16), nn.Linear(16, 1))


def weights(model: nn.Module, stage: int) -> torch.Tensor:
    import deepspeed

    with deepspeed.zero.GatheredParameters(list(model.parameters()), enabled=stage == 3):
        return torch.cat([parameter.detach().float().flatten() for parameter in model.parameters()])


def train(rank: int, ranks: int, case: tuple[int, str, str, str], spoil: int | None) -> dict[str, Any]:
    """Three steps of two micro-batches each; before step `spoil` one that has an inf on the last rank."""
    from iris_ray.learner.engine import build_engine, prepare_model, take_step

    stage, dtype, optimizer, offload = case
    model = made_model().to(getattr(torch, dtype))
    config = Learner.model_validate(
        SETTINGS | {"zero_stage": stage, "optimizer": optimizer, "offload": offload}
    )
    prepare_model(model, config, dtype)
    engine, _ = build_engine(model, config, dtype)
    first = next(model.parameters())
    taken, kept = [], []
    for step in range(STEPS):
        for bad in (True, False) if step == spoil else (False,):
            before = weights(model, stage)
            for micro in range(2):
                hook = None
                if bad and micro == 0 and rank == ranks - 1:
                    hook = first.register_hook(lambda grad: torch.full_like(grad, torch.inf))
                rows = BATCHES[step][rank::ranks][micro::2].to(first.dtype)
                engine.backward((engine(rows) ** 2).sum() / 4 * ranks, scale_wrt_gas=False)
                if hook:
                    hook.remove()
            taken.append(take_step(engine))
            kept.append(torch.equal(before, weights(model, stage)))
    return {"taken": taken, "kept": kept, "weights": weights(model, stage)}


def accumulated_norm(stage: int) -> float | None:
    """The norm of 256 + 8·1, which bfloat16 cannot add up."""
    from iris_ray.learner.engine import build_engine, prepare_model, take_step

    model, config = nn.Linear(1, 1, bias=False), Learner(zero_stage=stage)
    prepare_model(model, config, "bfloat16")
    engine, _ = build_engine(model, config, "bfloat16")
    for value in [256.0] + [1.0] * 8:
        rows = torch.full((1, 1), value, dtype=torch.bfloat16)
        engine.backward(engine(rows).sum(), scale_wrt_gas=False)
    return take_step(engine).grad_norm


def train_checkpointed(stage: int, checkpointing: bool) -> tuple[torch.Tensor, int]:
    """Weights after two steps, and how often a layer ran."""
    from iris_ray.learner.engine import build_engine, prepare_model, take_step

    model = tiny_model().eval()
    calls: list[int] = []
    model.model.layers[0].mlp.register_forward_pre_hook(lambda *_: calls.append(1))
    config = Learner(zero_stage=stage, gradient_checkpointing=checkpointing, learning_rate=1e-2)
    prepare_model(model, config, "float32")
    engine, _ = build_engine(model, config, "float32")
    tokens = torch.arange(1, 25).view(2, 12)
    for _ in range(2):
        logits = engine(input_ids=tokens, use_cache=False).logits
        engine.backward(F.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten()))
        take_step(engine)
    assert not any(module.training for module in model.modules())
    return weights(model, stage), len(calls)


def everything() -> dict[Any, Any]:
    import iris_ray.learner.engine  # noqa: F401

    gc.freeze()  # DeepSpeed collects garbage many times for each engine
    rank, ranks = dist.get_rank(), dist.get_world_size()
    results: dict[Any, Any] = {}
    for case in CASES:
        results[case] = [train(rank, ranks, case, spoil) for spoil in (None, SPOILED[case[1]])]
    for stage in range(4):
        results["accumulated", stage] = accumulated_norm(stage)
    for stage in (0, 2, 3):
        results["checkpointed", stage] = [train_checkpointed(stage, given) for given in (False, True)]
    return results


@pytest.fixture(scope="module", params=[1, 2], ids=["1 rank", "2 ranks"])
def by_rank(request) -> list[dict[Any, Any]]:
    """What each rank saw of everything."""
    return on_ranks(request.param, everything)


@functools.cache
def plain(name: str) -> tuple[torch.Tensor, list[float]]:
    """The same three steps in plain torch: trained weights and the norms of the gradients."""
    model = made_model()
    decaying = [model[0].weight, model[2].weight]
    others = [model[0].bias, model[1].weight, model[1].bias, model[2].bias]
    kind = torch.optim.AdamW if name == "adamw" else torch.optim.RMSprop
    groups = [
        {"params": decaying, "weight_decay": SETTINGS["weight_decay"]},
        {"params": others, "weight_decay": 0.0},
    ]
    optimizer = kind(groups, lr=SETTINGS["learning_rate"])
    norms = []
    for rows in BATCHES:
        optimizer.zero_grad()
        ((model(rows) ** 2).sum() / 4).backward()
        norms.append(nn.utils.clip_grad_norm_(model.parameters(), SETTINGS["max_grad_norm"]).item())
        optimizer.step()
    return weights(model, 0), norms


@pytest.mark.parametrize("case", CASES, ids=lambda case: "-".join(map(str, case)))
def test_every_stage_trains_as_plain_torch_does(by_rank, case):
    _, dtype, optimizer, _ = case
    expected, norms = plain(optimizer)
    way = (expected - weights(made_model(), 0)).norm()
    for results in by_rank:
        clean = results[case][0]
        assert all(step.applied for step in clean["taken"])
        exact = dtype == "float32"
        assert [step.grad_norm for step in clean["taken"]] == pytest.approx(
            norms, rel=1e-5 if exact else 0.02
        )
        assert (clean["weights"] - expected).norm() < (1e-4 if exact else 0.2) * way


@pytest.mark.parametrize("case", CASES, ids=lambda case: "-".join(map(str, case)))
def test_a_gradient_that_is_not_finite_on_one_rank_changes_nothing_on_any(by_rank, case):
    at = SPOILED[case[1]]
    for clean, spoiled in (results[case] for results in by_rank):
        skipped = spoiled["taken"].pop(at)
        assert (skipped.applied, skipped.grad_norm) == (False, None)
        assert spoiled["kept"] == [step == at for step in range(STEPS + 1)]
        # So neither masters nor the optimiser's state nor the next gradient took anything from it.
        assert spoiled["taken"] == clean["taken"]
        assert torch.equal(spoiled["weights"], clean["weights"])


@pytest.mark.parametrize("stage", range(4))
def test_micro_batches_add_up_in_float32(by_rank, stage):
    assert by_rank[0]["accumulated", stage] == 264


@pytest.mark.parametrize("stage", [0, 2, 3])
def test_gradient_checkpointing_only_computes_again(by_rank, stage):
    (kept, calls), (computed_again, more_calls) = by_rank[0]["checkpointed", stage]
    assert (calls, more_calls) == (2, 4)
    assert torch.equal(kept, computed_again)


def test_a_model_that_cannot_be_checkpointed_is_refused():
    from iris_ray.learner.engine import build_engine

    with pytest.raises(ConfigError, match=r"learner\.gradient_checkpointing: True does not fit"):
        build_engine(made_model(), Learner(gradient_checkpointing=True), "float32")


def test_frozen_parameters_are_left_out_and_those_of_one_dimension_do_not_decay():
    from iris_ray.learner.optimizer import build_optimizer

    model = made_model()
    model[0].requires_grad_(False)
    decaying, others = build_optimizer(model, Learner(weight_decay=0.1, adam_betas=(0.8, 0.9))).param_groups
    assert (decaying["params"], decaying["weight_decay"]) == ([model[2].weight], 0.1)
    assert (others["params"], others["weight_decay"]) == ([*model[1].parameters(), model[2].bias], 0)
    assert decaying["betas"] == others["betas"] == (0.8, 0.9)


def course(config: Learner, iterations: list[int], steps: int = 4) -> list[list[float]]:
    """The learning rates of rounds played one after the other with one optimiser."""
    from iris_ray.learner.optimizer import build_optimizer, round_scheduler

    optimizer = build_optimizer(made_model(), config)
    rounds = []
    for iteration in iterations:
        scheduler = round_scheduler(optimizer, config, iteration, steps)
        rates = []
        for _ in range(steps):
            assert len({group["lr"] for group in optimizer.param_groups}) == 1
            rates.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            scheduler.step()
        rounds.append(rates)
    return rounds


@pytest.mark.parametrize("schedule", COURSES)
def test_a_list_gives_each_iteration_its_rate_and_the_last_goes_on(schedule):
    config = Learner(learning_rate=[5e-7, 3e-7, 1e-7], lr_schedule=schedule, lr_warmup_ratio=0.5)
    expected = [[rate * part for part in COURSES[schedule]] for rate in (5e-7, 3e-7, 1e-7, 1e-7)]
    for rates, wanted in zip(course(config, [1, 2, 3, 4]), expected, strict=True):
        assert rates == pytest.approx(wanted, rel=1e-12)


@pytest.mark.parametrize("schedule", COURSES)
def test_a_scheduler_built_anew_repeats_its_rates_bit_for_bit(schedule):
    config = Learner(learning_rate=[5e-7, 3e-7], lr_schedule=schedule, lr_warmup_ratio=0.3)
    assert course(config, [1, 2, 3], steps=7)[1:] == course(config, [2, 3], steps=7)
