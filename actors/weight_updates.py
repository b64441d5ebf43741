"""A generator's way to newer weights: pull, load in place, prove."""

import asyncio
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from iris_ray.config import RunConfig
from iris_ray.contracts import Update
from iris_ray.generation.shared_memory import shared_folder
from iris_ray.weights.buckets import unpack_tensors
from iris_ray.weights.manifest import WeightManifest
from iris_ray.weights.parity import check_parity

if TYPE_CHECKING:
    from iris_ray.generation.policy_engine import PolicyEngine


class WeightUpdates:
    """Brings published weights into one running engine."""

    def __init__(self, config: RunConfig, engine: "PolicyEngine", generator: str):
        self.config = config
        self.engine = engine
        self.generator = generator

    async def load(self, manifest: WeightManifest) -> Update:
        """Update the engine in place and prove it with the probe.

        Whatever this raises, the engine's weights are in an unknown state until a whole update succeeded.
        """
        begin = time.monotonic()
        async with asyncio.timeout(self.config.sync.timeout_s):
            arrays = await asyncio.gather(*[bucket.data for bucket in manifest.buckets])
            load = self._load_adapter if self.config.model.lora else self._load_model
            paused = await load(manifest, arrays)
            logprobs = await self.engine.logprobs(manifest.probe.sequences)
        difference = check_parity(manifest.probe, logprobs, self.config, self.generator, manifest.version)
        return Update(self.generator, manifest.version, time.monotonic() - begin, paused, difference)

    async def _load_model(self, manifest: WeightManifest, arrays: list[np.ndarray]) -> float:
        # The engine's process maps the files: in shared memory that is no copy and no disk.
        with shared_folder() as folder:
            buckets = []
            for index, (array, bucket) in enumerate(zip(arrays, manifest.buckets, strict=True)):
                path = Path(folder) / str(index)
                array.tofile(path)
                buckets.append((path, bucket.tensors))
            return await self.engine.load_weights(manifest.version, buckets)

    async def _load_adapter(self, manifest: WeightManifest, arrays: list[np.ndarray]) -> float:
        tensors = [
            named
            for array, bucket in zip(arrays, manifest.buckets, strict=True)
            for named in unpack_tensors(torch.from_numpy(array.copy()), bucket.tensors)
        ]
        return await self.engine.load_adapter(manifest.version, tensors)
