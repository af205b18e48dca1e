"""The table of (block, owner) pairs against an array: growth, garbage, pairs of many owners, removal without traces."""

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from services.gateway.placement.matching import rows_in_c, rows_in_numpy
from services.gateway.placement.states import States
from services.gateway.placement.table.changes import EVICTED, MAX_STATES, Run, joined
from services.gateway.placement.table.owners import NO_HOLDER
from services.gateway.placement.table.pairs import MAX_LOAD, MIN_GARBAGE, PRESSING_LOAD, OwnedPairs
from services.gateway.placement.table.table import BUCKET_SLOTS, MIN_BUCKETS, PairTable
from services.gateway.placement.table.words import Words, words
from shared.kv.layout import KvLayout, LayerSpec

UNIVERSE = np.random.default_rng(7).integers(1, 2**64, 12_000, dtype=np.uint64)
ABSENT = -1
BYTES_PER_SLOT = 16
LAYOUT = KvLayout(tuple(LayerSpec(window, 1, 2) for window in (None, 9, 99)), "float32", 4)
STATES = States(LAYOUT)
STATES.masks = np.random.default_rng(8).integers(1, 8, (MAX_STATES, 2), np.uint8)
STATES.is_assumed = np.zeros(MAX_STATES, np.bool_)


def packed(keys: Words) -> bytes:
    """Keys of which only the beginning counts."""
    return np.pad(keys.reshape(-1, 1), [(0, 0), (0, 3)]).tobytes()


def bring_room(pairs: OwnedPairs) -> None:
    if pairs.room_wanted is not None:
        pairs.take_room(PairTable(pairs.room_wanted))


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
        owner = self.pairs.owners.new()
        assert owner not in self.rows
        if is_hidden:
            self.hidden.add(owner)
        else:
            self.pairs.owners.give(owner, owner)
        self.rows[owner] = np.full(len(UNIVERSE), ABSENT)
        return owner

    @rule(owner=owners)
    def show(self, owner: int) -> None:
        self.pairs.owners.give(owner, owner)
        self.hidden.discard(owner)

    @rule(owner=consumes(owners))
    def drop(self, owner: int) -> None:
        self.pairs.owners.drop(owner)
        del self.rows[owner]
        self.hidden.discard(owner)

    @rule(changes=st.lists(st.tuples(owners, ranges, st.integers(0, 4095) | st.just(EVICTED)), min_size=1, max_size=4))
    def change(self, changes: list[tuple[int, slice, int]]) -> None:
        """As one batch, in this order."""
        runs = []
        for owner, chosen, state in changes:
            if state != EVICTED or owner not in self.hidden:
                runs.append(Run(packed(UNIVERSE[chosen]), owner, state))
                self.rows[owner][chosen] = ABSENT if state == EVICTED else state
        self.pairs.change(joined(runs))

    @rule(num_steps=st.integers(1, 20))
    def wait(self, num_steps: int) -> None:
        for _ in range(num_steps):
            self.pairs.step(0)

    @rule()
    def room_is_brought(self) -> None:
        bring_room(self.pairs)

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
    def c_and_numpy_match_the_same(self) -> None:
        num_holders = len(self.pairs.owners.holder_of)
        in_c = rows_in_c(STATES, self.pairs, packed(UNIVERSE), num_holders)
        in_numpy = rows_in_numpy(LAYOUT, STATES, self.pairs, packed(UNIVERSE), num_holders)
        assert in_c is not None, "no C compiler"
        assert len(in_c.masks) == len(in_numpy.masks)
        for row, same in zip(in_c.of, in_numpy.of, strict=True):
            assert np.array_equal(in_c.masks[row], in_numpy.masks[same])

    @invariant()
    def pairs_are_counted(self) -> None:
        for owner, row in self.rows.items():
            assert self.pairs.owners.num_pairs[owner] == np.count_nonzero(row != ABSENT)


TestPairsAgainstArrays = PairsAgainstArrays.TestCase
TestPairsAgainstArrays.settings = settings(max_examples=25, stateful_step_count=30)


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
    assert not table._words.reshape(MIN_BUCKETS, -1)[:, [0, 13]].any()  # neither tags nor those who went past


def test_a_table_may_be_full_to_the_last_slot() -> None:
    table = PairTable(MIN_BUCKETS)
    keys = UNIVERSE[: table.num_slots]
    table.insert(keys, np.arange(len(keys), dtype=np.uint32))
    hits = table.find(keys)
    assert (np.sort(hits.keys) == np.arange(len(keys))).all()
    assert (table.pairs(hits.slots) == hits.keys).all()


def test_a_search_ends_though_somebody_went_past_all_buckets() -> None:
    """Of each block that many pools held the pair is left that lies furthest: the path to it stays marked."""
    pairs = OwnedPairs()
    owner = pairs.owners.new(0)
    (table,) = pairs.tables
    keys = UNIVERSE[:50]
    for number in range(len(keys)):
        table.insert(keys[number].repeat(300), np.full(300, owner << 12 | 1, np.uint32))
        table.remove(table.find(keys[number : number + 1]).slots[:-1])  # in the order of the path
    assert (table._words.reshape(MIN_BUCKETS, -1)[:, 0] >> 63).all()
    asked = packed(UNIVERSE[:100])
    for rows in (rows_in_c(STATES, pairs, asked, 1), rows_in_numpy(LAYOUT, STATES, pairs, asked, 1)):
        assert rows is not None
        has = (rows.masks[rows.of[0]] == STATES.masks[1][:, np.newaxis]).all(axis=0)
        assert has.tolist() == [True] * 50 + [False] * 50


def test_dropped_owners_make_room_and_their_numbers_come_back() -> None:
    """A holder whose content is replaced again and again: the table stays about as large as the content."""
    pairs = OwnedPairs()
    keys = np.random.default_rng(1).integers(1, 2**64, 50_000, dtype=np.uint64)
    owners = set()
    for _ in range(20):
        owner = pairs.owners.new(0)
        owners.add(owner)
        pairs.change(joined([Run(packed(keys), owner, 0)]))
        assert len(pairs.find(keys).blocks) == len(keys)
        pairs.owners.drop(owner)
        pairs.step(0)
        bring_room(pairs)
    assert len(owners) < 12
    assert pairs.nbytes < 8 * (len(keys) + MIN_GARBAGE) / MAX_LOAD * BYTES_PER_SLOT
    for _ in range(2000):
        pairs.step(0)
        bring_room(pairs)
    assert pairs.nbytes < 8 * MIN_GARBAGE * BYTES_PER_SLOT


def test_a_table_that_nobody_brings_is_not_waited_for_until_all_is_full() -> None:
    pairs = OwnedPairs()
    keys = np.random.default_rng(1).integers(1, 2**64, 200_000, dtype=np.uint64)
    owner = pairs.owners.new(0)
    waited = 0
    for start in range(0, len(keys), 500):
        pairs.change(joined([Run(packed(keys[start : start + 500]), owner, 1)]))
        waited += pairs.room_wanted is not None
        assert pairs._table.num_pairs <= PRESSING_LOAD * pairs._table.num_slots
    assert waited
    assert len(pairs.find(keys).blocks) == len(keys)


def test_room_that_comes_too_late_is_not_used() -> None:
    pairs = OwnedPairs()
    pairs.take_room(PairTable(2 * MIN_BUCKETS))
    assert pairs.nbytes == MIN_BUCKETS * BUCKET_SLOTS * BYTES_PER_SLOT


def test_keys_are_cut() -> None:
    assert words(b"").tolist() == []
    assert words(bytes(32) + bytes([2] + [0] * 31) + b"\xff" * 32).tolist() == [0, 2, 2**64 - 1]
