"""Pairs on disk, to go on from."""

from types import SimpleNamespace

import pyarrow.parquet as pq
import pytest
from conftest import make_pairs
from hypothesis import given, settings
from hypothesis import strategies as st

from iris_ray.contracts import SelfPlayPair, VersionSpan
from iris_ray.samples import ROW_GROUP, read_pairs, write_pairs, write_samples

NOT_SHOWN = ("initial_tokens", "replica", "reference")

tokens = st.lists(st.integers(0, 2**31 - 1), max_size=6)
pairs = st.builds(
    SelfPlayPair,
    iteration=st.integers(1, 1000),
    prompt_id=st.integers(0, 2**40),
    prompt_tokens=tokens,
    real_tokens=tokens,
    synthetic_tokens=tokens,
    finish_reason=st.sampled_from(["stop", "length"]),
    version=st.integers(0, 1000),
    version_spans=st.lists(st.builds(VersionSpan, st.integers(0, 1000), st.integers(1, 99)), max_size=3),
    initial_tokens=tokens,
    replica=st.integers(0, 1000),
    reference=st.lists(st.floats(allow_nan=False), max_size=3),
)


@settings(max_examples=30)
@given(st.lists(st.tuples(st.integers(0, 2**40), pairs), max_size=8))
def test_pairs_come_back_as_they_were(tmp_path_factory, written):
    path = tmp_path_factory.getbasetemp() / "pairs.parquet"
    write_pairs(path, iter(written))
    read = list(read_pairs(path))
    assert read == written

    def bits(pairs: list[tuple[int, SelfPlayPair]]) -> list[list[str]]:
        return [[value.hex() for value in pair.reference] for _, pair in pairs]

    assert bits(read) == bits(written)  # -0.0 equals 0.0


@pytest.mark.parametrize("count", [0, 1, ROW_GROUP, 2 * ROW_GROUP + 1])
def test_pairs_are_written_and_read_a_row_group_at_a_time(tmp_path, count):
    taken = []

    def numbered():
        for n in range(count):
            taken.append(n)
            yield n, SelfPlayPair(1, n, [n], [n, n], [], "stop", 0, [])

    path = tmp_path / "pairs.parquet"
    write_pairs(path, numbered())
    assert taken == list(range(count))
    groups = pq.ParquetFile(path).metadata
    sizes = [groups.row_group(n).num_rows for n in range(groups.num_row_groups)]
    assert sum(sizes) == count
    assert all(0 < size <= ROW_GROUP for size in sizes)
    assert list(read_pairs(path)) == list(numbered())


def test_samples_read_back_as_written(tmp_path):
    pairs = make_pairs(5, seed=0)
    path = tmp_path / "pairs.parquet"
    write_samples(path, iter([pairs[:3], pairs[3:]]), SimpleNamespace(decode=str))
    written = pq.read_table(path).to_pylist()
    assert len(written) == 5
    for row, pair in zip(written, pairs, strict=True):
        texts = {name: str(getattr(pair, f"{name}_tokens")) for name in ("prompt", "real", "synthetic")}
        tokens = {name: value for name, value in vars(pair).items() if name not in NOT_SHOWN}
        spans = [{"version": 0, "tokens": len(pair.synthetic_tokens)}]
        assert row == tokens | texts | {"version_spans": spans}
