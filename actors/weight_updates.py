"""A generator's way to newer weights: pull, load in place, prove."""

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Coroutine
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray.exceptions
import torch
from ray.actor import ActorHandle

from iris_ray.config import RunConfig
from iris_ray.contracts import Update
from iris_ray.errors import IrisRayError, UpdateError
from iris_ray.generation.shared_memory import shared_folder
from iris_ray.weights.buckets import Arrays, bucket_size, unpack_arrays
from iris_ray.weights.manifest import Broadcast, TensorSpec, WeightManifest, WeightsLost
from iris_ray.weights.parity import check_parity
from iris_ray.weights.staging import Sent, StagedBucket, write_bucket

if TYPE_CHECKING:
    from iris_ray.generation.policy_engine import PolicyEngine

ATTEMPTS = 3  # of a broadcast: it fails for all when one of the others is lost


class WeightUpdates:
    """Brings published weights into one running engine.

    What fails, or takes longer than `sync.timeout_s`, is an `UpdateError` that says what was waited for.
    Whatever `load` raises, the engine's weights are in an unknown state until a whole update succeeded, and
    it answers nothing if they were half replaced. `WeightsLost` says that the bytes are gone with the learner
    that published them.
    """

    def __init__(self, config: RunConfig, engine: "PolicyEngine", generator: str, store: ActorHandle):
        self.config = config
        self.store = store
        self.engine = engine
        self.generator = generator
        self._ready_serial: int | None = None
        self._ready_buckets = 0
        self._waits_for = ""

    async def prepare(self, manifest: WeightManifest) -> None:
        """Get ready what fits in `sync.buffer_mib`, while the engine serves other weights.

        `load` does it if nobody did, and forgets what was made ready of another version.
        """
        if self.config.model.lora is None and self.config.sync.transport == "object_store":
            async with self._bounded():
                await self._prepare(manifest)

    async def load(self, manifest: WeightManifest) -> tuple[WeightManifest, Update]:
        """Update the engine in place and prove it with the probe. Returns what it serves now.

        That is a later version if the learner sends it and was faster.
        """
        if self.config.sync.transport != "object_store":
            return await self._load_broadcast()
        load = self._load_adapter if self.config.model.lora else self._load_model
        return manifest, await self._proven(manifest, load(manifest))

    async def _load_broadcast(self) -> tuple[WeightManifest, Update]:
        failed = 0
        while True:
            broadcast = await self._invitation()
            try:
                update = await self._proven(broadcast.manifest, self._receive(broadcast))
                return broadcast.manifest, update
            except UpdateError:
                await self.store.give_up.remote(broadcast.number)
                failed += 1
                if failed == ATTEMPTS:
                    raise

    async def _invitation(self) -> Broadcast:
        """Wait until the learner is about to send weights: it comes between two steps."""
        timeout = self.config.run.wait_timeout_s
        invitation: Any = self.store.come.remote(self.generator, self.config.generation.tensor_parallel)
        try:
            broadcast: Broadcast | None = await asyncio.wait_for(invitation, timeout)
        except TimeoutError as error:
            raise UpdateError(
                f"{self.generator} waited for the learner to send weights, and the {timeout:g} s of "
                "run.wait_timeout_s were over. If the learner's steps take so long, raise it."
            ) from error
        if broadcast is None:
            raise WeightsLost("the learner went back to a checkpoint and publishes its weights anew.")
        return broadcast

    async def _receive(self, broadcast: Broadcast) -> float:
        buckets = self._to_be_received(broadcast)
        async with aclosing(buckets):
            return await self.engine.load_weights(broadcast.manifest.version, buckets)

    async def _to_be_received(self, broadcast: Broadcast) -> AsyncGenerator[StagedBucket]:
        manifest, rank = broadcast.manifest, broadcast.first_rank[self.generator]
        for index, bucket in enumerate(manifest.buckets):
            self._wait_for(manifest, index, "to come from the learner")
            is_last = index == len(manifest.buckets) - 1
            yield Sent(broadcast.meeting, rank, is_last), bucket.tensors
        self._waits_for = f"the engine to finish the update to weights version {manifest.version}"

    async def _proven(self, manifest: WeightManifest, load: Coroutine[Any, Any, float]) -> Update:
        begin = time.monotonic()
        async with self._bounded():
            paused = await load
            self._waits_for = f"the engine's log-probs of the probe under weights version {manifest.version}"
            logprobs = await self.engine.logprobs(manifest.probe.sequences)
        difference = check_parity(manifest.probe, logprobs, self.config, self.generator, manifest.version)
        return Update(self.generator, manifest.version, time.monotonic() - begin, paused, difference)

    async def _prepare(self, manifest: WeightManifest) -> None:
        if self._ready_serial == manifest.serial:
            return
        self._ready_serial, self._ready_buckets = None, 0
        self._waits_for = "the engine to let go of an update"
        await self.engine.drop_weights()
        room = self.config.sync.buffer_mib << 20
        with shared_folder() as folder:
            for index, bucket in enumerate(manifest.buckets):
                room -= bucket_size(bucket.tensors)
                if room < 0:
                    break
                self._wait_for(manifest, index, "out of Ray's object store")
                path, tensors = await self._stage(manifest, index, Path(folder))
                self._wait_for(manifest, index, "to be made ready by the engine")
                await self.engine.ready_weights(path, tensors)
                path.unlink()
                self._ready_buckets = index + 1
        self._ready_serial = manifest.serial

    async def _load_model(self, manifest: WeightManifest) -> float:
        await self._prepare(manifest)
        self._ready_serial = None  # whatever happens now, it is used up
        with shared_folder() as folder:
            self._waits_for = "the engine to end what is under way and stand still"
            async with aclosing(self._rest(manifest, Path(folder))) as rest:
                return await self.engine.load_weights(manifest.version, rest)

    async def _rest(self, manifest: WeightManifest, folder: Path) -> AsyncGenerator[StagedBucket]:
        """The buckets that are not ready, the next one on its way while the engine loads one."""
        rest = range(self._ready_buckets, len(manifest.buckets))
        coming = asyncio.create_task(self._stage(manifest, rest[0], folder)) if rest else None
        try:
            for index in rest:
                assert coming is not None
                self._wait_for(manifest, index, "out of Ray's object store")
                path, tensors = await coming
                if index + 1 < rest.stop:
                    coming = asyncio.create_task(self._stage(manifest, index + 1, folder))
                self._wait_for(manifest, index, "to be loaded by the engine")
                yield path, tensors
                path.unlink()
        finally:
            if coming is not None:
                coming.cancel()
        self._waits_for = f"the engine to finish the update to weights version {manifest.version}"

    async def _stage(
        self, manifest: WeightManifest, index: int, folder: Path
    ) -> tuple[Path, list[TensorSpec]]:
        """Write a bucket into shared memory, where the engine's process maps it: no disk takes part."""
        path, tensors = folder / str(index), manifest.buckets[index].tensors
        arrays = await self._fetch(manifest, index)
        await asyncio.to_thread(write_bucket, path, arrays, tensors)
        return path, tensors

    async def _fetch(self, manifest: WeightManifest, index: int) -> Arrays:
        """A bucket's arrays in Ray's memory of this node. Ray brings it here once, for all generators."""
        try:
            arrays: Arrays = await manifest.buckets[index].data
        except ray.exceptions.ObjectLostError as error:
            raise WeightsLost(
                f"{self.generator} could not get weights version {manifest.version}: the learner that "
                "published it, or the node that held it, is gone."
            ) from error
        return arrays

    async def _load_adapter(self, manifest: WeightManifest) -> float:
        tensors: list[tuple[str, torch.Tensor]] = []
        for index, bucket in enumerate(manifest.buckets):
            self._wait_for(manifest, index, "out of Ray's object store")
            tensors += unpack_arrays(await self._fetch(manifest, index), bucket.tensors)
        self._waits_for = f"the engine to load adapter version {manifest.version}"
        return await self.engine.load_adapter(manifest.version, tensors)

    def _wait_for(self, manifest: WeightManifest, index: int, what: str) -> None:
        count = len(manifest.buckets)
        self._waits_for = f"bucket {index + 1} of {count} of weights version {manifest.version} {what}"

    @asynccontextmanager
    async def _bounded(self) -> AsyncIterator[None]:
        timeout = self.config.sync.timeout_s
        try:
            async with asyncio.timeout(timeout):
                yield
        except TimeoutError as error:
            raise UpdateError(
                f"{self.generator} waited for {self._waits_for}, and the {timeout:g} s of sync.timeout_s "
                "were over. If nodes or network are only slow, raise it."
            ) from error
        except IrisRayError:
            raise
        except Exception as error:  # of the engine, which has no class for it
            raise UpdateError(
                f"{self.generator} waited for {self._waits_for}, and it failed: {error}"
            ) from error
