"""vLLM's own way to replace weights, which every model and device has."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn
from vllm.config import ModelConfig
from vllm.model_executor.model_loader.reload import (
    finalize_layerwise_reload,
    initialize_layerwise_reload,
)
from vllm.model_executor.model_loader.reload.layerwise import get_layerwise_info
from vllm.platforms import current_platform

from iris_ray.weights.completeness import check_whole


class LayerwiseReload:
    """Takes the model's layers apart and fills them again, so it must stand still.

    What comes while it serves is kept as it came (a mapped file) and loaded later.
    """

    def __init__(self, model: nn.Module, model_config: ModelConfig):
        self.model = model
        self.model_config = model_config
        self.kept: list[tuple[str, torch.Tensor]] = []
        self.apart = False
        # Without those that vLLM derives from what it loads (DeepSeek's attention). Taken now: while layers
        # are apart a tied head has a parameter of its own.
        loaded = {
            f"{path}.{name}"
            for path, module in model.named_modules()
            for name in get_layerwise_info(module).restore_metadata[0]
        }
        self.names = loaded & {name for name, _ in model.named_parameters()}
        self.missing: set[str] = set()
        methods: list[Any] = [getattr(module, "quant_method", None) for module in model.modules()]
        kernels = ((method, getattr(method, "moe_kernel", None)) for method in methods)
        self.kernels = [(method, kernel) for method, kernel in kernels if kernel is not None]

    def start(self) -> None:
        self.kept.clear()
        self.missing = set(self.names)
        if self.apart:
            # An update failed in the middle. Put together what there is; every value is replaced now.
            self._put_together()

    def receive(self, tensors: Iterable[tuple[str, torch.Tensor]], serving: bool) -> None:
        if serving:
            self.kept += tensors
        else:
            self._load([*self._take_kept(), *tensors])

    def finish(self) -> None:
        """Raises `EngineError` if a parameter got no new value: vLLM itself only logs that."""
        self._load(self._take_kept())
        check_whole(self.missing)
        self._put_together()
        self._repack_tied_head()

    def _put_together(self) -> None:
        finalize_layerwise_reload(self.model, self.model_config)
        for method, kernel in self.kernels:  # of layers that vLLM does not load this way, such as GPT-OSS's
            method.moe_kernel = method.moe_kernel or kernel
        self.apart = False

    def _load(self, tensors: list[tuple[str, torch.Tensor]]) -> None:
        if not self.apart:
            if current_platform.is_cpu():
                # Experts are packed as their kernel is made: by vLLM for the first weights alone. Later ones
                # would be multiplied as if they were packed.
                for method, _ in self.kernels:
                    method.moe_kernel = None
            initialize_layerwise_reload(self.model)
            self.apart = True
        loaded = self.model.load_weights(tensors)  # type: ignore[operator]
        # Where a model does not tell, or tells of scales beside the weights, the probe has to do.
        told = loaded is not None and self.model_config.quantization is None
        self.missing = self.missing - loaded if told else set()

    def _take_kept(self) -> list[tuple[str, torch.Tensor]]:
        kept, self.kept = self.kept, []
        return kept

    def _repack_tied_head(self) -> None:
        # A tied head is a module of its own that may hold a packed copy of the embedding (CPU). It gets
        # no tensor of its own in an update, so vLLM does not pack it again: it would go on answering
        # with the old weights, and nothing would say so.
        head = getattr(self.model, "lm_head", None)
        if head is not None and self.model_config.hf_text_config.tie_word_embeddings:
            head.quant_method.process_weights_after_loading(head)
