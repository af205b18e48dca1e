"""The placement index: sequences, epochs, snapshots, layer groups, and a comparison with a naive model."""

from collections.abc import Iterable, Sequence

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from services.gateway.index import MAX_PENDING_EVENTS, PlacementIndex
from services.gateway.resume import GroupMasks
from shared.bus.events import PlacementEvent, StoredBlocks
from shared.ids import BlockKey, Datacenter, Epoch, WorkerId
from shared.kv.layout import KvLayout, LayerSpec

EAST, WEST = WorkerId("pool-east"), WorkerId("pool-west")
FULL, WINDOW, ALL = 0b01, 0b10, 0b11  # group masks
LAYOUT = KvLayout((LayerSpec(None, 1, 2), LayerSpec(9, 1, 2), LayerSpec(9, 1, 2)), "float32", 4)


def key(number: int) -> BlockKey:
    return BlockKey(number.to_bytes(32, "big"))


KEYS = [key(i) for i in range(6)]


def packed(stored: Iterable[tuple[int, int]]) -> tuple[StoredBlocks, ...]:
    """Blocks by number, with the groups that they have in memory."""
    return tuple(StoredBlocks(key(number), groups, groups) for number, groups in stored)


def event(
    sequence: int,
    *,
    stored: Sequence[tuple[int, int]] = (),
    evicted: Sequence[int] = (),
    cleared: bool = False,
    epoch: int = 1,
    holder: WorkerId = EAST,
) -> PlacementEvent:
    return PlacementEvent(
        holder=holder,
        dc=Datacenter("east"),
        epoch=Epoch(epoch),
        sequence=sequence,
        stored=packed(stored),
        evicted=b"".join(key(number) for number in evicted),
        cleared=cleared,
    )


def fresh(sequence: int = 0, stored: Sequence[tuple[int, int]] = ()) -> PlacementIndex:
    index = PlacementIndex(LAYOUT)
    index.apply_snapshot(EAST, 1, sequence, packed(stored))
    return index


def groups_of(index: PlacementIndex, now: float = 0.0) -> tuple[int, ...] | None:
    held = index.held(KEYS[:4], now)
    return tuple(held[EAST].groups.tolist()) if EAST in held else None


def masks(*groups: int) -> GroupMasks:
    return np.array(groups, np.uint8)


def test_events_in_sequence_are_applied() -> None:
    index = fresh()
    index.apply(event(1, stored=[(0, ALL), (1, FULL)]))
    index.apply(event(2, evicted=[0], stored=[(2, ALL)]))
    assert groups_of(index) == (0, FULL, ALL, 0)
    index.apply(event(3, cleared=True, stored=[(3, WINDOW)]))
    assert groups_of(index) == (0, 0, 0, WINDOW)


def test_a_holder_that_was_never_snapshotted_earns_no_credit() -> None:
    index = PlacementIndex(LAYOUT)
    index.apply(event(7, stored=[(0, ALL)]))
    assert index.held(KEYS, 0) == {}
    assert index.stale() == [EAST]


def test_duplicates_are_ignored() -> None:
    index = fresh(5)
    index.apply(event(5, stored=[(0, ALL)]))
    index.apply(event(3, stored=[(1, ALL)]))
    assert groups_of(index) == (0, 0, 0, 0)
    assert not index.has_stale


def test_a_gap_makes_a_holder_stale_until_its_snapshot() -> None:
    index = fresh(0, [(0, ALL)])
    index.apply(event(1))
    index.apply(event(3, stored=[(2, ALL)]))
    assert index.stale() == [EAST]
    assert index.held(KEYS, 0) == {}
    index.apply(event(4, stored=[(3, ALL)]))  # buffered behind the gap
    index.apply_snapshot(EAST, 1, 3, packed([(1, ALL)]))
    assert not index.has_stale
    assert groups_of(index) == (0, ALL, 0, ALL)  # the snapshot, then event 4; event 3 is part of the snapshot


def test_a_snapshot_older_than_the_gap_leaves_the_holder_stale() -> None:
    index = fresh(1)
    index.apply(event(5))
    index.apply(event(6, stored=[(0, ALL)]))
    index.apply_snapshot(EAST, 1, 3, [])
    assert index.stale() == [EAST]
    index.apply_snapshot(EAST, 1, 5, [])
    assert not index.has_stale
    assert groups_of(index) == (ALL, 0, 0, 0)


def test_a_new_epoch_forgets_the_old_content_and_older_epochs_are_ignored() -> None:
    index = fresh(4, [(0, ALL)])
    index.apply(event(1, cleared=True, epoch=2))
    assert index.stale() == [EAST]
    index.apply_snapshot(EAST, 1, 9, packed([(0, ALL)]))  # the answer of the life before
    assert index.stale() == [EAST]
    index.apply_snapshot(EAST, 2, 1, packed([(3, ALL)]))
    index.apply(event(5, stored=[(1, ALL)], epoch=1))
    assert groups_of(index) == (0, 0, 0, ALL)


def test_a_snapshot_of_a_newer_epoch_than_its_events_is_taken() -> None:
    index = fresh(4, [(0, ALL)])
    index.doubt(EAST)
    index.apply_snapshot(EAST, 2, 7, packed([(1, ALL)]))
    index.apply(event(8, stored=[(2, ALL)], epoch=2))
    assert groups_of(index) == (0, ALL, ALL, 0)


def test_a_snapshot_for_a_trusted_holder_is_ignored() -> None:
    index = fresh(4, [(0, ALL)])
    index.apply_snapshot(EAST, 1, 2, [])
    assert groups_of(index) == (ALL, 0, 0, 0)


def test_pending_events_are_bounded_and_the_loss_is_noticed() -> None:
    index = PlacementIndex(LAYOUT)
    for sequence in range(1, MAX_PENDING_EVENTS + 10):
        index.apply(event(sequence))
    index.apply_snapshot(EAST, 1, 2, [])  # events 3 to 9 were dropped
    assert index.stale() == [EAST]
    index.apply_snapshot(EAST, 1, MAX_PENDING_EVENTS + 9, [])
    assert not index.has_stale


def test_doubt_all_and_forget() -> None:
    index = fresh()
    index.apply_snapshot(WEST, 1, 0, [])
    index.doubt_all()
    assert set(index.stale()) == {EAST, WEST}
    index.forget(WEST)
    assert index.stale() == [EAST]


def test_the_longest_prefix_needs_every_group() -> None:
    # Window 9 over blocks of 4: a resume after 4 blocks needs window layers of blocks 2 and 3 only.
    index = fresh(0, [(0, FULL), (1, FULL), (2, ALL), (3, ALL)])
    assert index.held(KEYS[:4], 0)[EAST].longest == 4
    assert index.held(KEYS[:3], 0)[EAST].longest == 0
    index.apply(event(1, stored=[(1, WINDOW)]))
    assert index.held(KEYS[:4], 0)[EAST].longest == 0
    index.apply(event(2, stored=[(1, ALL)], evicted=[3]))
    assert index.held(KEYS[:4], 0)[EAST].longest == 3


def test_assumptions_count_until_they_expire_or_are_refuted() -> None:
    index = fresh()
    index.assume(EAST, KEYS[:2], masks(ALL, FULL), until=10.0)
    assert groups_of(index, now=9.0) == (ALL, FULL, 0, 0)
    index.apply(event(1, evicted=[0]))
    assert groups_of(index, now=9.0) == (0, FULL, 0, 0)
    index.apply(event(2, stored=[(1, WINDOW)]))
    assert groups_of(index, now=9.5) == (0, ALL, 0, 0)
    assert groups_of(index, now=10.0) == (0, WINDOW, 0, 0)
    index.assume(WEST, KEYS, masks(1, 1, 1, 1, 1, 1), until=99.0)  # nobody knows this pool: nothing to credit
    assert WEST not in index.held(KEYS, 11.0)


class IndexAgainstNaiveModel(RuleBasedStateMachine):
    """A pool that changes, restarts and answers snapshots; a bus that may lose, repeat and delay its events.

    Whatever happens, a holder that the index trusts is exactly what the pool was at the last event that arrived, and
    once the bus has delivered everything a snapshot makes it trusted again.
    """

    @initialize()
    def start(self) -> None:
        self.index = PlacementIndex(LAYOUT)
        self.epoch, self.sequence = 1, 0
        self.content: dict[int, int] = {}
        self.history: dict[tuple[int, int], dict[int, int]] = {(1, 0): {}}
        self.on_the_way: list[PlacementEvent] = []
        self.delivered: list[PlacementEvent] = []
        self.snapshot: tuple[int, int, dict[int, int]] | None = None
        self.known = (0, 0)

    @rule(
        stored=st.dictionaries(st.integers(0, 5), st.sampled_from([FULL, WINDOW, ALL]), max_size=3),
        evicted=st.sets(st.integers(0, 5), max_size=2),
        cleared=st.booleans(),
    )
    def pool_changes(self, stored: dict[int, int], evicted: set[int], cleared: bool) -> None:
        self.sequence += 1
        evicted -= stored.keys()
        change = event(
            self.sequence, stored=list(stored.items()), evicted=list(evicted), cleared=cleared, epoch=self.epoch
        )
        if cleared:
            self.content = {}
        for number in evicted:
            self.content.pop(number, None)
        self.content = {**self.content, **stored}
        self.history[self.epoch, self.sequence] = dict(self.content)
        self.on_the_way.append(change)

    @rule()
    def pool_restarts(self) -> None:
        self.epoch, self.sequence, self.content = self.epoch + 1, 0, {}
        self.history[self.epoch, 0] = {}

    @rule()
    def deliver(self) -> None:
        if self.on_the_way:
            arrived = self.on_the_way.pop(0)
            self.delivered.append(arrived)
            self.index.apply(arrived)

    @rule()
    def lose(self) -> None:
        if self.on_the_way:
            self.on_the_way.pop(0)

    @rule(data=st.data())
    def repeat(self, data: st.DataObject) -> None:
        if self.delivered:
            self.index.apply(data.draw(st.sampled_from(self.delivered)))

    @rule()
    def pool_answers(self) -> None:
        self.snapshot = (self.epoch, self.sequence, dict(self.content))

    @rule()
    def snapshot_arrives(self) -> None:
        if self.snapshot is not None:
            epoch, sequence, content = self.snapshot
            self.index.apply_snapshot(EAST, epoch, sequence, packed(content.items()))

    @rule()
    def bus_is_reset(self) -> None:
        self.index.doubt_all()

    @rule()
    def everything_heals(self) -> None:
        while self.on_the_way:
            self.deliver()
        self.index.doubt(EAST)
        self.pool_answers()
        self.snapshot_arrives()
        assert self.seen() == self.expected(self.content)

    @invariant()
    def a_trusted_holder_is_some_true_state_of_the_pool(self) -> None:
        seen = self.seen()
        if seen is None:
            return
        holder = self.index._holders[EAST]
        assert seen == self.expected(self.history[holder.epoch, holder.sequence])
        assert (holder.epoch, holder.sequence) >= self.known  # never back in time
        self.known = (holder.epoch, holder.sequence)

    def seen(self) -> tuple[int, ...] | None:
        held = self.index.held(KEYS, 0.0)
        return tuple(held[EAST].groups.tolist()) if EAST in held else None

    @staticmethod
    def expected(content: dict[int, int]) -> tuple[int, ...]:
        return tuple(content.get(number, 0) for number in range(len(KEYS)))


TestIndexAgainstNaiveModel = IndexAgainstNaiveModel.TestCase
TestIndexAgainstNaiveModel.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
