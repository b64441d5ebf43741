"""The DeepSpeed engine around the model that is trained."""

import functools
import math
import types
from dataclasses import dataclass
from typing import Any

import deepspeed
import torch
import torch.distributed as dist
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers.modeling_layers import GradientCheckpointingLayer

from iris_ray.config import Learner
from iris_ray.errors import ConfigError
from iris_ray.learner.compiled_ops import load_collectives
from iris_ray.learner.optimizer import build_optimizer
from iris_ray.learner.split_parameters import split_parameters
from iris_ray.precision import cast_parameters


@dataclass(frozen=True)
class StepTaken:
    grad_norm: float | None
    """Norm of the whole gradient before clipping. Empty: it is not finite."""
    applied: bool
    """Whether the weights moved. Without a finite norm they and the optimiser's state stay as they are."""


def prepare_model(model: nn.Module, config: Learner, dtype: str) -> None:
    """Cast the parameters of `model`, and with ZeRO-3 split them over the ranks; collective."""
    if config.num_gpus == 0:
        load_collectives()
    if config.zero_stage == 3:
        split_parameters(model, dtype, engine_config(config, dtype))
    else:
        cast_parameters(model, dtype)


def build_engine(
    scorer: nn.Module, config: Learner, dtype: str
) -> tuple[deepspeed.DeepSpeedEngine, torch.optim.Optimizer]:
    """A ZeRO engine over `torch.distributed`, and the optimiser whose learning rate it follows.

    Raises `ConfigError` if gradient checkpointing is asked of a model without layers for it.
    """
    if config.gradient_checkpointing:
        _checkpoint_layers(scorer)
    optimizer = build_optimizer(scorer, config)
    engine, *_ = deepspeed.initialize(
        model=scorer,
        optimizer=optimizer,
        config=engine_config(config, dtype),
        dist_init_required=False,
    )
    if config.zero_stage == 0:
        _take_plain_steps(engine, optimizer, config.max_grad_norm)
    return engine, optimizer


def build_frozen(scorer: nn.Module, config: Learner, dtype: str) -> deepspeed.DeepSpeedEngine:
    """A ZeRO-3 engine that gathers the parameters of a model that is never trained."""
    engine, *_ = deepspeed.initialize(
        model=scorer, config=engine_config(config, dtype), dist_init_required=False
    )
    return engine


def take_step(engine: deepspeed.DeepSpeedEngine) -> StepTaken:
    """The optimiser's step after the backward passes of a batch; every rank must call it.

    A gradient that is not finite on any rank skips the step on all of them. Either way the gradient is
    cleared.
    """
    if engine.zero_optimization_stage() == 0:
        # For a parameter that no batch used, DeepSpeed would make these in the parameter's own dtype.
        for parameter in engine.module.parameters():
            if parameter.requires_grad and parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter, dtype=torch.float32)
    engine.step()
    applied = engine.was_step_applied()
    if not applied:
        # With an offloaded optimiser, ZeRO 1 and 2 would add the next batch's gradient to this one.
        partitions = getattr(engine.optimizer, "averaged_gradients", {})
        partitions.update(dict.fromkeys(partitions))
    return StepTaken(float(engine.get_global_grad_norm()) if applied else None, applied)


def _take_plain_steps(
    engine: deepspeed.DeepSpeedEngine, optimizer: torch.optim.Optimizer, max_grad_norm: float
) -> None:
    """Without ZeRO: accumulate gradients in float32, clip them, skip what is not finite, and step.

    DeepSpeed does so from ZeRO 1 on. Its own step without ZeRO does it for bfloat16 only, parameter by
    parameter: in a small model's step that is twice the time of this one.
    """
    masters = [master for group in optimizer.param_groups for master in group["params"]]
    parameters = masters
    if engine.bfloat16_enabled():
        parameters = [parameter for group in engine.optimizer.fp16_groups for parameter in group]
        # DeepSpeed has taken a step with gradients of zero: undo its decay and Adam's count of it.
        optimizer.state.clear()
        engine.optimizer.refresh_fp32_params()
    for parameter in engine.module.parameters():
        parameter.grad = None
        parameter.grad_dtype = torch.float32
    # A rank alone has nothing to reduce, and DeepSpeed would copy and round its gradients for that.
    engine.enable_backward_allreduce = dist.get_world_size() > 1
    whole = engine.optimizer  # DeepSpeed's own around the plain one, or that itself
    take = optimizer.step if whole is optimizer else lambda: optimizer.step()  # as the scheduler wraps it

    @torch.no_grad()
    def step(self: Any) -> None:
        for parameter, master in zip(parameters, masters, strict=True):
            master.grad = parameter.grad
        gradients = nn.utils.get_total_norm([master.grad for master in masters])
        norm = gradients.item()
        if norm > max_grad_norm:
            nn.utils.clip_grads_with_norm_(masters, max_grad_norm, gradients)
        # DeepSpeed looks for both under these names.
        self._global_grad_norm, self.overflow = norm, not math.isfinite(norm)
        if not self.overflow:
            take()
            if parameters is not masters:
                torch._foreach_copy_(parameters, masters)
        for master in masters:
            master.grad = None

    whole.step = types.MethodType(step, whole)


def _checkpoint_layers(model: nn.Module) -> None:
    """Checkpoint each decoder layer in eval mode too, where `transformers` itself would not.

    Training mode would be no way out: it also switches on whatever dropout the model has.
    """
    layers = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
    if not layers:
        raise ConfigError(
            "learner.gradient_checkpointing: True does not fit: the model has no layers that "
            "`transformers` could checkpoint. Set it to false."
        )
    for layer in layers:
        layer.forward = functools.partial(
            checkpoint, layer.forward, use_reentrant=False, preserve_rng_state=False
        )


def engine_config(config: Learner, dtype: str) -> dict[str, Any]:
    """DeepSpeed's own settings."""
    plain = config.zero_stage == 0
    zero: dict[str, Any] = {"stage": config.zero_stage, "overlap_comm": False}
    home = {"device": "cpu", "pin_memory": config.num_gpus > 0}
    if config.offload != "none":
        zero["offload_optimizer"] = home
    if config.offload == "parameters":
        zero["offload_param"] = home
    return {
        "train_micro_batch_size_per_gpu": 1,  # asked for, but batches are ours
        # A step's number of micro-batches varies, so the step itself is the accumulation's boundary.
        "managed_gradient_accumulation": False,
        "zero_optimization": zero,
        "bf16": {"enabled": dtype == "bfloat16"},
        "data_types": {} if plain else {"grad_accum_dtype": "fp32"},
        # What is accumulated in float32 should stay so on its way between ranks.
        **({"communication_data_type": "fp32"} if plain else {}),
        "gradient_clipping": 0.0 if plain else config.max_grad_norm,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "wall_clock_breakdown": False,
    }
