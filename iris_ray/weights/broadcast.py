"""Weights sent from one process to several at once: over NCCL between GPUs, over gloo between CPUs."""

import time
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from iris_ray.weights.manifest import Meeting

POLL_S = 0.0005
CONNECT_S = 20  # for what listens already
CLOSED = "closed"


class TransferError(Exception):
    """A member was lost, or did not come in time. The group is of no more use."""


class BroadcastGroup:
    """The members of one meeting, apart from every other process group.

    No wait is without an end, as a collective with a dead peer may be: members watch rank 0, which is told
    by `is_lost` that one of the others is gone. Rank 0 meets at a free port if `meeting.port` is 0.
    """

    def __init__(self, meeting: Meeting, rank: int, is_lost: Callable[[], bool] | None = None):
        self.rank = rank
        self._timeout = timedelta(seconds=meeting.timeout_s)
        self._is_lost = is_lost or self._is_closed
        self._arrivals = 0
        self._group: Any = None
        self._store = dist.TCPStore(
            meeting.host,
            meeting.port,
            is_master=rank == 0,
            timeout=timedelta(seconds=CONNECT_S),
            wait_for_workers=False,
        )
        self.meeting = replace(meeting, port=self._store.port)

    def connect(self) -> None:
        """Wait until everybody is there."""
        # Not left to the group itself, which does not notice that a member is lost on its way.
        self.arrive()
        self.wait_for_all()
        store = dist.PrefixStore("group", self._store)
        if self.meeting.backend == "gloo":
            self._group = dist.ProcessGroupGloo(store, self.rank, self.meeting.ranks, self._timeout)
        else:
            options = dist.ProcessGroupNCCL.Options()
            # Torch ends a process whose collective takes too long. Here it is given up long before.
            options._timeout = 10 * self._timeout
            self._group = dist.ProcessGroupNCCL(store, self.rank, self.meeting.ranks, options)

    def broadcast(self, data: torch.Tensor) -> None:
        """Send `data` from rank 0; all others receive it into theirs, of the same size."""
        work = self._group.broadcast(data, 0)
        self._wait(work.is_completed, "the members of a broadcast to take part")
        try:
            work.wait()
        except RuntimeError as error:
            raise TransferError(f"a broadcast of weights failed: {error}") from error

    def arrive(self) -> None:
        """Have rank 0 know that this member has come so far."""
        self._arrivals += 1
        self._store.set(f"{self._arrivals}-{self.rank}", "")

    def wait_for_all(self) -> None:
        """Wait until all members have arrived as often as this one."""
        members = [f"{self._arrivals}-{rank}" for rank in range(self.meeting.ranks)]
        self._wait(lambda: self._store.check(members), "the members of a broadcast to arrive")

    def close(self) -> None:
        """Leave. If rank 0 does, whoever still waits for something stops waiting."""
        if self.rank == 0:
            self._store.set(CLOSED, "")
        if self._group is not None:
            self._group.abort()  # gloo waits here for a peer that hangs, until its timeout
            self._group = None

    def _is_closed(self) -> bool:
        try:
            return self._store.check([CLOSED])
        except RuntimeError:  # rank 0, which holds the store, is gone
            return True

    def _wait(self, is_done: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + self._timeout.total_seconds()
        while not is_done():
            if self._is_lost():
                raise TransferError(f"a member was lost while waiting for {what}")
            if time.monotonic() > deadline:
                raise TransferError(f"waited {self.meeting.timeout_s:g} s for {what}")
            time.sleep(POLL_S)
