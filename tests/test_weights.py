"""Weights as bytes and back, and the proof that they arrived."""

import asyncio
import math
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch
from conftest import run_config
from hypothesis import given
from hypothesis import strategies as st

from actors.weight_store import WeightStore
from iris_ray.errors import ParityError
from iris_ray.weights.buckets import (
    ALIGNMENT,
    bucket_size,
    lay_out,
    pack_buckets,
    share_buckets,
    unpack_arrays,
    unpack_tensors,
)
from iris_ray.weights.manifest import Bucket, Probe, WeightManifest
from iris_ray.weights.parity import TOLERANCE, check_parity
from iris_ray.weights.shares import WeightShare, join_shares
from iris_ray.weights.staging import write_bucket

PROBE = Probe([[1, 2, 3], [4, 5]], [[-0.5, -1.5], [-2.5]])

shapes = st.lists(st.integers(0, 7), max_size=3).map(tuple)
tensors = st.tuples(shapes, st.sampled_from([torch.float32, torch.bfloat16])).map(
    lambda drawn: torch.randn(drawn[0]).to(drawn[1])
)


@given(st.lists(tensors, max_size=12), st.integers(1, 3000))
def test_tensors_come_back_whole_and_in_order(tensors, bucket_bytes):
    weights = [(f"layer.{i}", tensor) for i, tensor in enumerate(tensors)]
    buckets = list(pack_buckets(weights, bucket_bytes))
    assert lay_out(weights, bucket_bytes) == [specs for _, specs in buckets]
    unpacked = [item for data, specs in buckets for item in unpack_tensors(data, specs)]
    assert [name for name, _ in unpacked] == [name for name, _ in weights]
    for (_, received), (_, sent) in zip(unpacked, weights, strict=True):
        assert received.dtype == sent.dtype
        assert torch.equal(received, sent)


@given(st.lists(tensors, min_size=1, max_size=12), st.integers(1, 3000))
def test_buckets_keep_to_their_size_and_tensors_do_not_overlap(tensors, bucket_bytes):
    for data, specs in pack_buckets(enumerate(tensors), bucket_bytes):
        assert data.dtype == torch.uint8
        assert data.ndim == 1
        end = 0
        for spec in specs:
            assert spec.offset % ALIGNMENT == 0
            assert spec.offset >= end
            assert spec.nbytes == math.prod(spec.shape) * getattr(torch, spec.dtype).itemsize
            end = spec.offset + spec.nbytes
        assert len(data) == end == bucket_size(specs)
        assert end <= bucket_bytes or len(specs) == 1


def test_few_buckets_are_made():
    weights = [(str(i), torch.zeros(16)) for i in range(10)]  # 64 bytes each: nothing lost to alignment
    assert [len(specs) for _, specs in pack_buckets(weights, 4 * 64)] == [4, 4, 2]


def test_a_big_tensor_travels_alone():
    weights = [("a", torch.randn(4)), ("big", torch.randn(500)), ("b", torch.randn(4)), ("c", torch.randn(4))]
    buckets = list(pack_buckets(weights, 256))
    assert [[spec.name for spec in specs] for _, specs in buckets] == [["a"], ["big"], ["b", "c"]]


def test_a_tensor_may_change_once_the_next_is_asked_for():
    def short_lived():
        shared = torch.empty(3)
        for i in range(4):
            yield str(i), shared.fill_(i)

    ((data, specs),) = pack_buckets(short_lived(), 1000)
    assert [tensor.tolist() for _, tensor in unpack_tensors(data, specs)] == [[i] * 3 for i in range(4)]


def test_strided_tensors_and_parameters_are_packed_by_value():
    strided = torch.arange(6.0).view(2, 3).T
    ((data, specs),) = pack_buckets([("a", torch.nn.Parameter(strided))], 1000)
    ((_, received),) = unpack_tensors(data, specs)
    assert not received.requires_grad
    assert received.tolist() == strided.tolist()


def test_unpacking_copies_nothing():
    ((data, specs),) = pack_buckets([("a", torch.ones(3))], 1000)
    ((_, tensor),) = unpack_tensors(data, specs)
    data.zero_()
    assert tensor.tolist() == [0, 0, 0]


def test_nothing_to_pack_gives_no_bucket():
    assert list(pack_buckets([], 1000)) == []


def parity(by: float, tokens: int = 1, **sections) -> float:
    """Check log-probs of ten tokens against the same, some of them `by` off."""
    probe = Probe([[0] * 11], [[-1.5] * 10])
    found = [-1.5 + by] * tokens + [-1.5] * (10 - tokens)
    return check_parity(probe, [found], run_config(**sections), "generator-7", version=3)


def test_parity_tells_the_largest_difference():
    assert parity(0) == 0
    assert parity(-5e-5) == pytest.approx(5e-5)


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_parity_tolerates_what_the_dtype_explains(dtype):
    model = {"path": "a", "dtype": dtype}
    assert parity(0.9 * TOLERANCE[dtype], model=model) > 0
    with pytest.raises(ParityError, match=f"allowed for {dtype}"):
        parity(1.1 * TOLERANCE[dtype], model=model)


def test_parity_fails_when_many_tokens_differ_a_little():
    assert parity(8e-5, tokens=2) > 0
    with pytest.raises(ParityError, match=r"by up to 8e-05 nats per token, 2.4e-05 on average"):
        parity(8e-5, tokens=3)


def test_parity_tolerance_can_be_set():
    assert parity(0.4, sync={"parity_tolerance": 0.5}) == pytest.approx(0.4)
    with pytest.raises(ParityError):
        parity(0.6, sync={"parity_tolerance": 0.5})


@pytest.mark.parametrize("by", [1.0, -1.0, math.inf, math.nan])
def test_weights_that_did_not_arrive_stop_the_run(by):
    with pytest.raises(ParityError, match=r"generator-7 does not serve weights version 3: .*by up to"):
        parity(by)


@given(st.lists(tensors, max_size=12), st.integers(1, 3000), st.integers(1, 4), st.booleans())
def test_shares_of_all_ranks_make_the_whole_version(tensors, bucket_bytes, ranks, lasting):
    weights = [(f"layer.{i}", tensor) for i, tensor in enumerate(tensors)]
    shares = {}
    for rank in range(ranks):
        mine = share_buckets(weights, bucket_bytes, rank, ranks, lasting)
        buckets = [Bucket(arrays, specs) for arrays, specs in mine]
        assert (join_shares(shares) is None) if shares else True
        shares[rank] = WeightShare(7, rank, ranks, buckets, PROBE if rank == 0 else None)
    manifest = join_shares(shares)
    assert (manifest.version, manifest.probe) == (7, PROBE)
    received = [item for bucket in manifest.buckets for item in unpack_arrays(bucket.data, bucket.tensors)]
    assert [name for name, _ in received] == [name for name, _ in weights]
    for (_, tensor), (_, sent) in zip(received, weights, strict=True):
        assert tensor.dtype == sent.dtype
        assert torch.equal(tensor, sent)
    for bucket in manifest.buckets:
        assert bucket_size(bucket.tensors) <= bucket_bytes or len(bucket.tensors) == 1
    sizes = [len(shares[rank].buckets) for rank in range(ranks)]
    assert max(sizes) - min(sizes) <= 1


def test_a_rank_copies_only_its_own_share():
    def short_lived():
        shared = torch.empty(3)
        for i in range(6):
            yield str(i), shared.fill_(i)

    for rank in range(2):
        mine = list(share_buckets(short_lived(), 16, rank, 2))  # a tensor a bucket
        unpacked = [item for bucket in mine for item in unpack_arrays(*bucket)]
        assert [tensor.tolist() for _, tensor in unpacked] == [[i] * 3 for i in range(rank, 6, 2)]


def test_lasting_tensors_are_not_copied():
    weight = torch.nn.Parameter(torch.ones(4))
    ((arrays, specs),) = share_buckets([("a", weight)], 100, lasting=True)
    weight.data.zero_()
    ((_, tensor),) = unpack_arrays(arrays, specs)
    assert tensor.tolist() == [0, 0, 0, 0]


@given(st.lists(tensors, min_size=1, max_size=12))
def test_a_bucket_s_file_holds_each_tensor_at_its_offset(tensors):
    weights = [(str(i), tensor) for i, tensor in enumerate(tensors)]
    ((arrays, specs),) = share_buckets(weights, 1 << 20)
    with TemporaryDirectory() as folder:
        path = Path(folder) / "bucket"
        write_bucket(path, arrays, specs)
        data = torch.frombuffer(bytearray(path.read_bytes()) or bytearray(1), dtype=torch.uint8)
        for (_, received), (_, sent) in zip(unpack_tensors(data, specs), weights, strict=True):
            assert torch.equal(received, sent)


def store(*shares: WeightShare) -> tuple[WeightStore, list[WeightManifest | None]]:
    """A weight store that took `shares`, and what it gives for version 1 after each of them."""
    keeper = WeightStore.__ray_metadata__.modified_class()
    given_ = []

    async def play() -> None:
        for share in shares:
            await keeper.publish(share)
            with suppress(TimeoutError):
                given_.append(await asyncio.wait_for(keeper.get(1), 0.01))

    asyncio.run(play())
    return keeper, given_


def test_a_version_can_be_pulled_once_every_rank_published_its_share():
    buckets = [Bucket(i, []) for i in range(3)]
    _, pulled = store(
        WeightShare(1, 1, 2, buckets[1:2]),
        WeightShare(1, 0, 2, buckets[0::2], PROBE),
    )
    (manifest,) = pulled
    assert manifest.buckets == buckets
    assert manifest.serial == 1


def test_a_share_of_before_a_restart_completes_nothing():
    keeper, pulled = store(WeightShare(1, 1, 2, [Bucket("old", [])]))
    assert pulled == []
    asyncio.run(keeper.clear(1))
    asyncio.run(keeper.publish(WeightShare(1, 0, 2, [Bucket("new", [])], PROBE)))
    assert not keeper.manifests
