"""Broadcasts of weights: real process groups, and who is invited to them."""

import asyncio
import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from multiprocessing.connection import Connection

import pytest
import torch
from run_process import WAIT_S

from actors.weight_store import WeightStore
from iris_ray.weights.broadcast import BroadcastGroup, TransferError
from iris_ray.weights.manifest import Broadcast, Bucket, Meeting, Probe, WeightManifest
from iris_ray.weights.shares import WeightShare

MEETING = Meeting("gloo", "127.0.0.1", 0, ranks=3, timeout_s=WAIT_S)
SIZE = 1 << 20


def receive(meeting: Meeting, rank: int, answers: Connection) -> None:
    """A member's life: it tells what it got, or why it stopped."""
    group = BroadcastGroup(meeting, rank)
    try:
        group.connect()
        while True:
            data = torch.empty(SIZE, dtype=torch.uint8)
            group.broadcast(data)
            group.arrive()
            answers.send(data.unique().tolist())
    except TransferError as error:
        answers.send(str(error))
    finally:
        group.close()


class Sender:
    """Rank 0 in this process, and the others in processes of their own."""

    def __init__(self, meeting: Meeting = MEETING, members: int = 2):
        self.lost = False
        self.group = BroadcastGroup(meeting, 0, lambda: self.lost)
        spawn = multiprocessing.get_context("spawn")
        self.members, self.answers = [], []
        for rank in range(1, members + 1):
            mine, theirs = spawn.Pipe()
            self.members.append(
                spawn.Process(target=receive, args=(self.group.meeting, rank, theirs), daemon=True)
            )
            self.answers.append(mine)
            self.members[-1].start()

    def send(self, value: int) -> None:
        self.group.broadcast(torch.full((SIZE,), value, dtype=torch.uint8))
        self.group.arrive()
        self.group.wait_for_all()

    def answer(self, member: int) -> object:
        assert self.answers[member].poll(WAIT_S)
        return self.answers[member].recv()


@pytest.fixture
def sender() -> Iterator[Sender]:
    sender = Sender()
    sender.group.connect()
    yield sender
    for member in sender.members:
        member.kill()


def test_all_members_get_what_is_sent(sender):
    for value in (3, 7):
        sender.send(value)
        assert [sender.answer(0), sender.answer(1)] == [[value], [value]]
    sender.group.close()
    assert "broadcast" in sender.answer(0)  # its error


def test_a_member_that_is_killed_is_noticed_by_all(sender):
    sender.send(1)
    os.kill(sender.members[1].pid, signal.SIGKILL)
    sender.members[1].join()
    begin = time.monotonic()
    with pytest.raises(TransferError):
        sender.send(2)
    sender.group.close()
    answers = [sender.answer(0), sender.answer(0)]
    if answers[1] == [2]:  # it may have got that before the other one was missed
        answers.append(sender.answer(0))
    assert answers[0] == [1]
    assert "lost" in answers[-1] or "failed" in answers[-1]
    assert time.monotonic() - begin < MEETING.timeout_s / 2


def test_a_member_that_is_known_to_be_lost_is_not_waited_for():
    sender = Sender(replace(MEETING, ranks=4))  # the fourth never comes
    sender.lost = True
    begin = time.monotonic()
    with pytest.raises(TransferError, match="a member was lost"):
        sender.group.connect()
    assert time.monotonic() - begin < MEETING.timeout_s / 2
    sender.group.close()
    for member in sender.members:
        member.kill()


def test_a_wait_ends():
    sender = Sender(Meeting("gloo", "127.0.0.1", 0, ranks=2, timeout_s=0.5), members=0)
    with pytest.raises(TransferError, match=r"waited 0\.5 s for the members of a broadcast to arrive"):
        sender.group.connect()


class Store:
    """The weight store as a plain object, with version 4 listed."""

    def __init__(self) -> None:
        self.store = WeightStore.__ray_metadata__.modified_class()

    async def listed(self) -> "Store":
        await self.store.publish(WeightShare(4, 0, 1, [Bucket(None, [])], Probe([], [])))
        return self

    def invitation(self, *generators: str, number: int = 1) -> Broadcast:
        ranks = {generator: rank for rank, generator in enumerate(generators, 1)}
        return Broadcast(number, WeightManifest(4, [], Probe([], [])), MEETING, ranks)


def played(scene: Callable[[WeightStore, Store], object]) -> None:
    async def play() -> None:
        store = await Store().listed()
        await scene(store.store, store)

    asyncio.run(asyncio.wait_for(play(), 20))


async def soon(*tasks: asyncio.Task) -> list[bool]:
    """Which of them are done once all that can go on has gone on."""
    with suppress(TimeoutError):
        await asyncio.wait(tasks, timeout=0.05)
    return [task.done() for task in tasks]


def test_who_comes_is_invited_to_the_next_broadcast():
    async def scene(store, made):
        comers = asyncio.create_task(store.comers([], 0.1))
        assert await soon(comers) == [False]
        coming = [asyncio.create_task(store.come(name, parts)) for name, parts in (("a", 1), ("b", 2))]
        assert await comers == {"a": 1, "b": 2}
        await store.invite(made.invitation("a", "b"))
        first, second = await asyncio.gather(*coming)
        assert first == second
        assert first.manifest.serial == 1  # of the newest version
        assert store.coming == {}

    played(scene)


def test_those_of_the_last_broadcast_are_waited_for_but_not_for_long():
    async def scene(store, made):
        comers = asyncio.create_task(store.comers(["a", "b"], WAIT_S))
        first = asyncio.create_task(store.come("a", 1))
        assert await soon(comers) == [False]
        second = asyncio.create_task(store.come("b", 1))
        assert await comers == {"a": 1, "b": 1}
        assert await store.comers(["a", "b", "dead"], 0.05) == {"a": 1, "b": 1}
        first.cancel(), second.cancel()

    played(scene)


@pytest.mark.parametrize("how", ["leave", "give_up", "before"])
def test_a_lost_member_is_told_to_the_sender(how):
    async def scene(store, made):
        coming = [asyncio.create_task(store.come(name, 1)) for name in "ab"]
        await store.comers(["a", "b"], 1)
        if how == "before":
            await store.leave("b")
        await store.invite(made.invitation("a", "b"))
        lost = asyncio.create_task(store.wait_lost(1))
        if how != "before":
            assert await soon(lost) == [False]
            await (store.leave("b") if how == "leave" else store.give_up(1))
        assert await soon(lost) == [True]
        assert await soon(coming[0]) == [True]
        coming[1].cancel()

    played(scene)


def test_a_broadcast_that_is_over_loses_nobody():
    async def scene(store, made):
        coming = [asyncio.create_task(store.come(name, 1)) for name in "ab"]
        await store.comers(["a", "b"], 1)
        await store.invite(made.invitation("a", "b"))
        await asyncio.gather(*coming)
        lost = asyncio.create_task(store.wait_lost(1))
        await store.end()
        assert await soon(lost) == [True]  # so that nobody waits for ever
        await store.give_up(1)
        await store.leave("a")
        again = asyncio.create_task(store.come("b", 1))
        await store.comers(["b"], 1)
        await store.invite(made.invitation("b", number=2))
        assert (await again).number == 2
        assert await soon(asyncio.create_task(store.wait_lost(2))) == [False]

    played(scene)


def test_who_waits_for_a_learner_that_died_is_told():
    async def scene(store, made):
        coming = asyncio.create_task(store.come("a", 1))
        await store.comers(["a"], 1)
        await store.clear(1)
        assert await coming is None
        assert store.coming == {}

    played(scene)


def test_a_version_of_an_earlier_attempt_is_not_waited_for():
    async def scene(store, made):
        waiting = asyncio.create_task(store.get(1, 0))
        await store.clear(1)
        assert await waiting is None
        assert await store.get(1, 0) is None  # asked for before, and on its way meanwhile
        waiting = asyncio.create_task(store.get(1, 1))
        assert await soon(waiting) == [False]

    played(scene)
