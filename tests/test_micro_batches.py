"""How a rank's pairs are split into forward passes."""

import math
from itertools import chain, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from iris_ray.learner.micro_batches import micro_batches, padded_micro_batches

sizes = st.lists(st.integers(1, 50), min_size=1, max_size=40)


@given(sizes, st.integers(1, 120))
def test_every_index_is_in_one_group(sizes, limit):
    groups = micro_batches(sizes, limit)
    assert sorted(chain(*groups)) == list(range(len(sizes)))
    assert all(group == sorted(group) for group in groups)
    assert all(groups)


@given(sizes, st.integers(1, 120))
def test_only_a_single_item_exceeds_the_limit(sizes, limit):
    totals = [(sum(sizes[i] for i in group), len(group)) for group in micro_batches(sizes, limit)]
    assert all(total <= limit or count == 1 for total, count in totals)


@given(sizes, st.integers(1, 120))
def test_groups_are_few_and_balanced(sizes, limit):
    groups = micro_batches(sizes, limit)
    totals = [sum(sizes[i] for i in group) for group in groups]
    assert max(totals) - min(totals) <= max(sizes)
    assert len(groups) <= math.ceil(2 * sum(sizes) / limit)


@given(sizes)
def test_what_fits_into_one_pass_is_not_split(sizes):
    assert micro_batches(sizes, sum(sizes)) == [list(range(len(sizes)))]


@pytest.mark.parametrize(("limit", "count"), [(8, 4), (15, 4), (16, 2), (32, 1)])
def test_equal_items_fill_as_few_groups_as_hold_them(limit, count):
    assert len(micro_batches([8] * 4, limit)) == count


def test_no_pairs_give_no_groups():
    assert micro_batches([], 4) == []


@given(st.lists(st.tuples(st.integers(1, 3), st.integers(1, 50)), max_size=40), st.integers(1, 300))
def test_padding_counts_where_there_is_some(shapes, limit):
    groups = padded_micro_batches(shapes, limit)
    assert sorted(chain(*groups)) == list(range(len(shapes)))
    tables = [(sum(shapes[i][0] for i in group), max(shapes[i][1] for i in group)) for group in groups]
    for group, (rows, length) in zip(groups, tables, strict=True):
        assert rows * length <= limit or len(group) == 1
    lengths = [[shapes[i][1] for i in group] for group in groups]
    assert all(min(longer) >= max(shorter) for longer, shorter in pairwise(lengths))


def test_padded_rows_fill_as_few_groups_as_hold_them():
    assert padded_micro_batches([(2, 8)] * 4, 64) == [[0, 1, 2, 3]]
    assert padded_micro_batches([(2, 8)] * 4, 63) == [[0, 1, 2], [3]]
