"""The CPU's attention over a row is plain attention of each token to those that it sees."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from iris_ray.learner.kernels.row_attention import row_attention

# Of each token's vector, relative to the largest one, or to what random vectors' products are.
ROUNDING = {torch.float64: 1e-13, torch.float32: 2e-6, torch.bfloat16: 0.02}

# Lengths of a prompt and of its responses. Kernels work on 4 rows, 16 columns and 32 queries at a time.
lengths = st.integers(1, 70)
groups = st.lists(st.tuples(lengths, st.lists(lengths, max_size=3)), min_size=1, max_size=3)
sizes = st.sampled_from([1, 5, 16, 24, 64, 80])
heads = st.sampled_from([(1, 1), (4, 2), (6, 1), (3, 3)])


def segments_of(groups: list[tuple[int, list[int]]]) -> torch.Tensor:
    rows, begin = [], 0
    for prompt, responses in groups:
        prefix = (begin, begin + prompt)
        rows.append([*prefix, begin, begin])
        begin += prompt
        for response in responses:
            rows.append([begin, begin + response, *prefix])
            begin += response
    return torch.tensor(rows)


def plain_attention(
    query_THD: torch.Tensor,
    key_TKD: torch.Tensor,
    value_TKE: torch.Tensor,
    segments_N4: torch.Tensor,
    scaling: float,
) -> torch.Tensor:
    """The same from a table of all tokens against all."""
    tokens, heads, _ = query_THD.shape
    seen = torch.zeros(tokens, tokens, dtype=torch.bool)
    for begin, end, prefix_begin, prefix_end in segments_N4.tolist():
        seen[begin:end, prefix_begin:prefix_end] = True
        seen[begin:end, begin:end] = torch.ones(end - begin, end - begin).tril().bool()
    key, value = (each.repeat_interleave(heads // each.shape[1], 1) for each in (key_TKD, value_TKE))
    scores = scaling * torch.einsum("qhd,khd->hqk", query_THD, key)
    return torch.einsum("hqk,khe->qhe", scores.masked_fill(~seen, float("-inf")).softmax(-1), value)


def random_inputs(
    tokens: int, heads: tuple[int, int], size: int, value_size: int, seed: int
) -> list[torch.Tensor]:
    """Query, key, value, and a gradient of the result."""
    random, (h, k) = torch.Generator().manual_seed(seed), heads
    shapes = ((h, size), (k, size), (k, value_size), (h, value_size))
    return [torch.randn(tokens, *shape, dtype=torch.float64, generator=random) for shape in shapes]


def assert_close(found: torch.Tensor, expected: torch.Tensor, dtype: torch.dtype, products: float) -> None:
    error = (found.double() - expected).norm(dim=-1).max().item()
    assert error <= ROUNDING[dtype] * max(products, expected.norm(dim=-1).max().item())


@settings(max_examples=60, deadline=None)
@given(
    groups=groups,
    heads=heads,
    size=sizes,
    value_size=sizes,
    dtype=st.sampled_from(list(ROUNDING)),
    scaling=st.sampled_from([0.1, 1.0]),
    seed=st.integers(0, 99),
)
def test_results_and_gradients_are_those_of_plain_attention(
    groups, heads, size, value_size, dtype, scaling, seed
):
    segments = segments_of(groups)
    *inputs, grad = (
        each.to(dtype) for each in random_inputs(int(segments[-1, 1]), heads, size, value_size, seed)
    )
    mine = [each.clone().requires_grad_() for each in inputs]
    exact = [each.double().requires_grad_() for each in inputs]
    out, _ = row_attention(*mine, segments, scaling)
    expected = plain_attention(*exact, segments, scaling)
    out.backward(grad)
    expected.backward(grad.double())
    assert out.dtype == dtype
    products = (size * value_size) ** 0.5
    assert_close(out.detach(), expected.detach(), dtype, products)
    for found, right in zip(mine, exact, strict=True):
        assert_close(found.grad, right.grad, dtype, products)


@pytest.mark.parametrize("dtype", list(ROUNDING))
def test_scores_of_any_height_make_weights(dtype):
    """The largest of a token's scores is taken off all of them before they are exponents."""
    segments = segments_of([(40, [20])])
    *inputs, _ = random_inputs(60, (2, 1), 16, 16, seed=0)
    query, key, value = (each.to(dtype) for each in inputs)
    for factor in (1e-6, 1e3):
        out, logsums = row_attention(query, key, value, segments, factor)
        expected = plain_attention(query.double(), key.double(), value.double(), segments, factor)
        assert_close(out, expected, dtype, products=1)
        assert logsums.isfinite().all()


def test_tensors_may_lie_anyhow():
    segments = segments_of([(33, [17, 5])])
    *inputs, grad = (each.float() for each in random_inputs(55, (4, 2), 24, 10, seed=3))
    across = [each.transpose(0, 2).contiguous().transpose(0, 2).requires_grad_() for each in inputs]
    heads_first = [each.transpose(0, 1).contiguous().transpose(0, 1).requires_grad_() for each in inputs]
    dense = [each.clone().requires_grad_() for each in inputs]
    for given_ in (across, heads_first, dense):
        out, _ = row_attention(*given_, segments, 0.3)
        out.backward(grad.transpose(0, 1).contiguous().transpose(0, 1))
    for a, b, c in zip(across, heads_first, dense, strict=True):
        assert torch.equal(a.grad, c.grad)
        assert torch.equal(b.grad, c.grad)


def test_the_number_of_threads_changes_nothing():
    segments = segments_of([(50, [40, 30]), (9, [60])])
    *inputs, grad = (each.bfloat16() for each in random_inputs(189, (4, 2), 64, 64, seed=5))
    threads, results = torch.get_num_threads(), []
    try:
        for count in (1, 3):
            torch.set_num_threads(count)
            leaves = [each.clone().requires_grad_() for each in inputs]
            out, _ = row_attention(*leaves, segments, 0.125)
            out.backward(grad)
            results.append([out, *(leaf.grad for leaf in leaves)])
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(one, three) for one, three in zip(*results, strict=True))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_finite_is_not_hidden(bad):
    """A step whose loss is not finite is skipped; so it must not look finite."""
    segments = segments_of([(20, [10])])
    *inputs, _ = (each.float() for each in random_inputs(30, (2, 2), 16, 16, seed=7))
    for index in range(3):
        spoilt = [each.clone() for each in inputs]
        spoilt[index][3] = bad
        out, _ = row_attention(*spoilt, segments, 0.25)
        assert not out[3].isfinite().any()
        if index > 0:  # a key or value that later tokens see
            assert not out[25].isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_torch_takes_it_for_an_operator_of_its_own(dtype):
    segments = segments_of([(20, [10, 3]), (4, [5])])
    *inputs, _ = (each.to(dtype) for each in random_inputs(42, (4, 2), 16, 24, seed=1))
    torch.library.opcheck(row_attention, (*(each.requires_grad_() for each in inputs), segments, 0.25))
