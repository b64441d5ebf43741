"""The ledger: who promised what, what is written, and what was trained on."""

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
