"""The DeepSpeed engine around the model that is trained."""

from typing import Any

import deepspeed
import torch
from torch import nn

from iris_ray.config import Learner


def build_engine(
    scorer: nn.Module, config: Learner, dtype: str
) -> tuple[deepspeed.DeepSpeedEngine, torch.optim.Optimizer]:
    """A ZeRO engine over `torch.distributed`, and the optimiser whose learning rate it follows."""
    optimizer = torch.optim.AdamW(
        scorer.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay
    )
    engine, *_ = deepspeed.initialize(
        model=scorer,
        optimizer=optimizer,
        config=_deepspeed_config(config, dtype),
        dist_init_required=False,
    )
    return engine, optimizer


def _deepspeed_config(config: Learner, dtype: str) -> dict[str, Any]:
    return {
        "train_micro_batch_size_per_gpu": config.micro_batch_size,
        # A step's number of micro-batches varies, so the step itself is the accumulation's boundary.
        "managed_gradient_accumulation": False,
        "zero_optimization": {"stage": config.zero_stage, "overlap_comm": False},
        "bf16": {"enabled": dtype == "bfloat16"},
        "gradient_clipping": config.max_grad_norm,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "wall_clock_breakdown": False,
    }
