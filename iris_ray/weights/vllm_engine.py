"""What runs inside vLLM's engine process: the receiving end of a weight update, and LoRA on CPU."""

import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.nn import functional as F
from vllm.distributed.weight_transfer.base import (
    WeightTransferEngine,
    WeightTransferInitInfo,
    WeightTransferUpdateInfo,
)
from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory
from vllm.lora.punica_wrapper.punica_cpu import PunicaWrapperCPU
from vllm.platforms import current_platform

from iris_ray.generation.orphans import die_with_parent
from iris_ray.weights.broadcast import BroadcastGroup, TransferError
from iris_ray.weights.buckets import bucket_size, unpack_tensors
from iris_ray.weights.layer_swap import LayerSwap
from iris_ray.weights.layerwise_reload import LayerwiseReload
from iris_ray.weights.manifest import Meeting, TensorSpec
from iris_ray.weights.wide_layers import widen_layers

BACKEND = "iris_ray"


def register() -> None:
    """Make the classes below known to vLLM; called in each of its processes (`vllm.general_plugins`)."""
    die_with_parent()
    if BACKEND not in WeightTransferEngineFactory._registry:
        WeightTransferEngineFactory.register_engine(BACKEND, __name__, "BucketWeightTransferEngine")
    if current_platform.is_cpu():
        name = f"{__name__}.{CPULora.__name__}"
        type(current_platform).get_punica_wrapper = classmethod(  # type: ignore[assignment, method-assign]
            lambda cls: name
        )
        widen_layers()


@dataclass
class InitInfo(WeightTransferInitInfo):
    """Nothing to agree on: every update names its own file."""


@dataclass
class UpdateInfo(WeightTransferUpdateInfo):
    """Some tensors: a file of raw bytes on this node, or bytes that are `sent`, and where each lies in them.

    The file may be deleted once the call returned. While the engine is `serving` its weights stay as they
    are. `cancel` ends an update that will not be finished; the call raises `UpdateCancelled`.
    """

    path: str = ""
    sent: dict[str, Any] | None = None
    tensors: list[dict[str, Any]] = field(default_factory=list)
    serving: bool = False
    cancel: bool = False


class UpdateCancelled(Exception):
    """What vLLM has to see to let go of an update."""


class BucketWeightTransferEngine(WeightTransferEngine[InitInfo, UpdateInfo]):
    """Loads buckets that lie in shared memory, or receives them from the learner."""

    init_info_cls = InitInfo
    update_info_cls = UpdateInfo

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.loading: LayerSwap | LayerwiseReload
        if current_platform.is_cpu() and LayerSwap.fits(self.model):
            self.loading = LayerSwap(self.model)
        else:
            self.loading = LayerwiseReload(self.model, self.model_config)
        self.group: BroadcastGroup | None = None

    def init_transfer_engine(self, init_info: InitInfo) -> None:
        pass

    @torch.no_grad()
    def start_weight_update(self) -> None:
        self.loading.start()

    @torch.no_grad()
    def receive_weights(self, update_info: UpdateInfo) -> None:
        if update_info.cancel:
            raise UpdateCancelled
        specs = [TensorSpec(**spec) for spec in update_info.tensors]
        tensors: Iterable[tuple[str, torch.Tensor]] = ()
        if specs:
            data = self._received(update_info.sent, specs) if update_info.sent else _map(update_info.path)
            tensors = unpack_tensors(data, specs)
        self.loading.receive(tensors, update_info.serving)

    def _received(self, sent: dict[str, Any], specs: list[TensorSpec]) -> torch.Tensor:
        meeting = Meeting(**sent["meeting"])
        try:
            if self.group is None or self.group.meeting != meeting:
                self.shutdown()
                self.group = BroadcastGroup(meeting, sent["rank"] + self.parallel_config.rank)
                self.group.connect()
            device = next(self.model.parameters()).device
            data = torch.empty(bucket_size(specs), dtype=torch.uint8, device=device)
            self.group.broadcast(data)
        except TransferError:
            self.shutdown()
            raise
        if sent["is_last"]:
            self.group.arrive()
        return data

    @torch.no_grad()
    def finish_weight_update(self) -> None:
        self.loading.finish()

    def shutdown(self) -> None:
        if self.group is not None:
            self.group.close()
            self.group = None


def _map(path: str) -> torch.Tensor:
    """A file's bytes without a copy: in shared memory no disk takes part."""
    return torch.from_file(path, shared=False, size=os.path.getsize(path), dtype=torch.uint8)


class CPULora(PunicaWrapperCPU):
    """vLLM's CPU kernels copy the adapter's weights for every token. One adapter needs no copy at all."""

    def add_lora_linear(
        self,
        y: torch.Tensor,
        x: torch.Tensor,
        lora_a_stacked: tuple[torch.Tensor, ...],
        lora_b_stacked: tuple[torch.Tensor, ...],
        scale: float,
        output_slices: tuple[int, ...],
        **kwargs: Any,
    ) -> None:
        """y += scale · x Aᵀ Bᵀ, slice by slice of y's last dimension, for the tokens that ask for it."""
        if kwargs or len(lora_a_stacked[0]) > 1:  # places for adapters
            super().add_lora_linear(y, x, lora_a_stacked, lora_b_stacked, scale, output_slices, **kwargs)
            return
        asking = (self.token_lora_indices >= 0)[:, None]
        if not asking.any():
            return
        rows = x.view(-1, x.shape[-1])
        slices = y.view(-1, y.shape[-1]).split(output_slices, dim=1)
        for part, a, b in zip(slices, lora_a_stacked, lora_b_stacked, strict=True):
            part += F.linear(F.linear(rows, a[0, 0]) * asking, b[0, 0]) * scale
