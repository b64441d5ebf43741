"""What runs inside vLLM's engine process: the receiving end of a weight update, and LoRA on CPU."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
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

from iris_ray.weights.buckets import unpack_tensors
from iris_ray.weights.manifest import TensorSpec

BACKEND = "object_store"


def register() -> None:
    """Make the classes below known to vLLM; called in each of its processes (`vllm.general_plugins`)."""
    if BACKEND not in WeightTransferEngineFactory._registry:
        WeightTransferEngineFactory.register_engine(BACKEND, __name__, "ObjectStoreWeightTransferEngine")
    if current_platform.is_cpu():
        name = f"{__name__}.{CPULora.__name__}"
        type(current_platform).get_punica_wrapper = classmethod(  # type: ignore[assignment, method-assign]
            lambda cls: name
        )


@dataclass
class InitInfo(WeightTransferInitInfo):
    """Nothing to agree on: every update names its own file."""


@dataclass
class UpdateInfo(WeightTransferUpdateInfo):
    """One bucket of weights: a file of raw bytes on this node and where each tensor lies in it."""

    path: str
    tensors: list[dict[str, Any]] = field(default_factory=list)


class ObjectStoreWeightTransferEngine(WeightTransferEngine[InitInfo, UpdateInfo]):
    """Loads buckets that the generator actor took out of Ray's object store into shared memory."""

    init_info_cls = InitInfo
    update_info_cls = UpdateInfo

    def init_transfer_engine(self, init_info: InitInfo) -> None:
        pass

    def start_weight_update(self) -> None:
        from vllm.model_executor.model_loader.reload import initialize_layerwise_reload

        initialize_layerwise_reload(self.model)

    def receive_weights(self, update_info: UpdateInfo) -> None:
        bytes_ = np.memmap(update_info.path, dtype=np.uint8, mode="c")
        specs = [TensorSpec(**spec) for spec in update_info.tensors]
        self.model.load_weights(  # type: ignore[operator]
            unpack_tensors(torch.from_numpy(bytes_), specs)
        )

    def finish_weight_update(self) -> None:
        from vllm.model_executor.model_loader.reload import finalize_layerwise_reload

        finalize_layerwise_reload(self.model, self.model_config)
        self._repack_tied_head()

    def _repack_tied_head(self) -> None:
        # A tied head is a module of its own that may hold a packed copy of the embedding (CPU). It gets
        # no tensor of its own in an update, so vLLM does not pack it again: it would go on answering
        # with the old weights, and nothing would say so.
        head = getattr(self.model, "lm_head", None)
        if head is not None and self.model_config.hf_text_config.tie_word_embeddings:
            head.quant_method.process_weights_after_loading(head)

    def shutdown(self) -> None:
        pass


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
