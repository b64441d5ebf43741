"""Prompts and responses laid out as tensors, and attention over a row in which responses share a prompt."""

from itertools import accumulate, chain, pairwise
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from iris_ray.learner.sequences_apart import SHORTEST, Places, attention_of_sequences
from iris_ray.learner.token_batch import PAD, PromptGroup, TokenBatch, pack, pad, repeated_length

EXAMPLE = [PromptGroup([1, 2], [[3, 4, 5], [6]]), PromptGroup([7], [[8, 9]])]

token_lists = st.lists(st.integers(1, 99), min_size=1, max_size=12)
prompt_groups = st.lists(
    st.builds(PromptGroup, token_lists, st.lists(token_lists, min_size=1, max_size=3)), min_size=1, max_size=4
)


def test_a_packed_row_holds_each_prompt_once():
    batch = pack(EXAMPLE)
    assert batch.tokens_BT.tolist() == [[1, 2, 3, 4, 5, 6, 7, 8, 9] + 7 * [PAD]]
    assert batch.positions_BT.tolist() == [[0, 1, 2, 3, 4, 2, 0, 1, 2] + 7 * [0]]
    assert batch.predictors_R.tolist() == [1, 2, 3, 1, 6, 7]
    assert batch.labels_R.tolist() == [3, 4, 5, 6, 8, 9]
    assert batch.sequences_R.tolist() == [0, 0, 0, 1, 2, 2]
    assert batch.sequences == 3


def test_a_response_has_its_prompt_as_prefix():
    assert pack(EXAMPLE).shared.segments_N4.tolist() == [
        [0, 2, 0, 0],
        [2, 5, 0, 2],
        [5, 6, 0, 2],
        [6, 7, 6, 6],
        [7, 9, 6, 7],
        [9, 16, 9, 9],
    ]


def test_padded_rows_hold_a_sequence_each():
    batch = pad(EXAMPLE)
    assert batch.tokens_BT.tolist() == [[1, 2, 3, 4, 5], [1, 2, 6, PAD, PAD], [7, 8, 9, PAD, PAD]]
    assert batch.positions_BT.tolist() == [[0, 1, 2, 3, 4]] * 3
    assert batch.predictors_R.tolist() == [1, 2, 3, 6, 10, 11]
    assert batch.shared is None


def test_sequences_stand_longest_first_with_those_of_similar_length():
    shared = pack(EXAMPLE).shared.places
    assert shared.groups == ((1, 7), (1, 5), (2, 3))
    assert shared.rows_Z.tolist() == [*range(9, 16), 0, 1, 2, 3, 4, 0, 1, 5, 6, 7, 8]
    assert places(shared)[:9] == [[7, 12], [8, 13], [9], [10], [11], [14], [15], [16], [17]]
    assert shared.others.tolist() == [12, 13]


def with_filling(groups: list[PromptGroup]) -> list[PromptGroup]:
    """What fills the row up is a prompt that nobody answers."""
    tokens = len(list(chain(*chain(*([prompt, *responses] for prompt, responses in groups)))))
    filling = repeated_length(tokens) - tokens
    return [*groups, PromptGroup([PAD] * filling, [])] if filling else groups


def sequences_of(groups: list[PromptGroup]) -> list[list[int]]:
    """Each prompt with each of its responses, or alone."""
    return [[*prompt, *response] for prompt, responses in groups for response in responses or [[]]]


def places(shared: Places) -> list[list[int]]:
    """All places of each token."""
    found = [[first] for first in shared.firsts_T.tolist()]
    for tokens, more in shared.copies:
        for token, place in zip(tokens.tolist(), more.tolist(), strict=True):
            found[token].append(place)
    return found


@pytest.mark.parametrize("layout", [pack, pad])
@given(groups=prompt_groups)
def test_every_response_token_is_predicted_at_the_one_before_it(layout, groups):
    batch = layout(groups)
    sequences = [(prompt, response) for prompt, responses in groups for response in responses]
    tokens, positions = batch.tokens_BT.flatten(), batch.positions_BT.flatten()
    before = [token for prompt, response in sequences for token in [prompt[-1], *response[:-1]]]
    assert tokens[batch.predictors_R].tolist() == before
    assert positions[batch.predictors_R].tolist() == [
        len(prompt) - 1 + n for prompt, response in sequences for n in range(len(response))
    ]
    assert batch.labels_R.tolist() == [token for _, response in sequences for token in response]
    assert batch.sequences == len(sequences)
    lengths = batch.sum_by_sequence(torch.ones(len(batch.labels_R)))
    assert lengths.dtype == torch.float64
    assert lengths.tolist() == [len(response) for _, response in sequences]


@given(prompt_groups)
def test_a_packed_row_has_no_token_twice(groups):
    tokens = list(chain(*chain(*([prompt, *responses] for prompt, responses in groups))))
    filling = [PAD] * (repeated_length(len(tokens)) - len(tokens))
    assert pack(groups).tokens_BT.tolist() == [tokens + filling]


@given(st.integers(1, 10**6))
def test_lengths_come_again(count):
    length = repeated_length(count)
    assert count <= length < max(count + 16, 1.04 * count)
    assert repeated_length(length) == length
    assert len({repeated_length(each) for each in range(length, 2 * length, max(1, length // 500))}) <= 33


@given(prompt_groups)
def test_each_sequence_is_spread_out_whole_and_once(groups):
    batch = pack(groups)
    expected = sorted(sequences_of(with_filling(groups)), key=len, reverse=True)
    assert [count for count, _ in batch.shared.places.groups] == [
        len(part) for part in _parts(batch, expected)
    ]
    for (_, length), part, rows in zip(
        batch.shared.places.groups, _parts(batch, expected), _spread(batch), strict=True
    ):
        assert length == max(map(len, part))
        assert min(map(len, part)) >= SHORTEST * length
        # Sequences of one length stand in the row's order.
        assert [row[: len(each)] for row, each in zip(rows, part, strict=True)] == part


def _parts(batch: TokenBatch, sequences: list[list[int]]) -> list[list[list[int]]]:
    ends = accumulate((count for count, _ in batch.shared.places.groups), initial=0)
    return [sequences[start:end] for start, end in pairwise(ends)]


def _spread(batch: TokenBatch) -> list[list[list[int]]]:
    """The tokens of each group's sequences."""
    sizes = [count * length for count, length in batch.shared.places.groups]
    parts = batch.tokens_BT[0, batch.shared.places.rows_Z].split(sizes)
    return [part.view(group).tolist() for part, group in zip(parts, batch.shared.places.groups, strict=True)]


@given(prompt_groups)
def test_places_lead_back_to_their_tokens(groups):
    shared = pack(groups).shared.places
    copies = [
        times
        for prompt, responses in with_filling(groups)
        for times in [len(responses) or 1] * len(prompt) + [1] * len(list(chain(*responses)))
    ]
    found = places(shared)
    assert [len(row) for row in found] == copies
    assert len(set(chain(*found))) == sum(copies)
    for token, (first, *others) in enumerate(found):
        assert shared.rows_Z[[first, *others]].tolist() == [token] * (1 + len(others))
        assert shared.sources_Z[first] == token
        assert set(others) <= set(shared.others.tolist())
    # All other places are padding.
    assert len(shared.others) == len(shared.rows_Z) - len(copies)


@settings(max_examples=40)
@given(groups=prompt_groups, kv_heads=st.sampled_from([1, 2, 4]), seed=st.integers(0, 99))
def test_attention_and_its_gradients_are_those_of_sequences_apart(groups, kv_heads, seed):
    batch, random = pack(groups), torch.Generator().manual_seed(seed)
    tokens, module = batch.tokens_BT.shape[1], SimpleNamespace(num_key_value_groups=4 // kv_heads)
    inputs = [
        torch.randn(1, heads, tokens, size, dtype=torch.float64, generator=random, requires_grad=True)
        for heads, size in ((4, 6), (kv_heads, 6), (kv_heads, 3))
    ]
    together = attention_of_sequences(module, *inputs, batch.shared.places, scaling=0.3)

    apart = torch.full_like(together, torch.nan)
    start = 0
    for prompt, responses in with_filling(groups):
        response_start = start + len(prompt)
        for response in responses or [[]]:
            own = [*range(start, start + len(prompt)), *range(response_start, response_start + len(response))]
            query, key, value = (tensor[:, :, own] for tensor in inputs)
            out = F.scaled_dot_product_attention(
                query, key, value, is_causal=True, scale=0.3, enable_gqa=True
            )
            apart = apart.index_copy(1, torch.tensor(own), out.transpose(1, 2))
            response_start += len(response)
        start = response_start
    torch.testing.assert_close(together, apart, rtol=0, atol=1e-12)
    weights = torch.randn(together.shape, dtype=torch.float64, generator=random)
    grads, expected = (torch.autograd.grad((weights * out).sum(), inputs) for out in (together, apart))
    for grad, right in zip(grads, expected, strict=True):
        torch.testing.assert_close(grad, right, rtol=0, atol=1e-11)
