"""New weights beside a serving model, put in place at once. For vLLM's CPU engine."""

import ctypes
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn
from vllm.model_executor.layers import utils
from vllm.model_executor.layers.attention_layer_base import AttentionLayerBase
from vllm.model_executor.layers.linear import LinearBase, UnquantizedLinearMethod
from vllm.model_executor.layers.vocab_parallel_embedding import (
    ParallelLMHead,
    UnquantizedEmbeddingMethod,
    VocabParallelEmbedding,
)
from vllm.model_executor.model_loader.reload.layerwise import get_layerwise_info
from vllm.model_executor.model_loader.reload.meta import materialize_meta_tensor
from vllm.model_executor.model_loader.reload.sanitize import restore_layer_refs
from vllm.model_executor.model_loader.weight_utils import default_weight_loader

from iris_ray.weights.completeness import check_whole

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # glibc, malloc.h


@dataclass
class Slot:
    """A parameter of the model: who holds it, and how a tensor of its full shape is filled."""

    name: str
    live: nn.Parameter
    owners: list[nn.Module]
    template: torch.Tensor
    """Of full shape. The live one may be empty: vLLM drops a weight once it holds a packed copy."""
    load: Callable[..., Any]
    parts: list[tuple[torch.Tensor, tuple[Any, ...], dict[str, Any]]] = field(default_factory=list)
    """What came so far (q, k and v come one by one): tensors, and what else the loader is called with."""

    @property
    def packs(self) -> bool:
        """Whether it is multiplied with as a packed copy. An input embedding alone is only looked up."""
        kinds = LinearBase | ParallelLMHead
        return self.template.ndim == 2 and any(isinstance(owner, kinds) for owner in self.owners)


@dataclass
class Ready:
    """A parameter's new value: `weight` unless only the packed copy is kept, `linear` if there is one."""

    slot: Slot
    weight: torch.Tensor | None
    linear: Callable[..., torch.Tensor] | None

    def apply(self) -> None:
        if self.weight is not None:
            self.slot.live.data.copy_(self.weight)
        for owner in self.slot.owners:
            if self.linear is not None:
                owner.cpu_linear = self.linear  # type: ignore[assignment]
            elif isinstance(owner, VocabParallelEmbedding):
                # Nobody multiplies with it; should one, then with the live weight, never an older copy.
                owner.cpu_linear = nn.functional.linear  # type: ignore[assignment]


class LayerSwap:
    """Readies parameters while the model serves, and swaps them in when it stands still.

    vLLM's own layerwise reload takes a layer apart before it loads it, so all of that happens in the pause:
    a copy of each weight, another packed by oneDNN (which costs several plain copies), and all of it in
    memory that the system has to hand out anew. Here each weight is packed straight from where it came, and
    what is readied before the pause costs no more in it than a change of pointers.
    """

    def __init__(self, model: nn.Module):
        _keep_freed_memory()
        self.model = model
        self.slots = _slots(model)
        self.ready: list[Ready] = []
        self.missing: set[str] = set()
        self.serving = True
        for slot in self.slots.values():
            slot.live.weight_loader = self._recorder(slot)  # type: ignore[attr-defined]

    @staticmethod
    def fits(model: nn.Module) -> bool:
        """Whether all that the model's layers do with weights is known here; if not, vLLM's own way serves.

        Layers that are split over several processes are not.
        """
        return all(map(_is_known, model.modules()))

    def start(self) -> None:
        self.ready.clear()
        self.missing = {slot.name for slot in self.slots.values()}
        for slot in self.slots.values():
            slot.parts.clear()

    def receive(self, tensors: Iterable[tuple[str, torch.Tensor]], serving: bool) -> None:
        """Ready what is complete with `tensors`; unless the model is `serving`, put it in place, too."""
        self.serving = serving
        if not serving:
            self._swap()
        self.model.load_weights(tensors)  # type: ignore[operator]

    def finish(self) -> None:
        """Raises `EngineError` if a parameter got no new value, or half of one."""
        self._swap()
        check_whole(self.missing)

    def _recorder(self, slot: Slot) -> Callable[..., None]:
        def record(live: nn.Parameter, loaded: torch.Tensor, *args: Any, **kwargs: Any) -> None:
            slot.parts.append((loaded, args, kwargs))
            got = sum(part.numel() for part, _, _ in slot.parts)
            # A tensor that is no part of a fused one is all there is, even where the model pads it.
            if not (args or kwargs) or got >= slot.template.numel():
                self._make_ready(slot)
                if not self.serving:  # at once: what it frees is what the next one needs
                    self._swap()

        return record

    def _make_ready(self, slot: Slot) -> None:
        weight = _whole(slot)
        linear = None
        if slot.packs:
            layer: Any = SimpleNamespace(weight=weight)
            utils.dispatch_cpu_unquantized_gemm(layer, remove_weight=False)
            linear = layer.cpu_linear
        slot.parts.clear()
        kept = weight if slot.live.numel() else None
        if kept is not None and self.serving:
            # Of the heap: giving a file's memory back to the system takes longer than the copy in the pause.
            kept = kept.clone()
        self.ready.append(Ready(slot, kept, linear))
        self.missing.discard(slot.name)

    def _swap(self) -> None:
        for ready in self.ready:
            ready.apply()
        self.ready.clear()


def _slots(model: nn.Module) -> dict[int, Slot]:
    slots: dict[int, Slot] = {}
    for path, module in model.named_modules():
        templates = get_layerwise_info(module).restore_metadata[0]
        for name, live in module.named_parameters(recurse=False):
            if id(live) in slots:  # tied
                slots[id(live)].owners.append(module)
                continue
            template: torch.Tensor = live
            if name in templates:
                template = restore_layer_refs(templates[name], module)
            load = getattr(template, "weight_loader", default_weight_loader)
            slots[id(live)] = Slot(f"{path}.{name}", live, [module], template, load)
    return slots


def _is_known(module: nn.Module) -> bool:
    if isinstance(module, LinearBase):
        return type(module.quant_method) is UnquantizedLinearMethod and module.tp_size == 1
    if isinstance(module, VocabParallelEmbedding):
        return type(module.quant_method) is UnquantizedEmbeddingMethod and module.tp_size == 1
    if isinstance(module, AttentionLayerBase):
        return not any(True for _ in module.parameters(recurse=False))
    # Norms and the like compute with the parameter itself.
    return not hasattr(module, "quant_method") and not hasattr(module, "process_weights_after_loading")


def _whole(slot: Slot) -> torch.Tensor:
    """The parts as one tensor: as it came, without a copy, where it came as the model holds it."""
    loaded = slot.parts[0][0]
    if loaded.shape == slot.template.shape and loaded.dtype == slot.template.dtype:
        return loaded
    weight = materialize_meta_tensor(slot.template)
    for part, args, kwargs in slot.parts:
        slot.load(weight, part, *args, **kwargs)
    return weight.data.as_subclass(torch.Tensor)


def _keep_freed_memory() -> None:
    """Have glibc keep what is freed: the next weights of the same size need no new pages from the system.

    New pages cost more than the copy that fills them: measured, five times as much.
    """
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        libc.mallopt(M_MMAP_MAX, 0)
        libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
