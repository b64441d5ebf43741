"""The weights versions that generators can pull."""

import asyncio

import ray

from iris_ray.weights.manifest import WeightManifest

KEPT_VERSIONS = 2  # the one being served, and the one being pulled


@ray.remote(num_cpus=0)
class WeightStore:
    """Keeps the manifests of the newest versions; the bytes stay in Ray's object store."""

    def __init__(self) -> None:
        self.manifests: dict[int, WeightManifest] = {}
        self.published = asyncio.Condition()

    async def publish(self, manifest: WeightManifest) -> None:
        async with self.published:
            self.manifests[manifest.version] = manifest
            for version in sorted(self.manifests)[:-KEPT_VERSIONS]:
                del self.manifests[version]
            self.published.notify_all()

    async def get(self, version: int | None) -> WeightManifest:
        """The manifest of `version`, or the newest for `None`. Waits until it is published."""
        async with self.published:
            await self.published.wait_for(
                lambda: version in self.manifests or (version is None and self.manifests)
            )
            return self.manifests[max(self.manifests) if version is None else version]
