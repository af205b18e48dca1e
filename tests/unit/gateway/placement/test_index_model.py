"""The placement index against pools that know their own history: whatever the bus does, a trusted holder is true."""

from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from services.gateway.placement import matching
from services.gateway.placement.holder import MAX_PENDING_EVENTS
from services.gateway.placement.index import CREDIT_STEP_S, PlacementIndex
from services.gateway.placement.snapshot import IncomingSnapshot
from services.gateway.placement.table.native import load_match
from shared.bus.events import PlacementEvent, StoredBlocks, unpack_keys
from shared.ids import Datacenter, Epoch, WorkerId
from shared.kv.layout import KvLayout, LayerSpec
from tests.support.placement import key

LAYOUT = KvLayout((LayerSpec(None, 1, 2), LayerSpec(9, 1, 2)), "float32", 4)
NUM_BLOCKS = 1500
KEYS = [key(number) for number in range(NUM_BLOCKS)]
NUMBERS = {name: number for number, name in enumerate(KEYS)}
POOLS = [WorkerId("pool-east"), WorkerId("pool-west")]
WHICH, MOSTLY = st.sampled_from([0, 0, 0, 1]), st.sampled_from([True, True, True, False])
GROUPS, MEMORY = st.integers(1, 3), st.integers(0, 3)
TIMES = st.integers(0, 12).map(lambda quarters: quarters / 4)  # exact, so that comparisons are

Content = np.ndarray  # [2, NUM_BLOCKS]: groups in any tier, in memory

spans = st.builds(
    lambda start, length: slice(start, min(NUM_BLOCKS, start + length)),
    st.integers(0, NUM_BLOCKS - 1),
    st.sampled_from([1, 3, 200, 1000]),
)


def nothing() -> Content:
    return np.zeros((2, NUM_BLOCKS), np.uint8)


def keys_of(span: slice) -> bytes:
    return b"".join(KEYS[span])


@dataclass
class Credit:
    """What requests saw arrive within a step of time, and so ends together."""

    until: float
    masks: np.ndarray = field(default_factory=lambda: np.zeros(NUM_BLOCKS, np.uint8))


@dataclass
class Pool:
    """A pool's life so far: what it held after each event, and the events themselves."""

    name: WorkerId
    epoch: int = 1
    sequence: int = 0
    content: Content = field(default_factory=nothing)
    history: dict[tuple[int, int], Content] = field(default_factory=lambda: {(1, 0): nothing()})
    events: dict[tuple[int, int], PlacementEvent] = field(default_factory=dict)
    on_the_way: list[PlacementEvent] = field(default_factory=list)
    arriving: tuple[IncomingSnapshot, int, int] | None = None
    known: tuple[int, int] = (0, 0)  # what the index said last
    credits: list[Credit] = field(default_factory=list)

    def change(self, stored: list[tuple[slice, int, int]], evicted: slice | None, cleared: bool) -> None:
        self.sequence += 1
        self.content = nothing() if cleared else self.content.copy() if stored or evicted else self.content
        if evicted is not None:
            self.content[:, evicted] = 0
        runs = []
        for span, groups, memory in stored:  # spans may overlap: the last one counts
            self.content[0, span], self.content[1, span] = groups, groups & memory
            runs.append(StoredBlocks(keys_of(span), groups, groups & memory))
        event = PlacementEvent(
            holder=self.name,
            dc=Datacenter("east"),
            epoch=Epoch(self.epoch),
            sequence=self.sequence,
            stored=tuple(runs),
            evicted=b"" if evicted is None else keys_of(evicted),
            cleared=cleared,
        )
        self.history[self.epoch, self.sequence] = self.content
        self.events[self.epoch, self.sequence] = event
        self.on_the_way.append(event)

    def follow(self, at: tuple[int, int]) -> None:
        """Take away the credits that were refuted by the events up to this one."""
        epoch, sequence = at
        for number in range(self.known[1] + 1, sequence + 1) if self.credits else ():
            event = self.events[epoch, number]
            gone = [NUMBERS[name] for name in unpack_keys(event.evicted)]
            for credit in self.credits:
                credit.masks[gone] = 0
            if event.cleared:
                self.credits = []
        self.known = at

    def credit(self, span: slice, mask: int, until: float, told: np.ndarray) -> None:
        """What the pool has told to be in memory is no credit; of two sightings that end together, the later counts."""
        lacking = np.zeros(NUM_BLOCKS, np.uint8)
        lacking[span] = mask
        lacking &= ~told
        if lacking.any():
            ends_with = [credit for credit in self.credits if 0 <= until - credit.until < CREDIT_STEP_S]
            if not ends_with:
                ends_with.append(Credit(until))
                self.credits += ends_with
            ends_with[0].masks[lacking != 0] = lacking[lacking != 0]

    def credited(self, now: float) -> np.ndarray:
        self.credits = [credit for credit in self.credits if credit.until > now]
        masks: np.ndarray = np.bitwise_or.reduce([nothing()[0], *(credit.masks for credit in self.credits)])
        return masks


class IndexAgainstPools(RuleBasedStateMachine):
    """Pools that change, restart and answer snapshots; a bus that loses, repeats, delays and reorders their events.

    A holder that the index trusts is exactly what the pool was at the event that the index says it is at, plus what
    requests saw arrive; it never goes back in time; and a snapshot after everything has arrived makes it trusted.
    """

    @initialize()
    def start(self) -> None:
        self.index = PlacementIndex(LAYOUT)
        self.pools = [Pool(name) for name in POOLS]
        self.delivered: list[PlacementEvent] = []
        self.now = 0.0
        for which in range(len(self.pools)):
            self.everything_heals(which)

    @rule(
        which=WHICH,
        stored=st.lists(st.tuples(spans, GROUPS, MEMORY), max_size=3),
        evicted=st.none() | spans,
        cleared=st.integers(0, 9).map(lambda n: n == 0),
        at_once=MOSTLY,
    )
    def pool_changes(
        self, which: int, stored: list[tuple[slice, int, int]], evicted: slice | None, cleared: bool, at_once: bool
    ) -> None:
        self.pools[which].change(stored, evicted, cleared)
        while at_once and self.pools[which].on_the_way:
            self.deliver(which, 0)

    @rule(
        changes=st.lists(
            st.tuples(st.integers(0, 1), st.lists(st.tuples(spans, GROUPS, MEMORY), max_size=2), st.none() | spans),
            min_size=2,
            max_size=6,
        ),
        are_trusted=MOSTLY,
    )
    def pools_change_in_turn_while_nobody_asks(
        self, changes: list[tuple[int, list[tuple[slice, int, int]], slice | None]], are_trusted: bool
    ) -> None:
        """So that changes of several pools, and several of one block, wait and are made together."""
        for which in range(len(self.pools)) if are_trusted else ():
            self.everything_heals(which)
        for which, stored, evicted in changes:
            self.pools[which].change(stored, evicted, cleared=False)
            while self.pools[which].on_the_way:
                self.deliver(which, 0)

    @rule(which=WHICH)
    def pool_restarts(self, which: int) -> None:
        pool = self.pools[which]
        pool.epoch, pool.sequence, pool.content = pool.epoch + 1, 0, nothing()
        pool.history[pool.epoch, 0] = pool.content

    @rule(which=WHICH, position=st.integers(0, 2))
    def deliver(self, which: int, position: int) -> None:
        """Usually the oldest; another one is a gap, or an epoch overtaken by the next."""
        waiting = self.pools[which].on_the_way
        if waiting:
            self.delivered.append(waiting.pop(min(position, len(waiting) - 1)))
            self.apply(self.delivered[-1])

    @rule(which=WHICH)
    def lose(self, which: int) -> None:
        if self.pools[which].on_the_way:
            self.pools[which].on_the_way.pop(0)

    @rule(data=st.data())
    def repeat(self, data: st.DataObject) -> None:
        if self.delivered:
            self.apply(data.draw(st.sampled_from(self.delivered)))

    @rule(which=WHICH)
    def pool_beats_more_often_than_can_wait(self, which: int) -> None:
        if self.pools[which].name in self.index.stale():
            for _ in range(MAX_PENDING_EVENTS):
                self.pools[which].change([], None, cleared=False)
            while self.pools[which].on_the_way:
                self.deliver(which, 0)

    @rule(which=WHICH, age=st.integers(0, 2), arrives=MOSTLY, is_doubted=MOSTLY)
    def pool_is_asked(self, which: int, age: int, arrives: bool, is_doubted: bool) -> None:
        """It answers as it was some events ago: snapshots and events travel apart."""
        pool = self.pools[which]
        self.snapshot_has_arrived(which, breaks_off=True)
        if is_doubted:
            self.index.doubt(pool.name)
            pool.credits = []
        epoch, sequence = list(pool.history)[-1 - min(age, len(pool.history) - 1)]
        groups, memory = pool.history[epoch, sequence]
        intake = self.index.open_snapshot(pool.name)
        for state in np.unique(groups << 2 | memory).tolist():
            chosen = np.flatnonzero(groups << 2 | memory == state)
            if state:
                intake.add([StoredBlocks(b"".join(KEYS[number] for number in chosen), state >> 2, state & 3)])
        pool.arriving = (intake, epoch, sequence)
        if arrives:
            self.snapshot_has_arrived(which, breaks_off=False)

    @rule(which=WHICH, breaks_off=st.booleans())
    def snapshot_has_arrived(self, which: int, breaks_off: bool) -> None:
        pool = self.pools[which]
        if pool.arriving is not None:
            intake, epoch, sequence = pool.arriving
            if not breaks_off:
                self.index.finish_snapshot(intake, epoch, sequence)
            intake.close()
            pool.arriving = None

    @rule(
        which=WHICH,
        seen=st.lists(st.tuples(spans, GROUPS, TIMES), min_size=1, max_size=4),
        seconds=TIMES,
        is_trusted=MOSTLY,
        is_doubted=MOSTLY.map(lambda often: not often),
    )
    def requests_saw_blocks_arrive(
        self, which: int, seen: list[tuple[slice, int, float]], seconds: float, is_trusted: bool, is_doubted: bool
    ) -> None:
        if is_trusted:
            self.everything_heals(which)
            self.trusted_holders_are_true()
        pool = self.pools[which]
        state = self.index.certainty(self.now).get(pool.name)
        for span, mask, lifetime in seen:
            masks = np.full(len(KEYS[span]), mask, np.uint8)
            self.index.assume(pool.name, KEYS[span], masks, self.now + lifetime)
            if state is not None and not state.stale:
                told = pool.history[state.epoch, state.sequence][1]
                pool.credit(span, mask, self.now + lifetime, told)
        self.trusted_holders_are_true()
        if is_doubted:  # with the pool's content, its credits are void
            self.everything_heals(which)
        self.now += seconds

    @rule(seconds=TIMES)
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    @rule()
    def bus_is_reset(self) -> None:
        self.index.doubt_all()

    @rule(which=WHICH)
    def pool_is_forgotten(self, which: int) -> None:
        self.index.forget(self.pools[which].name)
        self.pools[which].known, self.pools[which].credits = (0, 0), []

    @rule(which=WHICH)
    def everything_heals(self, which: int) -> None:
        pool = self.pools[which]
        while pool.on_the_way:
            self.deliver(which, 0)
        self.pool_is_asked(which, age=0, arrives=True, is_doubted=True)
        state = self.index.certainty(self.now)[pool.name]
        assert (state.stale, state.epoch, state.sequence) == (False, pool.epoch, pool.sequence)

    @invariant()
    def trusted_holders_are_true(self) -> None:
        held, certainty = self.index.held(KEYS, self.now), self.index.certainty(self.now)
        for pool in self.pools:
            state = certainty.get(pool.name)
            if state is None or state.stale:
                assert pool.name not in held
                pool.credits = []
                continue
            at = (state.epoch, state.sequence)
            assert at >= pool.known
            pool.follow(at)
            content, credited = pool.history[at], pool.credited(self.now)
            seen = held[pool.name]
            assert (seen.groups == content[0] | credited).all()
            assert (seen.memory_groups == content[1] | credited).all()
            assert state.num_assumed == sum(np.count_nonzero(credit.masks) for credit in pool.credits)
            assert state.num_blocks == np.count_nonzero(content[0])

    def apply(self, event: PlacementEvent) -> None:
        self.index.apply(event, self.now)


@pytest.mark.parametrize("way", ["in C", "in NumPy"])
def test_index_against_pools(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert load_match() is not None, "no C compiler"
    if way == "in NumPy":
        monkeypatch.setattr(matching, "load_match", lambda: None)
    limits = settings(max_examples=20, stateful_step_count=40)
    run_state_machine_as_test(IndexAgainstPools, settings=limits)
