"""One pool's events in their order: which is next, which are missing, which wait for a snapshot. Pure."""

from collections import deque
from dataclasses import dataclass, field
from typing import NamedTuple

from shared.bus.events import PlacementEvent

MAX_PENDING_EVENTS = 4096
MAX_PENDING_BLOCKS = 1 << 18
"""What is kept while a snapshot is on its way: 8 MiB of keys, applied in one go. Losing the oldest events only costs
another snapshot: the gap is noticed."""


class AssumedBlocks(NamedTuple):
    """Blocks that requests saw arrive, ahead of the pool's own event."""

    owner: int
    until: float


@dataclass(slots=True, eq=False)
class Holder:
    """What is known of one life of a pool. While `stale` it earns no credit and its events wait for a snapshot.

    Its blocks are those of `owner` and of `credits`, in the index's table; a stale holder has neither.
    """

    number: int  # in the table
    epoch: int
    sequence: int = 0
    stale: bool = True
    owner: int | None = None
    credits: list[AssumedBlocks] = field(default_factory=list)
    heard_at: float | None = None  # arrival of its last event
    _pending: deque[PlacementEvent] = field(default_factory=deque)
    _num_pending_blocks: int = 0

    def doubt(self) -> None:
        self.stale = True
        self._pending.clear()
        self._num_pending_blocks = 0

    def wait(self, event: PlacementEvent) -> None:
        """Keep an event until the snapshot is there."""
        self._pending.append(event)
        self._num_pending_blocks += event.num_blocks
        while len(self._pending) > MAX_PENDING_EVENTS or self._num_pending_blocks > MAX_PENDING_BLOCKS:
            self._num_pending_blocks -= self._pending.popleft().num_blocks

    def trust(self, sequence: int) -> list[PlacementEvent]:
        """Be true at `sequence`. Returns the events that came meanwhile: they are to be taken next."""
        waiting = list(self._pending)
        self.doubt()
        self.sequence, self.stale = sequence, False
        return waiting

    def accept(self, event: PlacementEvent) -> bool:
        """Return whether the event is the next one, and count it. When one is missing, become stale and keep it."""
        if self.stale or event.sequence > self.sequence + 1:
            if not self.stale:
                self.doubt()
            self.wait(event)
            return False
        if event.sequence <= self.sequence:
            return False  # delivered twice, or already part of the snapshot
        self.sequence = event.sequence
        return True
