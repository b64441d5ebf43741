"""Both ends of an update: a process that publishes as a learner does, and one that serves as a generator."""

import time
from concurrent.futures import ThreadPoolExecutor
from statistics import median
from typing import Any

import ray
import torch

from actors.weight_broadcasts import WeightBroadcasts
from actors.weight_publishing import put_buckets
from actors.weight_updates import WeightUpdates
from benchmarks.sync.workload import PROBE, Shape
from iris_ray.config import RunConfig
from iris_ray.weights.buckets import lay_out
from iris_ray.weights.manifest import Bucket, Probe, WeightManifest
from iris_ray.weights.shares import WeightShare

TOKENS = 256  # of a product that a learner computes


@ray.remote(num_cpus=1)
class Publisher:
    """Holds a model of random weights. Times are in seconds, moments those of `time.monotonic`.

    All processes of a machine share that clock, and nobody sets it back.
    """

    def __init__(self, config: RunConfig, shape: Shape, store: Any, folder: str):
        from transformers import Qwen2Config, Qwen2ForCausalLM

        torch.manual_seed(0)
        torch.set_num_threads(1)
        self.config = config
        self.store = store
        self.model = Qwen2ForCausalLM(Qwen2Config(**shape.settings)).eval()
        self.model.to(dtype=torch.bfloat16)
        self.model.config.save_pretrained(folder)
        self.copier = ThreadPoolExecutor(1)
        self.broadcasts: WeightBroadcasts | None = None
        if config.sync.transport != "object_store":
            self.broadcasts = WeightBroadcasts(config.sync, store, torch.device("cpu"))
        self.weights = [parameter.detach() for parameter in self.model.parameters()]
        self.copies = [torch.zeros_like(weight) for weight in self.weights]
        hidden = shape.settings["hidden_size"]
        self.factors = torch.ones(TOKENS, hidden), torch.ones(hidden, hidden)

    def size(self) -> dict[str, int]:
        return {
            "parameters": sum(weight.numel() for weight in self.weights),
            "bytes": sum(weight.nbytes for weight in self.weights),
        }

    @torch.no_grad()
    def change(self) -> None:
        """Other weights, and the probe's log-probs under them."""
        for weight in self.weights:
            weight.neg_()
        tokens = torch.tensor(PROBE)
        table = self.model(tokens).logits.float().log_softmax(-1)[:, :-1]
        self.probe = Probe(PROBE, table.gather(2, tokens[:, 1:, None])[:, :, 0].tolist())

    def _compute(self) -> float:
        """A product of a training step: short beside a copy of all weights."""
        start = time.perf_counter()
        torch.mm(*self.factors)
        return time.perf_counter() - start

    def _list(self, version: int) -> Any:
        weights, bucket_bytes = self.model.named_parameters(), self.config.sync.bucket_mib << 20
        buckets = put_buckets(weights, bucket_bytes, lasting=True)
        return self.store.publish.remote(WeightShare(version, 0, 1, buckets, self.probe))

    def copy(self) -> float:
        """How long a plain copy of all weights takes, into memory that was used before."""
        begin = time.perf_counter()
        for copy, weight in zip(self.copies, self.weights, strict=True):
            copy.copy_(weight)
        return time.perf_counter() - begin

    def publish(self, version: int) -> dict[str, float]:
        """Publish the weights, and tell when that began and how long the learner was blocked.

        By way of the object store weights are copied while the learner computes. Then it was blocked for as
        long as that took longer than by itself.
        """
        if self.broadcasts is None:
            alone = median(self._compute() for _ in range(20))
            begin, start = time.monotonic(), time.perf_counter()
            copied = self.copier.submit(self._list, version)
            while not copied.done():
                self._compute()
                start += alone
            blocked = time.perf_counter() - start
            ray.get(copied.result())
        else:
            begin = time.monotonic()
            layout = lay_out(self.model.named_parameters(), self.config.sync.bucket_mib << 20)
            buckets = [Bucket(None, tensors) for tensors in layout]
            ray.get(self.store.publish.remote(WeightShare(version, 0, 1, buckets, self.probe)))
            ray.wait([self.broadcasts.comers()])
            start = time.perf_counter()  # until they come a learner has other things to do
            manifest = WeightManifest(version, buckets, self.probe)
            assert self.broadcasts.send(manifest, self.model.named_parameters())
            blocked = time.perf_counter() - start
        return {"begin": begin, "learner_blocked_s": blocked}


@ray.remote(num_cpus=1)
class Receiver:
    """One engine, updated as a generator updates its own."""

    def __init__(self, config: RunConfig, store: Any, name: str):
        self.config = config
        self.store = store
        self.name = name

    async def start(self, folder: str) -> None:
        from iris_ray.generation.policy_engine import PolicyEngine

        self.engine = PolicyEngine(self.config, folder, end_token_id=1)
        self.updates = WeightUpdates(self.config, self.engine, self.name, self.store)

    async def update(self, version: int) -> dict[str, float]:
        """Wait for `version`, load it, prove it, and tell when it was served."""
        _, update = await self.updates.load(await self.store.get.remote(version))
        end, start = time.monotonic(), time.perf_counter()
        await self.engine.logprobs(PROBE)
        return {
            "end": end,
            "update_s": update.seconds,
            "paused_s": update.paused_seconds,
            "probe_s": time.perf_counter() - start,
            "parity": update.parity_max_abs_diff,
        }

    async def stop(self) -> None:
        self.engine.shutdown()
