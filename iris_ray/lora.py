"""LoRA through PEFT: a small adapter is trained, published and served; the model under it never changes."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from peft.tuners.lora.layer import ParamWrapper
from safetensors.torch import save_file
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from iris_ray.config import Lora
from iris_ray.errors import ConfigError
from iris_ray.kept_buffers import kept_buffers

POLICY = "policy"
OPPONENT = "opponent"
PREFIX = "base_model.model."  # what PEFT puts before the model's own names

# Makes partitioned parameters (ZeRO-3) whole while it is entered.
Gather = Callable[[Sequence[nn.Parameter]], AbstractContextManager]


def nothing_to_gather(parameters: Sequence[nn.Parameter]) -> AbstractContextManager:
    return nullcontext()


def target_modules(model: PreTrainedModel, lora: Lora) -> list[str]:
    """Last names of the linear layers that get an adapter, sorted; `model` may lie on the meta device.

    Raises `ConfigError` for names that are not linear layers of the model. The output head is none of
    them: vLLM's CPU build cannot score prompts under an adapted head, and a tied head is the embedding.
    """
    head = model.get_output_embeddings()
    linear = {
        name.rpartition(".")[2]
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and module is not head
    }
    wanted = linear if lora.target_modules == "all-linear" else set(lora.target_modules)
    if not wanted or wanted - linear:
        raise ConfigError(
            f"model.lora.target_modules: {lora.target_modules!r} does not fit {type(model).__name__}. "
            f"Its linear layers besides the output head are: {', '.join(sorted(linear)) or 'none'}."
        )
    return sorted(wanted)


def meta_model(path: str, trust_remote_code: bool) -> PreTrainedModel:
    """The model's architecture without its weights."""
    config = AutoConfig.from_pretrained(path, trust_remote_code=trust_remote_code)
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code)


def adapter_config(model: PreTrainedModel, lora: Lora, *, trained: bool = False) -> LoraConfig:
    """PEFT's description of an adapter of `model`; `trained` says that its weights require gradients."""
    return LoraConfig(
        task_type="CAUSAL_LM",
        base_model_name_or_path=model.name_or_path or None,
        r=lora.rank,
        lora_alpha=lora.alpha,  # type: ignore[arg-type] # a real number serves as well
        target_modules=target_modules(model, lora),
        inference_mode=not trained,
    )


def add_adapter(model: PreTrainedModel, lora: Lora, seed: int) -> PeftModel:
    """Wrap `model`: only the adapter of the policy requires gradients.

    A second, frozen adapter is the opponent. Both start equal and as the model itself (B = 0), and are the
    same for the same seed. They have the model's dtype, as vLLM serves them in it; the optimiser of a
    bfloat16 learner keeps its own float32 copy.

    Raises `ConfigError` if PEFT would adapt experts that are fused into one parameter: nothing here merges or
    publishes such an adapter.
    """
    trained, frozen = adapter_config(model, lora, trained=True), adapter_config(model, lora)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        wrapped = get_peft_model(model, trained, adapter_name=POLICY, autocast_adapter_dtype=False)
        wrapped.add_adapter(OPPONENT, frozen, autocast_adapter_dtype=False)
    if any(isinstance(module, ParamWrapper) for module in wrapped.modules()):
        raise ConfigError(
            f"model.lora.target_modules: {lora.target_modules!r} also names layers in the experts of "
            f"{type(model).__name__}, which cannot have an adapter here. Name linear layers outside of them, "
            "such as those of attention."
        )
    freeze_opponent(wrapped)
    return wrapped


def adapter_tensors(model: nn.Module, adapter: str = POLICY) -> Iterator[tuple[str, nn.Parameter]]:
    """The adapter's parameters under the names that PEFT saves them by, which vLLM reads.

    They are the parameters themselves: gather them where they are partitioned (ZeRO-3).
    """
    ending = f".{adapter}.weight"
    for name, parameter in model.named_parameters():
        if name.endswith(ending):
            # Modules around the model (the learner's scorer, DeepSpeed's engine) put names before it.
            inner = name.partition(PREFIX)[2].removesuffix(ending)
            yield f"{PREFIX}{inner}.weight", parameter


@torch.no_grad()
def freeze_opponent(model: nn.Module, gather: Gather = nothing_to_gather) -> None:
    """The policy's adapter as it is now becomes the opponent's; `gather` must write back what it gathered."""
    pairs = zip(adapter_tensors(model, POLICY), adapter_tensors(model, OPPONENT), strict=True)
    for (_, policy), (_, opponent) in pairs:
        with gather([policy, opponent]):
            opponent.copy_(policy)


@contextmanager
def as_opponent(model: PeftModel) -> Iterator[None]:
    """Forward passes inside are the opponent's. They need `torch.no_grad`: nothing requires gradients."""
    model.set_adapter(OPPONENT, inference_mode=True)
    try:
        yield
    finally:
        model.set_adapter(POLICY)


def merged_weights(
    model: PeftModel, gather: Gather = nothing_to_gather
) -> Iterator[tuple[str, torch.Tensor]]:
    """The model with the policy's adapter in its weights, under its Hugging Face names.

    Added in float32, then cast to the weight's dtype; `model` stays as it is. A tied parameter comes once.
    With partitioned parameters every rank must run through all of them, and a tensor lives until the next.
    """
    layers = {id(m.get_base_layer().weight): m for m in model.modules() if isinstance(m, LoraLayer)}
    for name, buffer in kept_buffers(model):
        yield _name_in_model(name), buffer
    for name, weight in model.named_parameters():
        if ".lora_" in name:
            continue
        name = _name_in_model(name)
        layer = layers.get(id(weight))
        if layer is None:
            with gather([weight]):
                yield name, weight.detach()
        else:
            a, b = (part[POLICY].get_parameter("weight") for part in (layer.lora_A, layer.lora_B))
            with gather([weight, a, b]):
                change = b.detach().float() @ a.detach().float() * layer.scaling[POLICY]
                merged = (weight.detach().float() + change).to(weight.dtype)
            yield name, merged


def _name_in_model(name: str) -> str:
    return name.removeprefix(PREFIX).replace(".base_layer.", ".")


def merged_state_dict(model: PeftModel, gather: Gather = nothing_to_gather) -> dict[str, torch.Tensor]:
    """`merged_weights` as copies on the CPU: `get_base_model().save_pretrained` takes them."""
    return {name: weight.to("cpu", copy=True) for name, weight in merged_weights(model, gather)}


def write_adapter(folder: Path, config: LoraConfig, tensors: Iterable[tuple[str, torch.Tensor]]) -> None:
    """Write an adapter as PEFT saves one: adapter_config.json and adapter_model.safetensors."""
    config.save_pretrained(str(folder))
    save_file({name: tensor.detach() for name, tensor in tensors}, folder / "adapter_model.safetensors")
