"""Weights as bytes and back, and the proof that they arrived."""

import math

import pytest
import torch
from conftest import run_config
from hypothesis import given
from hypothesis import strategies as st

from iris_ray.errors import ParityError
from iris_ray.weights.buckets import ALIGNMENT, pack_buckets, unpack_tensors
from iris_ray.weights.manifest import Probe
from iris_ray.weights.parity import TOLERANCE, check_parity

PROBE = Probe([[1, 2, 3], [4, 5]], [[-0.5, -1.5], [-2.5]])

shapes = st.lists(st.integers(0, 7), max_size=3).map(tuple)
tensors = st.tuples(shapes, st.sampled_from([torch.float32, torch.bfloat16])).map(
    lambda drawn: torch.randn(drawn[0]).to(drawn[1])
)


@given(st.lists(tensors, max_size=12), st.integers(1, 3000))
def test_tensors_come_back_whole_and_in_order(tensors, bucket_bytes):
    weights = [(f"layer.{i}", tensor) for i, tensor in enumerate(tensors)]
    buckets = list(pack_buckets(weights, bucket_bytes))
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
        assert end <= len(data) < end + ALIGNMENT
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


def parity(by: float, **sections) -> float:
    """Check the probe's log-probs against the same, one of them `by` off."""
    return check_parity(PROBE, [[-0.5, -1.5], [-2.5 + by]], run_config(**sections), "generator-7", version=3)


def test_parity_tells_the_largest_difference():
    assert parity(0) == 0
    assert parity(-5e-5) == pytest.approx(5e-5)


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_parity_tolerates_what_the_dtype_explains(dtype):
    model = {"path": "a", "dtype": dtype}
    assert parity(0.9 * TOLERANCE[dtype], model=model) > 0
    with pytest.raises(ParityError, match=f"allowed for {dtype}"):
        parity(1.1 * TOLERANCE[dtype], model=model)


def test_parity_tolerance_can_be_set():
    assert parity(0.4, sync={"parity_tolerance": 0.5}) == pytest.approx(0.4)
    with pytest.raises(ParityError):
        parity(0.6, sync={"parity_tolerance": 0.5})


@pytest.mark.parametrize("by", [1.0, -1.0, math.inf, math.nan])
def test_weights_that_did_not_arrive_stop_the_run(by):
    with pytest.raises(ParityError, match=r"generator-7 does not serve weights version 3: .*by up to"):
        parity(by)
