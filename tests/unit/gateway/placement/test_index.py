"""The placement index: sequences, epochs, snapshots, layer groups, tiers, credits."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from services.gateway.placement.holder import MAX_PENDING_BLOCKS, MAX_PENDING_EVENTS
from services.gateway.placement.index import CREDIT_STEP_S, Certainty, PlacementIndex
from shared.bus.events import PlacementEvent
from shared.ids import Datacenter, Epoch, WorkerId
from shared.kv.layout import KvLayout, LayerSpec
from shared.kv.resume import GroupMasks, longest_resume
from tests.support.placement import key, packed, take_snapshot

EAST, WEST = WorkerId("pool-east"), WorkerId("pool-west")
FULL, WINDOW, ALL = 0b01, 0b10, 0b11  # group masks
LAYOUT = KvLayout((LayerSpec(None, 1, 2), LayerSpec(9, 1, 2), LayerSpec(9, 1, 2)), "float32", 4)


KEYS = [key(i) for i in range(6)]


def event(
    sequence: int,
    *,
    stored: Sequence[tuple[int, int] | tuple[int, int, int]] = (),
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


def fresh(sequence: int = 0, stored: Sequence[tuple[int, int] | tuple[int, int, int]] = ()) -> PlacementIndex:
    index = PlacementIndex(LAYOUT)
    index.doubt(EAST)
    take_snapshot(index, EAST, 1, sequence, packed(stored))
    return index


def groups_of(index: PlacementIndex, now: float = 0.0) -> tuple[int, ...] | None:
    held = index.held(KEYS[:4], now)
    return tuple(held[EAST].groups.tolist()) if EAST in held else None


def masks(*groups: int) -> GroupMasks:
    return np.array(groups, np.uint8)


def test_events_in_sequence_are_applied() -> None:
    index = fresh()
    index.apply(event(1, stored=[(0, ALL), (1, FULL)]), 0.0)
    index.apply(event(2, evicted=[0], stored=[(2, ALL)]), 0.0)
    assert groups_of(index) == (0, FULL, ALL, 0)
    index.apply(event(3, cleared=True, stored=[(3, WINDOW)]), 0.0)
    assert groups_of(index) == (0, 0, 0, WINDOW)


def test_a_holder_that_was_never_snapshotted_earns_no_credit() -> None:
    index = PlacementIndex(LAYOUT)
    index.apply(event(7, stored=[(0, ALL)]), 0.0)
    assert index.held(KEYS, 0) == {}
    assert index.stale() == [EAST]


def test_duplicates_are_ignored() -> None:
    index = fresh(5)
    index.apply(event(5, stored=[(0, ALL)]), 0.0)
    index.apply(event(3, stored=[(1, ALL)]), 0.0)
    assert groups_of(index) == (0, 0, 0, 0)
    assert not index.has_stale


def test_a_gap_makes_a_holder_stale_until_its_snapshot() -> None:
    index = fresh(0, [(0, ALL)])
    index.apply(event(1), 0.0)
    index.apply(event(3, stored=[(2, ALL)]), 0.0)
    assert index.stale() == [EAST]
    assert index.held(KEYS, 0) == {}
    index.apply(event(4, stored=[(3, ALL)]), 0.0)  # buffered behind the gap
    take_snapshot(index, EAST, 1, 3, packed([(1, ALL)]))
    assert not index.has_stale
    assert groups_of(index) == (0, ALL, 0, ALL)  # the snapshot, then event 4; event 3 is part of the snapshot


def test_a_snapshot_older_than_the_gap_leaves_the_holder_stale() -> None:
    index = fresh(1)
    index.apply(event(5), 0.0)
    index.apply(event(6, stored=[(0, ALL)]), 0.0)
    take_snapshot(index, EAST, 1, 3, [])
    assert index.stale() == [EAST]
    take_snapshot(index, EAST, 1, 5, [])
    assert not index.has_stale
    assert groups_of(index) == (ALL, 0, 0, 0)


def test_a_new_epoch_forgets_the_old_content_and_older_epochs_are_ignored() -> None:
    index = fresh(4, [(0, ALL)])
    index.apply(event(1, cleared=True, epoch=2), 0.0)
    assert index.stale() == [EAST]
    take_snapshot(index, EAST, 1, 9, packed([(0, ALL)]))  # the answer of the life before
    assert index.stale() == [EAST]
    take_snapshot(index, EAST, 2, 1, packed([(3, ALL)]))
    index.apply(event(5, stored=[(1, ALL)], epoch=1), 0.0)
    assert groups_of(index) == (0, 0, 0, ALL)


def test_a_snapshot_of_a_newer_epoch_than_its_events_is_taken() -> None:
    index = fresh(4, [(0, ALL)])
    index.doubt(EAST)
    take_snapshot(index, EAST, 2, 7, packed([(1, ALL)]))
    index.apply(event(8, stored=[(2, ALL)], epoch=2), 0.0)
    assert groups_of(index) == (0, ALL, ALL, 0)


def test_a_snapshot_for_a_trusted_holder_is_ignored() -> None:
    index = fresh(4, [(0, ALL)])
    take_snapshot(index, EAST, 1, 2, [])
    assert groups_of(index) == (ALL, 0, 0, 0)


def test_pending_events_are_bounded_and_the_loss_is_noticed() -> None:
    index = PlacementIndex(LAYOUT)
    for sequence in range(1, MAX_PENDING_EVENTS + 10):
        index.apply(event(sequence), 0.0)
    take_snapshot(index, EAST, 1, 2, [])  # events 3 to 9 were dropped
    assert index.stale() == [EAST]
    take_snapshot(index, EAST, 1, MAX_PENDING_EVENTS + 9, [])
    assert not index.has_stale


def test_doubt_all_and_forget() -> None:
    index = fresh()
    index.doubt(WEST)
    take_snapshot(index, WEST, 1, 0, [])
    index.doubt_all()
    assert set(index.stale()) == {EAST, WEST}
    index.forget(WEST)
    assert index.stale() == [EAST]


def longest(index: PlacementIndex, num_blocks: int) -> int:
    return int(longest_resume(LAYOUT, index.held(KEYS[:num_blocks], 0)[EAST].groups))


def test_the_longest_prefix_needs_every_group() -> None:
    # Window 9 over blocks of 4: a resume after 4 blocks needs window layers of blocks 2 and 3 only.
    index = fresh(0, [(0, FULL), (1, FULL), (2, ALL), (3, ALL)])
    assert longest(index, 4) == 4
    assert longest(index, 3) == 0
    index.apply(event(1, stored=[(1, WINDOW)]), 0.0)
    assert longest(index, 4) == 0
    index.apply(event(2, stored=[(1, ALL)], evicted=[3]), 0.0)
    assert longest(index, 4) == 3


def test_assumptions_count_until_they_expire_or_are_refuted() -> None:
    index = fresh()
    index.assume(EAST, KEYS[:2], masks(ALL, FULL), until=10.0)
    assert groups_of(index, now=9.0) == (ALL, FULL, 0, 0)
    index.apply(event(1, evicted=[0]), 0.0)
    assert groups_of(index, now=9.0) == (0, FULL, 0, 0)
    index.apply(event(2, stored=[(1, WINDOW)]), 0.0)
    assert groups_of(index, now=9.5) == (0, ALL, 0, 0)
    assert groups_of(index, now=10.0) == (0, WINDOW, 0, 0)
    index.assume(WEST, KEYS, masks(1, 1, 1, 1, 1, 1), until=99.0)  # nobody knows this pool: nothing to credit
    assert WEST not in index.held(KEYS, 11.0)


def test_credits_that_end_almost_together_end_with_the_first() -> None:
    index = fresh()
    index.assume(EAST, KEYS[:1], masks(ALL), until=10.0)
    index.assume(EAST, KEYS[1:2], masks(ALL), until=10.0 + CREDIT_STEP_S / 2)
    index.assume(EAST, KEYS[2:3], masks(ALL), until=10.0 + CREDIT_STEP_S)
    assert groups_of(index, now=9.9) == (ALL, ALL, ALL, 0)
    assert groups_of(index, now=10.0) == (0, 0, ALL, 0)


def test_memory_is_told_from_other_tiers() -> None:
    index = fresh(0, [(0, ALL, ALL), (1, ALL, FULL), (2, ALL, 0)])
    held = index.held(KEYS[:4], 0.0)[EAST]
    assert (held.groups.tolist(), held.memory_groups.tolist()) == ([ALL, ALL, ALL, 0], [ALL, FULL, 0, 0])
    index.apply(event(1, stored=[(0, FULL, 0)]), 0.0)
    index.assume(EAST, KEYS[:3], masks(ALL, ALL, ALL), until=9.0)  # was seen in memory a moment ago
    held = index.held(KEYS[:4], 0.0)[EAST]
    assert (held.groups.tolist(), held.memory_groups.tolist()) == ([ALL, ALL, ALL, 0], [ALL, ALL, ALL, 0])
    held = index.held(KEYS[:4], 9.0)[EAST]
    assert (held.groups.tolist(), held.memory_groups.tolist()) == ([FULL, ALL, ALL, 0], [0, FULL, 0, 0])


def test_groups_of_other_models_are_nothing() -> None:
    index = fresh(0, [(0, 0b1100), (1, 0b111)])
    assert groups_of(index) == (0, ALL, 0, 0)


def test_of_a_block_that_is_named_twice_the_last_counts() -> None:
    index = fresh(0, [(0, ALL), (1, ALL), (0, FULL)])
    assert groups_of(index) == (FULL, ALL, 0, 0)
    index.apply(event(1, evicted=[0, 1, 0], stored=[(1, ALL), (2, FULL), (1, WINDOW)]), 0.0)
    assert groups_of(index) == (0, WINDOW, FULL, 0)
    assert index.num_blocks() == {EAST: 2}


def test_pending_blocks_are_bounded_too() -> None:
    index = PlacementIndex(LAYOUT)
    many = [(number, ALL) for number in range(1000)]
    one = event(1, stored=many)
    for sequence in range(1, MAX_PENDING_BLOCKS // 1000 + 10):
        index.apply(replace(one, sequence=sequence), 0.0)
    take_snapshot(index, EAST, 1, 1, [])
    assert index.stale() == [EAST]


def test_a_snapshot_that_breaks_off_leaves_nothing_behind() -> None:
    index = fresh(0, [(0, ALL)])
    index.doubt(EAST)
    intake = index.open_snapshot(EAST)
    intake.add(packed([(0, ALL), (1, ALL)]))
    assert index.held(KEYS, 0.0) == {}
    intake.close()
    intake.close()
    take_snapshot(index, EAST, 1, 1, packed([(2, ALL)]))
    assert groups_of(index) == (0, 0, ALL, 0)


def test_a_pool_that_left_while_its_snapshot_came_is_not_met_again() -> None:
    index = fresh()
    index.doubt(EAST)
    intake = index.open_snapshot(EAST)
    index.forget(EAST)
    index.finish_snapshot(intake, 1, 0)
    intake.close()
    assert index.held(KEYS, 0.0) == {}
    assert index.certainty(0.0) == {}


def test_an_empty_prefix_is_held_by_everybody() -> None:
    held = fresh().held([], 0.0)[EAST]
    assert (held.groups.tolist(), held.memory_groups.tolist()) == ([], [])


def test_how_sure_the_index_is() -> None:
    index = fresh(4, [(0, ALL), (1, ALL)])
    assert index.certainty(1.0) == {EAST: Certainty(False, 1, 4, 2, 0, None)}
    index.apply(event(5, evicted=[0]), 2.0)
    index.assume(EAST, KEYS[1:4], masks(ALL, ALL, ALL), until=6.0)
    assert index.certainty(5.0) == {EAST: Certainty(False, 1, 5, 1, 2, 3.0)}
    assert index.certainty(6.0) == {EAST: Certainty(False, 1, 5, 1, 0, 4.0)}
    index.apply(event(9), 7.0)
    assert index.certainty(7.5) == {EAST: Certainty(True, 1, 5, 0, 0, 0.5)}
