"""Tells the world what the pool holds: numbered events, and a snapshot that is true at one of the numbers."""

import asyncio
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import islice
from typing import NamedTuple

from shared.bus.events import PlacementEvent, StoredBlocks
from shared.ids import BlockKey, Datacenter, Epoch, WorkerId
from shared.telemetry.spans import NO_SPAN, current_span, entered

MAX_EVENT_BLOCKS = 4096
"""Blocks of one event: 128 KiB of keys, an eighth of what a broker takes in one message."""

COALESCE_S = 0.02
PAUSE_S = 0.08
"""After an event, when things go on changing: each costs the pool and the broker as much as storing some MiB."""


class BlockState(NamedTuple):
    """Which layer groups of a block a pool holds wholly, as bitmasks."""

    groups: int  # in any tier
    memory_groups: int  # of these, the ones in memory


ABSENT = BlockState(0, 0)


class PlacementSnapshot(NamedTuple):
    epoch: Epoch
    sequence: int  # of the last event whose effect is included
    states: Mapping[BlockKey, BlockState]  # a copy: it stays true at `sequence`

    def parts(self, num_blocks: int) -> Iterator[tuple[StoredBlocks, ...]]:
        """Yield the content, about `num_blocks` blocks at a time; at least one part, be it empty."""
        items = iter(self.states.items())
        yield _packed(islice(items, num_blocks))
        while part := _packed(islice(items, num_blocks)):
            yield part


class PlacementLog:
    """Turns changes of the store into events. Pure.

    Always: the snapshot is what a listener knows who has applied every event up to its sequence number. Changes of one
    block between two `take` calls are one change, so what waits here is bounded by the blocks of the store.
    """

    def __init__(self, holder: WorkerId, dc: Datacenter, epoch: Epoch) -> None:
        self.epoch = epoch
        self.sequence = 0
        self._holder = holder
        self._dc = dc
        self._announced: dict[BlockKey, BlockState] = {}
        self._pending: dict[BlockKey, BlockState] = {}
        self._states: dict[BlockState, BlockState] = {}  # one object for each value: millions of blocks share a few

    @property
    def num_pending(self) -> int:
        return len(self._pending)

    def note(self, key: BlockKey, groups: int, memory_groups: int) -> None:
        """Record that the pool now holds exactly these layer groups of a block wholly, in any tier and in memory."""
        state = BlockState(groups, memory_groups & groups)
        self._pending[key] = self._states.setdefault(state, state)

    def cleared(self) -> PlacementEvent:
        """Return the event that starts an epoch: whatever an earlier life of this pool held is gone."""
        return self._event({}, cleared=True)

    def beat(self) -> PlacementEvent:
        """Return an event without changes: its number shows a listener whether it has missed any."""
        return self._event({})

    def take(self) -> list[PlacementEvent]:
        """Return what has changed since the last call, as events of at most `MAX_EVENT_BLOCKS` blocks."""
        changes = {key: state for key, state in self._pending.items() if state != self._announced.get(key, ABSENT)}
        self._pending.clear()
        items = list(changes.items())
        return [
            self._event(dict(items[start : start + MAX_EVENT_BLOCKS]))
            for start in range(0, len(items), MAX_EVENT_BLOCKS)
        ]

    def snapshot(self) -> PlacementSnapshot:
        return PlacementSnapshot(self.epoch, self.sequence, self._announced.copy())

    def _event(self, changes: dict[BlockKey, BlockState], *, cleared: bool = False) -> PlacementEvent:
        self.sequence += 1
        for key, state in changes.items():
            if state.groups:
                self._announced[key] = state
            else:
                self._announced.pop(key, None)
        return PlacementEvent(
            holder=self._holder,
            dc=self._dc,
            epoch=self.epoch,
            sequence=self.sequence,
            stored=_packed((key, state) for key, state in changes.items() if state.groups),
            evicted=b"".join(key for key, state in changes.items() if not state.groups),
            cleared=cleared,
        )


def _packed(blocks: Iterable[tuple[BlockKey, BlockState]]) -> tuple[StoredBlocks, ...]:
    by_state: dict[BlockState, list[BlockKey]] = {}
    for key, state in blocks:
        by_state.setdefault(state, []).append(key)
    return tuple(StoredBlocks(b"".join(keys), *state) for state, keys in by_state.items())


class PlacementFeed:
    """Publishes a log's events: changes that are close share one, and a quiet pool still shows its number."""

    def __init__(self, log: PlacementLog, publish: Callable[[PlacementEvent], None], heartbeat_s: float) -> None:
        self._log = log
        self._publish = publish
        self._heartbeat_s = heartbeat_s
        self._changed = asyncio.Event()
        self._full = asyncio.Event()
        self._span = NO_SPAN  # in which the first of the changes was made that no event tells of yet

    def note(self, key: BlockKey, groups: int, memory_groups: int) -> None:
        """See `PlacementLog.note`; the event follows within `COALESCE_S`, soon after another within `PAUSE_S` more."""
        self._log.note(key, groups, memory_groups)
        if self._span is NO_SPAN:
            self._span = current_span()
        self._changed.set()
        if self._log.num_pending >= MAX_EVENT_BLOCKS:
            self._full.set()

    async def run(self) -> None:
        self._publish(self._log.cleared())
        while True:
            if not await _set_within(self._changed, self._heartbeat_s):
                self._publish(self._log.beat())
                continue
            await _set_within(self._full, COALESCE_S)
            self._changed.clear()
            self._full.clear()
            span, self._span = self._span, NO_SPAN
            with entered(span):
                for event in self._log.take():
                    self._publish(event)
            await _set_within(self._full, PAUSE_S)


async def _set_within(event: asyncio.Event, limit_s: float) -> bool:
    try:
        async with asyncio.timeout(limit_s):
            await event.wait()
    except TimeoutError:
        return False
    return True
