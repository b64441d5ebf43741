"""The weights versions that generators can pull."""

import asyncio
from dataclasses import replace

import ray

from iris_ray.weights.manifest import WeightManifest
from iris_ray.weights.shares import WeightShare, join_shares

KEPT_VERSIONS = 2  # the one being served, and the one being pulled


@ray.remote(num_cpus=0)
class WeightStore:
    """Keeps the manifests of the newest versions; the bytes stay in Ray's object store."""

    def __init__(self) -> None:
        self.manifests: dict[int, WeightManifest] = {}
        self.shares: dict[int, dict[int, WeightShare]] = {}
        self.published = asyncio.Condition()
        self.serial = 0
        self.cleared = 0

    async def publish(self, share: WeightShare) -> None:
        """Take a rank's share. The version can be pulled once all ranks' are there, not earlier."""
        async with self.published:
            shares = self.shares.setdefault(share.version, {})
            shares[share.rank] = share
            manifest = join_shares(shares)
            if manifest is None:
                return
            del self.shares[share.version]
            self.serial += 1
            self.manifests[manifest.version] = replace(manifest, serial=self.serial)
            for version in sorted(self.manifests)[:-KEPT_VERSIONS]:
                del self.manifests[version]
            self.published.notify_all()

    async def clear(self) -> None:
        """Let go of all versions: the learner goes back to a checkpoint and publishes anew."""
        async with self.published:
            self.manifests.clear()
            self.shares.clear()
            self.cleared += 1
            self.published.notify_all()

    async def get(self, version: int | None) -> WeightManifest | None:
        """The manifest of `version`, or the newest if it is gone already or `None`. Waits for it to come.

        `None` if the store was cleared meanwhile: who asked for `version` has no more use for it.
        """
        cleared = self.cleared
        async with self.published:
            await self.published.wait_for(
                lambda: (
                    max(self.manifests, default=-1) >= (version or 0)
                    or (version is not None and cleared != self.cleared)
                )
            )
            if version is not None and cleared != self.cleared:
                return None
            return self.manifests.get(-1 if version is None else version, self.manifests[max(self.manifests)])
