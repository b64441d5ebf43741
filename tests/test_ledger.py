"""The ledger: who promised what, what is written, and what was trained on."""

import json
import random
from collections.abc import Iterator
from itertools import islice

import pytest
from hypothesis import given
from hypothesis import strategies as st

from iris_ray.ledger import Ledger, LedgerCounts


def test_leases_go_out_in_order_below_the_limit():
    ledger = Ledger(6, epochs=1)
    assert ledger.lease("a", 2, below=5) == [0, 1]
    assert ledger.lease("b", 10, below=5) == [2, 3, 4]
    assert ledger.lease("a", 1, below=5) == []
    assert ledger.lease("a", 5, below=100) == [5]
    assert (ledger.waiting, ledger.leased, ledger.written) == (0, 6, 0)


def test_what_a_dead_holder_owes_is_leased_again_in_order():
    ledger = Ledger(5, epochs=1)
    ledger.lease("dead", 2, below=5)
    ledger.lease("alive", 1, below=5)
    ledger.lease("dead", 1, below=5)
    ledger.write(0, "dead")
    assert ledger.give_back("dead") == [1, 3]
    assert ledger.lease("alive", 5, below=5) == [1, 3, 4]
    assert ledger.give_back("dead") == []


def test_only_the_present_holder_writes_and_only_once():
    ledger = Ledger(2, epochs=1)
    ledger.lease("late", 1, below=2)
    ledger.give_back("late")
    assert not ledger.write(0, "late")
    ledger.lease("next", 1, below=2)
    assert not ledger.write(0, "late")
    assert not ledger.is_written([0])
    assert ledger.write(0, "next")
    assert not ledger.write(0, "next")
    assert not ledger.write(1, "next")  # never leased
    assert ledger.is_written([0])
    assert not ledger.is_written([0, 1])
    assert (ledger.waiting, ledger.leased, ledger.written) == (1, 0, 1)


def test_lost_and_duplicated_pairs_are_counted():
    ledger = Ledger(4, epochs=2)
    for epoch, positions in ((0, [0, 1, 2]), (1, [0, 1]), (1, [1])):
        ledger.commit(epoch, positions)
    assert ledger.counts() == LedgerCounts(committed=1, lost=2, duplicated=1)


def test_a_second_commit_in_one_pass_does_not_stand_for_the_missing_one():
    ledger = Ledger(1, epochs=2)
    ledger.commit(0, [0])
    ledger.commit(0, [0])
    assert ledger.counts() == LedgerCounts(committed=0, lost=1, duplicated=1)


def test_books_of_several_rounds_add_up():
    assert LedgerCounts(5, 1, 2) + LedgerCounts(10, 3, 4) == LedgerCounts(15, 4, 6)


def reloaded(ledger: Ledger, also_written: tuple[int, ...] = ()) -> Ledger:
    state = json.loads(json.dumps(ledger.state_dict()))
    other = Ledger(ledger.size, ledger.epochs)
    other.load_state_dict(state, also_written)
    return other


def orders(size: int, epochs: int) -> list[list[int]]:
    return [random.Random(epoch).sample(range(size), size) for epoch in range(epochs)]


def events(ledger: Ledger, done: int, rng: random.Random) -> Iterator[int]:
    """Leases, deaths and deliveries at random, and commits in the passes' order; yields commits so far."""
    order = [(epoch, p) for epoch, pass_ in enumerate(orders(ledger.size, ledger.epochs)) for p in pass_]
    under_way: list[tuple[str, int]] = []
    while done < len(order):
        holder = rng.choice("ab")
        under_way += [(holder, position) for position in ledger.lease(holder, rng.randint(1, 4), ledger.size)]
        rng.shuffle(under_way)
        while under_way and rng.random() < 0.6:
            deliverer, position = under_way.pop()
            ledger.write(position, deliverer)
        if rng.random() < 0.2:
            ledger.give_back(rng.choice("ab"))
        while done < len(order) and ledger.is_written([order[done][1]]) and rng.random() < 0.8:
            epoch, position = order[done]
            ledger.commit(epoch, [position])
            done += 1
        yield done


@given(
    size=st.integers(1, 20),
    epochs=st.integers(1, 3),
    moment=st.integers(0, 60),
    rng=st.randoms(use_true_random=False),
)
def test_a_ledger_goes_on_where_it_was_kept(size, epochs, moment, rng):
    ledger = Ledger(size, epochs)
    done = [0, *islice(events(ledger, 0, rng), moment)][-1]
    again = reloaded(ledger)
    assert again.state_dict() == ledger.state_dict()
    assert again.counts() == ledger.counts()
    assert (again.leased, again.written) == (0, ledger.written)
    assert again.waiting == ledger.waiting + ledger.leased
    owed = [position for position in range(size) if not ledger.is_written([position])]
    assert reloaded(ledger).lease("a", size, below=size) == owed
    for _ in events(again, done, rng):
        pass
    assert again.counts() == LedgerCounts(committed=size)
    assert (again.waiting, again.leased, again.written) == (0, 0, size)


def test_a_set_back_ledger_forgets_what_came_after():
    ledger = Ledger(4, epochs=1)
    ledger.lease("a", 2, below=4)
    ledger.write(0, "a")
    ledger.commit(0, [0])
    state = ledger.state_dict()
    ledger.write(1, "a")
    ledger.commit(0, [1])
    ledger.lease("a", 1, below=4)
    ledger.load_state_dict(state)
    assert ledger.state_dict() == state
    assert not ledger.write(2, "a")
    assert ledger.counts() == LedgerCounts(committed=1, lost=3)
    assert ledger.lease("a", 4, below=4) == [1, 2, 3]


def test_what_is_written_besides_is_not_leased_again():
    ledger = Ledger(4, epochs=1)
    ledger.lease("a", 1, below=4)
    ledger.write(0, "a")
    again = reloaded(ledger, also_written=(0, 2))
    assert again.written == 2
    assert again.lease("a", 4, below=4) == [1, 3]


def test_books_that_do_not_add_up_are_kept_as_they_are():
    ledger = Ledger(3, epochs=2)
    for epoch, positions in ((0, [0, 1, 1]), (0, [1]), (1, [2])):
        ledger.commit(epoch, positions)
    assert reloaded(ledger).state_dict() == ledger.state_dict()
    assert reloaded(ledger).counts() == ledger.counts() == LedgerCounts(committed=0, lost=3, duplicated=1)


def test_the_state_of_a_large_round_is_short():
    ledger = Ledger(50_000, epochs=2)
    positions = ledger.lease("a", 40_000, below=50_000)
    for position in positions:
        ledger.write(position, "a")
    ledger.commit(0, positions[:30_000])
    assert ledger.state_dict() == {
        "written": [[1, 40_000], [0, 10_000]],
        "commits": [[[1, 30_000], [0, 20_000]], [[0, 50_000]]],
    }
    ledger.commit(1, random.Random(0).sample(positions, 20_000))
    assert len(json.dumps(ledger.state_dict())) < 300_000


@pytest.mark.parametrize("other", [Ledger(3, epochs=2), Ledger(4, epochs=1), Ledger(5, epochs=2)])
def test_the_state_of_another_round_is_refused(other):
    with pytest.raises(ValueError, match="not the state of a ledger of 4 prompts and 2 epochs"):
        Ledger(4, epochs=2).load_state_dict(other.state_dict())
    with pytest.raises(ValueError, match="outside a round of 4 prompts"):
        Ledger(4, epochs=2).load_state_dict(Ledger(4, epochs=2).state_dict(), [4])
