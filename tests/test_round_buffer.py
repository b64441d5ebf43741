"""A round between generators and learner: what is written when, and what each step trains on."""

import json
import random
from collections import Counter
from itertools import chain, product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from iris_ray.batching import balance
from iris_ray.game import Round
from iris_ray.ledger import LedgerCounts
from iris_ray.round_buffer import RoundBuffer, Share, StoredPair, draw_prompts, sampling_seed

GENERATORS = ("a", "b", "c")


def round_buffer(
    size: int = 10,
    *,
    epochs: int = 1,
    batch_size: int = 4,
    max_ahead: int = 100,
    seed: int = 0,
    iteration: int = 1,
    replicas: int = 1,
    overlap: bool = True,
) -> RoundBuffer:
    """A round of `size` prompts."""
    round_ = Round(iteration, version=iteration - 1, alpha=1.0, gap=0.0, reason="")
    return RoundBuffer(
        round_,
        np.arange(size),
        epochs=epochs,
        batch_size=batch_size,
        max_ahead=max_ahead,
        seed=seed,
        replicas=replicas,
        overlap=overlap,
    )


def stored(position: int) -> StoredPair:
    return StoredPair("chunk", position, num_tokens=8 + position * 7 % 23, version=0)


def filled(**shape: int) -> RoundBuffer:
    buffer = round_buffer(**shape)
    for position in buffer.lease("a", len(buffer.pair_ids)):
        buffer.add("a", position, stored(position))
    return buffer


def all_batches(buffer: RoundBuffer) -> list[list[int]]:
    return [buffer.positions(step) for step in range(buffer.steps)]


def play(
    buffer: RoundBuffer,
    rng: random.Random,
    steps: range | None = None,
    under_way: list[tuple[str, int]] | None = None,
) -> list[list[int]]:
    """Generators that write in any order, die and deliver late, and a learner; returns its batches.

    `under_way`: what generators have promised, before and after.
    """
    under_way = [] if under_way is None else under_way
    batches = []
    for step in range(buffer.steps) if steps is None else steps:
        while not buffer.is_ready(step):
            holder = rng.choice(GENERATORS)
            under_way += [(holder, position) for position in buffer.lease(holder, rng.randint(1, 4))]
            rng.shuffle(under_way)
            while under_way and rng.random() < 0.6:
                deliverer, position = under_way.pop()
                buffer.add(deliverer, position, stored(position))
            if rng.random() < 0.2:
                buffer.ledger.give_back(rng.choice(GENERATORS))
            if steps is None:
                assert buffer.ledger.leased + buffer.ledger.written <= (
                    buffer.trained_steps * buffer.batch_size + buffer.max_ahead
                )
        batches.append([pair.item for pair in buffer.share(step, 0, 1).pairs])
        buffer.commit(step)
    return batches


@given(
    size=st.integers(1, 30),
    epochs=st.integers(1, 3),
    batch_size=st.integers(1, 8),
    spare=st.integers(0, 8),
    replicas=st.integers(1, 4),
    rng=st.randoms(use_true_random=False),
)
def test_every_pair_is_trained_on_once_an_epoch_whoever_wrote_it(
    size, epochs, batch_size, spare, replicas, rng
):
    shape = {"size": size, "epochs": epochs, "batch_size": batch_size, "replicas": replicas}
    buffer = round_buffer(**shape, max_ahead=batch_size + spare)
    batches = play(buffer, rng)
    pairs = size * replicas
    assert buffer.steps == epochs * -(-pairs // batch_size)
    assert Counter(chain(*batches)) == dict.fromkeys(range(pairs), epochs)
    assert buffer.ledger.counts() == LedgerCounts(committed=pairs)
    assert batches == all_batches(filled(**shape))
    assert buffer.stored() == [stored(position) for position in range(pairs)]


@given(
    size=st.integers(1, 30),
    epochs=st.integers(1, 3),
    batch_size=st.integers(1, 8),
    replicas=st.integers(1, 4),
    iteration=st.integers(1, 3),
)
def test_every_prompt_has_its_replicas_as_neighbours_in_every_pass(
    size, epochs, batch_size, replicas, iteration
):
    shape = {"size": size, "epochs": epochs, "batch_size": batch_size, "iteration": iteration}
    buffer = round_buffer(**shape, replicas=replicas)
    passes = np.array(list(chain(*all_batches(buffer)))).reshape(epochs, size, replicas)
    for order in passes:
        written = [[buffer.pair(position) for position in positions] for positions in order]
        prompts = [members[0][0] for members in written]
        assert sorted(prompts) == list(range(size))
        assert written == [[(prompt, replica) for replica in range(replicas)] for prompt in prompts]
    # Prompts come in the order in which they come with one response each.
    one_each = np.array(list(chain(*all_batches(round_buffer(**shape))))).reshape(epochs, size)
    assert (passes[:, :, 0] // replicas == one_each).all()


@given(
    size=st.integers(1, 30),
    epochs=st.integers(1, 3),
    batch_size=st.integers(1, 8),
    replicas=st.integers(1, 3),
    ranks=st.integers(1, 3),
    alive=st.booleans(),
    rng=st.randoms(use_true_random=False),
)
def test_a_round_set_back_to_a_checkpoint_ends_as_if_nothing_had_happened(
    size, epochs, batch_size, replicas, ranks, alive, rng
):
    """`alive`: the learner alone died, and the buffer and the generators' promises outlive it."""
    shape = {"size": size, "epochs": epochs, "batch_size": batch_size, "replicas": replicas}
    buffer, under_way = round_buffer(**shape, max_ahead=batch_size), []
    at = rng.randint(0, buffer.steps)
    batches = play(buffer, rng, range(at), under_way)
    state, kept = json.loads(json.dumps(buffer.state_dict())), buffer.by_position()
    play(buffer, rng, range(at, rng.randint(at, buffer.steps)), under_way)  # for nothing
    if alive:
        kept = buffer.by_position()
    else:
        buffer, under_way = round_buffer(**shape, max_ahead=batch_size), []
    buffer.load_state_dict(state, kept)
    assert (buffer.trained_steps, buffer.ledger.leased, buffer.by_position()) == (at, 0, kept)
    batches += play(buffer, rng, range(at, buffer.steps), under_way)
    assert batches == all_batches(buffer)
    assert buffer.ledger.counts() == LedgerCounts(committed=size * replicas)
    straight = filled(**shape)
    assert buffer.stored() == straight.stored()
    for step in range(buffer.steps):
        for rank in range(ranks):
            assert buffer.share(step, rank, ranks) == straight.share(step, rank, ranks)


def test_pairs_that_the_checkpoint_does_not_know_are_taken_in():
    buffer = round_buffer(4)
    buffer.lease("a", 2)
    buffer.add("a", 0, stored(0))
    state = buffer.state_dict()
    buffer.add("a", 1, stored(1))
    buffer.load_state_dict(state, buffer.by_position())
    assert buffer.stored() == [stored(0), stored(1)]
    assert buffer.lease("a", 4) == [2, 3]


def test_a_checkpoint_whose_pairs_are_missing_is_refused():
    with pytest.raises(ValueError, match="4 written pairs of iteration 1 are missing"):
        round_buffer().load_state_dict(filled().state_dict(), {p: stored(p) for p in range(6)})


def test_a_slow_learner_slows_the_generators():
    buffer = round_buffer(10, batch_size=2, max_ahead=5)
    assert buffer.leasable == 5
    assert buffer.lease("a", 10) == [0, 1, 2, 3, 4]
    assert buffer.leasable == 0
    assert buffer.lease("b", 10) == []
    buffer.commit(0)
    assert buffer.leasable == 2
    assert buffer.lease("b", 10) == [5, 6]


def test_a_step_is_ready_once_its_whole_batch_is_written():
    buffer = round_buffer(6, batch_size=2)
    for position in buffer.lease("a", 4)[1:]:
        buffer.add("a", position, stored(position))
    assert [buffer.is_ready(step) for step in range(3)] == [False, True, False]


def test_a_pair_that_comes_after_its_lease_was_given_back_is_dropped():
    buffer = round_buffer(1)
    buffer.lease("late", 1)
    buffer.ledger.give_back("late")
    assert buffer.lease("next", 1) == [0]
    assert not buffer.add("late", 0, StoredPair("late", 0, 1, 0))
    assert buffer.add("next", 0, StoredPair("next", 0, 1, 0))
    assert [pair.parcel for pair in buffer.stored()] == ["next"]


def test_the_first_epoch_follows_the_order_of_writing():
    assert all_batches(round_buffer(10)) == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]


def test_later_epochs_are_shuffled_anew_and_cover_everything():
    batches = all_batches(round_buffer(40, epochs=3, batch_size=12))
    assert [len(batch) for batch in batches] == [12, 12, 12, 4] * 3
    epochs = [list(chain(*batches[start : start + 4])) for start in (0, 4, 8)]
    assert all(sorted(epoch) == list(range(40)) for epoch in epochs)
    assert len(set(map(tuple, epochs))) == 3


def test_batches_depend_on_seed_and_iteration_alone():
    shape = {"epochs": 2, "batch_size": 5}
    batches = all_batches(round_buffer(40, **shape))
    assert batches == all_batches(round_buffer(40, **shape))
    assert batches != all_batches(round_buffer(40, **shape, seed=1))
    assert batches != all_batches(round_buffer(40, **shape, iteration=2))


def test_steps_may_be_asked_for_in_any_order():
    buffer = round_buffer(10, epochs=3)
    assert [buffer.positions(step) for step in reversed(range(buffer.steps))] == all_batches(buffer)[::-1]


@pytest.mark.parametrize("ranks", [1, 2, 3, 5])
def test_shares_of_the_ranks_make_up_the_batch_and_weigh_about_the_same(ranks):
    buffer = filled(size=20, batch_size=16)
    for step in range(buffer.steps):
        shares = [buffer.share(step, rank, ranks).pairs for rank in range(ranks)]
        batch = [stored(position) for position in buffer.positions(step)]
        assert sorted(chain(*shares), key=lambda pair: pair.item) == batch
        tokens = [sum(pair.num_tokens for pair in share) for share in shares]
        assert max(tokens) - min(tokens) <= max(pair.num_tokens for pair in batch)


def test_a_rank_goes_without_where_there_are_too_few_pairs():
    buffer = filled(size=1)
    assert buffer.share(0, 0, 3) == Share([stored(0)], [])
    assert [buffer.share(0, rank, 3) for rank in (1, 2)] == [Share([], [])] * 2


def of_first_iteration(prompt: int, replica: int) -> StoredPair:
    return StoredPair(("first", replica), prompt, num_tokens=3, version=0)


def later_round(limit: int | None = None, replicas: int = 1) -> RoundBuffer:
    """All pairs of a third iteration, for an objective that looks at those of the first."""
    prompt_ids = draw_prompts(30, limit, 0, 3, same_prompts=True)
    first = RoundBuffer(
        Round(1, version=0, alpha=1.0, gap=0.0, reason=""),
        draw_prompts(30, limit, 0, 1),
        epochs=2,
        batch_size=8,
        max_ahead=100,
        seed=0,
        replicas=replicas,
    )
    pairs = [of_first_iteration(*first.pair(position)) for position in range(len(first.pair_ids))]
    buffer = RoundBuffer(
        Round(3, version=2, alpha=1.0, gap=0.0, reason=""),
        prompt_ids,
        epochs=2,
        batch_size=8,
        max_ahead=100,
        seed=0,
        replicas=replicas,
        initial=dict(zip(first.pair_ids.tolist(), pairs, strict=True)),
    )
    for position in buffer.lease("a", 100):
        buffer.add("a", position, stored(position))
    return buffer


@pytest.mark.parametrize("ranks", [1, 2, 3])
@pytest.mark.parametrize("limit", [None, 20])
@pytest.mark.parametrize("replicas", [1, 3])
def test_each_pair_comes_with_the_first_iterations_pair_of_its_prompt_and_replica(ranks, limit, replicas):
    buffer = later_round(limit, replicas)
    trained: list[StoredPair] = []
    for step in range(buffer.steps):
        for rank in range(ranks):
            share = buffer.share(step, rank, ranks)
            written = [buffer.pair(pair.item) for pair in share.pairs]
            assert share.initial == [
                of_first_iteration(*prompt_and_replica) for prompt_and_replica in written
            ]
            trained += share.initial
    # Prompts are not numbered by their place, or the lookup above would tell nothing.
    assert buffer.pair_ids.tolist() != sorted(buffer.pair_ids)
    counts = Counter(trained)
    prompts = draw_prompts(30, limit, 0, 1).tolist()
    assert counts == {of_first_iteration(p, replica): 2 for p in prompts for replica in range(replicas)}


def test_a_rank_without_pairs_has_no_first_ones_either():
    assert later_round(1).share(0, 1, 2) == Share([], [])


def test_pairs_come_alone_in_the_first_iteration():
    buffer = filled(size=20, epochs=2)
    assert all(buffer.share(step, 0, 1).initial == [] for step in range(buffer.steps))


@given(st.lists(st.integers(0, 100)), st.integers(1, 6))
def test_balance_gives_every_item_once_and_could_not_move_one_to_gain(sizes, ranks):
    shares = balance(sizes, ranks)
    assert sorted(chain(*shares)) == list(range(len(sizes)))
    totals = [sum(sizes[item] for item in share) for share in shares]
    assert len(totals) == ranks
    for share, total in zip(shares, totals, strict=True):
        assert total - min((sizes[item] for item in share), default=0) <= min(totals)


def test_draw_prompts():
    everything = draw_prompts(50, None, seed=0, iteration=1)
    assert sorted(everything) == list(range(50))
    assert draw_prompts(50, 8, seed=0, iteration=1).tolist() == everything[:8].tolist()
    assert draw_prompts(50, 80, seed=0, iteration=1).tolist() == everything.tolist()
    assert draw_prompts(50, 8, seed=1, iteration=1).tolist() != everything[:8].tolist()
    assert draw_prompts(50, 8, seed=0, iteration=2).tolist() != everything[:8].tolist()


@pytest.mark.parametrize("limit", [1, 8, 49, 50, 80, None])
def test_the_same_prompts_are_those_of_the_first_iteration_in_a_new_order(limit):
    first = draw_prompts(50, limit, seed=0, iteration=1)
    later = [draw_prompts(50, limit, 0, iteration, same_prompts=True).tolist() for iteration in (2, 3, 4)]
    assert all(sorted(prompts) == sorted(first) for prompts in later)
    assert len({tuple(first), *map(tuple, later)}) == (1 if limit == 1 else 4)
    assert draw_prompts(50, limit, 0, 2, same_prompts=True).tolist() == later[0]


def test_asking_for_the_same_prompts_changes_nothing_in_the_first_iteration():
    for limit in (None, 8, 80):
        same = draw_prompts(50, limit, 0, 1, same_prompts=True)
        assert same.tolist() == draw_prompts(50, limit, 0, 1).tolist()


def test_sampling_seeds_repeat_and_never_coincide():
    def seeds() -> list[int]:
        places = product(range(3), range(1, 4), range(100), range(3))
        return [
            sampling_seed(seed, iteration, prompt, replica) for seed, iteration, prompt, replica in places
        ]

    assert seeds() == seeds()
    assert len(set(seeds())) == 2700
    assert all(0 <= seed < 2**32 for seed in seeds())


@given(
    replicas=st.integers(1, 4),
    batch_size=st.integers(1, 8),
    max_ahead=st.integers(8, 40),
    rng=st.randoms(use_true_random=False),
)
def test_a_response_has_its_seed_wherever_and_whenever_it_is_leased(replicas, batch_size, max_ahead, rng):
    """Order of prompts, size of leases, who leases and how often change no seed."""
    prompt_ids = list(range(12))
    rng.shuffle(prompt_ids)
    buffer = RoundBuffer(
        Round(2, version=1, alpha=1.0, gap=0.0, reason=""),
        np.array(prompt_ids),
        epochs=1,
        batch_size=batch_size,
        max_ahead=max_ahead,
        seed=5,
        replicas=replicas,
    )
    seeds: dict[tuple[int, int], int] = {}
    for step in range(buffer.steps):
        while not buffer.is_ready(step):
            holder = rng.choice(GENERATORS)
            for position in buffer.lease(holder, rng.randint(1, 9)):
                place = buffer.pair(position)
                seed = sampling_seed(5, 2, *place)
                assert seeds.setdefault(place, seed) == seed
                buffer.add(holder, position, stored(position))
            if rng.random() < 0.3:
                buffer.ledger.give_back(rng.choice(GENERATORS))
        buffer.commit(step)
    expected = {
        (p, replica): sampling_seed(5, 2, p, replica) for p in range(12) for replica in range(replicas)
    }
    assert seeds == expected
    assert len(set(seeds.values())) == 12 * replicas


def test_without_overlap_nothing_is_ready_before_all_is_written() -> None:
    buffer = round_buffer(10, batch_size=4, max_ahead=5, overlap=False)
    positions = buffer.lease("a", 20)
    assert len(positions) == 10  # all at once: the learner takes none before
    for position in positions[:-1]:
        buffer.add("a", position, stored(position))
    assert not buffer.is_ready(0)
    buffer.add("a", positions[-1], stored(positions[-1]))
    assert all(map(buffer.is_ready, range(buffer.steps)))
