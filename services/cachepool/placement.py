"""Tells the world what the pool holds: numbered events, and a snapshot that is true at one of the numbers."""

import asyncio
from collections.abc import Callable
from typing import NamedTuple

from shared.bus.events import PlacementEvent
from shared.ids import BlockKey, Datacenter, Epoch, WorkerId

MAX_EVENT_BLOCKS = 500
COALESCE_S = 0.02


class PlacementSnapshot(NamedTuple):
    epoch: Epoch
    sequence: int  # of the last event whose effect is included
    stored: list[tuple[BlockKey, int]]  # (key, mask of the layer groups held wholly)


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
        self._announced: dict[BlockKey, int] = {}
        self._pending: dict[BlockKey, int] = {}

    @property
    def num_pending(self) -> int:
        return len(self._pending)

    def note(self, key: BlockKey, groups: int) -> None:
        """Record that the pool now holds exactly these layer groups of a block wholly; 0: none."""
        self._pending[key] = groups

    def cleared(self) -> PlacementEvent:
        """Return the event that starts an epoch: whatever an earlier life of this pool held is gone."""
        return self._event({}, cleared=True)

    def beat(self) -> PlacementEvent:
        """Return an event without changes: its number shows a listener whether it has missed any."""
        return self._event({})

    def take(self) -> list[PlacementEvent]:
        """Return what has changed since the last call, as events of at most `MAX_EVENT_BLOCKS` blocks."""
        changes = {key: groups for key, groups in self._pending.items() if groups != self._announced.get(key, 0)}
        self._pending.clear()
        items = list(changes.items())
        return [
            self._event(dict(items[start : start + MAX_EVENT_BLOCKS]))
            for start in range(0, len(items), MAX_EVENT_BLOCKS)
        ]

    def snapshot(self) -> PlacementSnapshot:
        return PlacementSnapshot(self.epoch, self.sequence, list(self._announced.items()))

    def _event(self, changes: dict[BlockKey, int], *, cleared: bool = False) -> PlacementEvent:
        self.sequence += 1
        for key, groups in changes.items():
            if groups:
                self._announced[key] = groups
            else:
                self._announced.pop(key, None)
        return PlacementEvent(
            holder=self._holder,
            dc=self._dc,
            epoch=self.epoch,
            sequence=self.sequence,
            stored=tuple((key, groups) for key, groups in changes.items() if groups),
            evicted=tuple(key for key, groups in changes.items() if not groups),
            cleared=cleared,
        )


class PlacementFeed:
    """Publishes a log's events: changes within `COALESCE_S` share one, and a quiet pool still shows its number."""

    def __init__(self, log: PlacementLog, publish: Callable[[PlacementEvent], None], heartbeat_s: float) -> None:
        self._log = log
        self._publish = publish
        self._heartbeat_s = heartbeat_s
        self._changed = asyncio.Event()
        self._full = asyncio.Event()

    def note(self, key: BlockKey, groups: int) -> None:
        """The store's `on_groups`."""
        self._log.note(key, groups)
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
            for event in self._log.take():
                self._publish(event)


async def _set_within(event: asyncio.Event, limit_s: float) -> bool:
    try:
        async with asyncio.timeout(limit_s):
            await event.wait()
    except TimeoutError:
        return False
    return True
