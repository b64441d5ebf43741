"""The weights versions that generators can pull, and who comes for what the learner sends."""

import asyncio
from contextlib import suppress
from dataclasses import replace

import ray

from actors import names
from iris_ray.weights.manifest import Broadcast, WeightManifest
from iris_ray.weights.shares import WeightShare, join_shares

KEPT_VERSIONS = 2  # the one being served, and the one being pulled


@ray.remote(num_cpus=0, max_concurrency=names.MOST_CALLS)  # type: ignore[call-overload]
class WeightStore:
    """Keeps the manifests of the newest versions; the bytes stay in Ray's object store."""

    def __init__(self) -> None:
        self.manifests: dict[int, WeightManifest] = {}
        self.shares: dict[int, dict[int, WeightShare]] = {}
        self.published = asyncio.Condition()
        self.serial = 0
        self.attempt = 0
        self.coming: dict[str, int] = {}
        self.invited: dict[str, Broadcast] = {}
        self.broadcast: int | None = None  # the one that is going on
        self.members: set[str] = set()
        self.lost = False

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

    async def clear(self, attempt: int) -> None:
        """Let go of all versions: the learner goes back to a checkpoint and publishes anew in `attempt`."""
        async with self.published:
            self.manifests.clear()
            self.shares.clear()
            self.invited.clear()
            self.broadcast, self.members = None, set()
            self.attempt = attempt
            self.published.notify_all()

    async def get(self, version: int | None, attempt: int | None = None) -> WeightManifest | None:
        """The manifest of `version`, or the newest if it is gone already or `None`. Waits for it to come.

        `None` if the learner has gone back to a checkpoint since `attempt`, by default since now: nobody has
        a use for that `version` any more, and it may never come again.
        """
        attempt = self.attempt if attempt is None else attempt

        def is_void() -> bool:
            return version is not None and attempt < self.attempt

        async with self.published:
            await self.published.wait_for(
                lambda: is_void() or max(self.manifests, default=-1) >= (version or 0)
            )
            if is_void():
                return None
            return self.manifests.get(-1 if version is None else version, self.manifests[max(self.manifests)])

    async def come(self, generator: str, members: int) -> Broadcast | None:
        """Wait until the learner sends the newest weights to `generator`, whose engine has `members` parts.

        `None` if the learner goes back to a checkpoint meanwhile.
        """
        attempt = self.attempt
        async with self.published:
            self.coming[generator] = members
            self.published.notify_all()
            await self.published.wait_for(lambda: generator in self.invited or attempt < self.attempt)
            self.coming.pop(generator, None)
            return self.invited.pop(generator, None)

    async def comers(self, expected: list[str], seconds: float) -> dict[str, int]:
        """Wait until generators come for weights; `expected` ones get some `seconds` to come together."""
        async with self.published:
            await self.published.wait_for(lambda: self.coming)
            together = self.published.wait_for(lambda: self.coming.keys() >= set(expected))
            with suppress(TimeoutError):
                await asyncio.wait_for(together, seconds)
            return dict(self.coming)

    async def invite(self, broadcast: Broadcast) -> None:
        """The learner is about to send; its `manifest` gets the serial of the newest version."""
        async with self.published:
            newest = self.manifests[max(self.manifests)]
            manifest = replace(broadcast.manifest, serial=newest.serial)
            broadcast = replace(broadcast, manifest=manifest)
            self.broadcast, self.members = broadcast.number, set(broadcast.first_rank)
            self.lost = not self.members <= self.coming.keys()
            self.invited |= dict.fromkeys(broadcast.first_rank, broadcast)
            self.published.notify_all()

    async def wait_lost(self, broadcast: int) -> None:
        """Returns once one of those that were invited to it is gone or gave it up, or it is over."""
        async with self.published:
            await self.published.wait_for(lambda: self.broadcast != broadcast or self.lost)

    async def give_up(self, broadcast: int) -> None:
        """A generator did not get what was sent to it."""
        async with self.published:
            self.lost = self.lost or broadcast == self.broadcast
            self.published.notify_all()

    async def end(self) -> None:
        """The broadcast is over."""
        async with self.published:
            self.broadcast, self.members = None, set()
            self.published.notify_all()

    async def leave(self, generator: str) -> None:
        """`generator` is gone: nobody has to wait for it."""
        async with self.published:
            self.coming.pop(generator, None)
            self.invited.pop(generator, None)
            self.lost = self.lost or generator in self.members
            self.published.notify_all()
