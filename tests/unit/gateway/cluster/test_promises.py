"""Prefill calls that are running, by what they share with a new prompt."""

from services.gateway.cluster.promises import PrefillPromise, PrefillPromises
from shared.ids import BlockKey, LayoutHash, ModelFingerprint, WorkerId
from shared.kv.hashing import chain_keys, root_key

ROOT = root_key(ModelFingerprint("m"), LayoutHash("l"))
A, B = WorkerId("a"), WorkerId("b")


def keys(*tokens: int) -> list[BlockKey]:
    return chain_keys(ROOT, tokens, 1)


def test_longest_shared_prefix_per_worker() -> None:
    promises = PrefillPromises()
    for worker, chain in ((A, keys(1, 2, 3)), (A, keys(1, 2, 9, 9)), (B, keys(1)), (B, keys(7, 2, 3))):
        promises.add(PrefillPromise(worker, chain))
    assert promises.longest(keys(1, 2, 3, 4)) == {A: 3, B: 1}
    assert promises.longest(keys(1, 2)) == {A: 2, B: 1}
    assert promises.longest(keys(8)) == {}
    assert promises.longest([]) == {}


def test_every_position_of_the_first_difference() -> None:
    chain = list(range(1, 20))
    for shared in range(20):
        promises = PrefillPromises()
        promises.add(PrefillPromise(A, keys(*chain[:shared], 99, *chain[shared + 1 :])))
        expected = {A: min(shared, 19)} if shared else {}
        assert promises.longest(keys(*chain)) == expected


def test_a_dropped_promise_counts_no_more_and_equal_ones_are_distinct() -> None:
    promises = PrefillPromises()
    first, second = PrefillPromise(A, keys(1)), PrefillPromise(A, keys(1))
    promises.add(first)
    promises.add(second)
    promises.drop(first)
    promises.drop(first)
    assert promises.longest(keys(1)) == {A: 1}
    promises.drop(second)
    assert promises.longest(keys(1)) == {}
    assert len(promises) == 0
