"""The optimiser of a model, and the course of its learning rate."""

import torch
from torch import nn
from torch.optim.lr_scheduler import LRScheduler
from transformers import get_scheduler

from iris_ray.config import Learner
from iris_ray.learner.split_parameters import whole_shape

SCHEDULES = {"constant": "constant_with_warmup", "linear": "linear", "cosine": "cosine"}


def build_optimizer(model: nn.Module, config: Learner) -> torch.optim.Optimizer:
    """`config.optimizer` over all trainable parameters of `model`.

    Two groups, in this order: parameters that decay, and biases and norm weights (all that have one
    dimension), which do not. The learning rate is that of the first iteration.
    """
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in trainable if len(whole_shape(p)) > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in trainable if len(whole_shape(p)) <= 1], "weight_decay": 0.0},
    ]
    rate = learning_rate(config, 1)
    if config.optimizer == "rmsprop":
        return torch.optim.RMSprop(groups, lr=rate, alpha=0.99, foreach=True)
    return torch.optim.AdamW(groups, lr=rate, betas=config.adam_betas, fused=True)


def learning_rate(config: Learner, iteration: int) -> float:
    """The learning rate of `iteration`, which counts from 1; the last one of a list goes on."""
    rates = config.learning_rate
    return rates[min(iteration, len(rates)) - 1] if isinstance(rates, list) else rates


def round_scheduler(
    optimizer: torch.optim.Optimizer, config: Learner, iteration: int, steps: int
) -> LRScheduler:
    """The learning rate's course over the `steps` steps of `iteration`: warm-up, then the schedule.

    Begins at once: the rate of the first step is set. `step()` after each step sets that of the next.
    """
    for group in optimizer.param_groups:
        group["lr"] = group["initial_lr"] = learning_rate(config, iteration)
    warmup = round(config.lr_warmup_ratio * steps)
    scheduler = get_scheduler(SCHEDULES[config.lr_schedule], optimizer, warmup, steps + 1)
    if warmup:
        scheduler.step()  # warm-up begins at 0, where a step would train nothing
    return scheduler
