"""The table of (block, owner) pairs against an array: growth, garbage, pairs of many owners, removal without traces."""

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from services.gateway.pairs import MAX_LOAD, MIN_GARBAGE, NO_HOLDER, OwnedPairs, words
from services.gateway.table import MIN_BUCKETS, PairTable

UNIVERSE = np.random.default_rng(7).integers(1, 2**64, 12_000, dtype=np.uint64)
ABSENT = -1


def some(start: int, length: int, stride: int) -> slice:
    return slice(start, start + length * stride, stride)


ranges = st.builds(some, st.integers(0, 11_000), st.sampled_from([1, 20, 700, 6000]), st.integers(1, 3))


class PairsAgainstArrays(RuleBasedStateMachine):
    """One row of states for each owner. Holder numbers are owner numbers, so that every owner can be told apart."""

    owners: Bundle[int] = Bundle("owners")

    def __init__(self) -> None:
        super().__init__()
        self.pairs = OwnedPairs()
        self.rows: dict[int, np.ndarray] = {}
        self.hidden: set[int] = set()

    @rule(target=owners, is_hidden=st.booleans())
    def new_owner(self, is_hidden: bool) -> int:
        owner = self.pairs.new_owner()
        assert owner not in self.rows
        if is_hidden:
            self.hidden.add(owner)
        else:
            self.pairs.give(owner, owner)
        self.rows[owner] = np.full(len(UNIVERSE), ABSENT)
        return owner

    @rule(owner=owners)
    def show(self, owner: int) -> None:
        self.pairs.give(owner, owner)
        self.hidden.discard(owner)

    @rule(owner=consumes(owners))
    def drop(self, owner: int) -> None:
        self.pairs.drop(owner)
        del self.rows[owner]
        self.hidden.discard(owner)

    @rule(owner=owners, chosen=ranges, state=st.integers(0, 4095), again=st.booleans())
    def put(self, owner: int, chosen: slice, state: int, again: bool) -> None:
        keys = UNIVERSE[chosen]
        states = np.full(len(keys), state, np.uint32)
        if again:  # the first half once more, with another state
            keys = np.concatenate([keys, keys[: len(keys) // 2]])
            states = np.concatenate([states, np.full(len(keys) - len(states), 7, np.uint32)])
        self.pairs.put(owner, keys, states)
        self.rows[owner][chosen] = state
        if again:
            self.rows[owner][chosen][: len(keys) - len(UNIVERSE[chosen])] = 7

    @rule(owner=owners, chosen=ranges)
    def remove(self, owner: int, chosen: slice) -> None:
        if owner not in self.hidden:
            self.pairs.remove(owner, UNIVERSE[chosen])
            self.rows[owner][chosen] = ABSENT

    @rule(num_steps=st.integers(1, 20))
    def wait(self, num_steps: int) -> None:
        for _ in range(num_steps):
            self.pairs.step(0)

    @invariant()
    def what_is_found_is_what_was_put(self) -> None:
        found = self.pairs.find(UNIVERSE)
        assert (found.holders != NO_HOLDER).all()
        seen = {owner: np.full(len(UNIVERSE), ABSENT) for owner in self.rows if owner not in self.hidden}
        assert set(np.unique(found.owners).tolist()) <= seen.keys()
        for owner, row in seen.items():
            own = found.owners == owner
            assert len(np.unique(found.blocks[own])) == np.count_nonzero(own)
            row[found.blocks[own]] = found.states[own]
            assert (row == self.rows[owner]).all()

    @invariant()
    def pairs_are_counted(self) -> None:
        for owner, row in self.rows.items():
            assert self.pairs.num_pairs(owner) == np.count_nonzero(row != ABSENT)


TestPairsAgainstArrays = PairsAgainstArrays.TestCase
TestPairsAgainstArrays.settings = settings(max_examples=25, stateful_step_count=30, deadline=None)


def test_a_block_that_everybody_holds_displaces_others_and_leaves_no_trace() -> None:
    table = PairTable(MIN_BUCKETS)
    hot = np.full(400, UNIVERSE[0])
    table.insert(hot, np.arange(400, dtype=np.uint32))
    table.insert(UNIVERSE[1:300], np.zeros(299, np.uint32))
    hits = table.find(UNIVERSE[:300])
    assert np.bincount(hits.keys).tolist() == [400] + [1] * 299
    table.remove(table.find(UNIVERSE[:1]).slots)
    assert len(table.find(UNIVERSE[:1]).slots) == 0
    assert len(table.find(UNIVERSE[1:300]).slots) == 299
    table.remove(table.find(UNIVERSE[1:300]).slots)
    assert table.num_pairs == 0
    assert not table._spilled.any()


def test_a_table_may_be_full_to_the_last_slot() -> None:
    table = PairTable(MIN_BUCKETS)
    keys = UNIVERSE[: table.num_slots]
    table.insert(keys, np.arange(len(keys), dtype=np.uint32))
    hits = table.find(keys)
    assert (np.sort(hits.keys) == np.arange(len(keys))).all()
    assert (table.pairs(hits.slots) == hits.keys).all()


def test_dropped_owners_make_room_and_their_numbers_come_back() -> None:
    """A holder whose content is replaced again and again: the table stays about as large as the content."""
    pairs = OwnedPairs()
    keys = np.random.default_rng(1).integers(1, 2**64, 50_000, dtype=np.uint64)
    owners = set()
    for _ in range(20):
        owner = pairs.new_owner(0)
        owners.add(owner)
        pairs.put(owner, keys, np.zeros(len(keys), np.uint32))
        assert len(pairs.find(keys).blocks) == len(keys)
        pairs.drop(owner)
    assert len(owners) < 12
    bytes_per_slot = 12.5
    assert pairs.nbytes < 8 * (len(keys) + MIN_GARBAGE) / MAX_LOAD * bytes_per_slot
    for _ in range(2000):
        pairs.step(0)
    assert pairs.nbytes < 8 * MIN_GARBAGE * bytes_per_slot


def test_keys_are_cut_and_never_zero() -> None:
    assert words(b"").tolist() == []
    assert words(bytes(32) + bytes([2] + [0] * 31) + b"\xff" * 32).tolist() == [1, 2, 2**64 - 1]
