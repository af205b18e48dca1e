"""The real placement index, kept by what pools say: a snapshot at the beginning, then their events, late."""

from services.gateway.placement.index import PlacementIndex
from services.gateway.placement.table.table import PairTable
from shared.bus.events import PlacementEvent
from shared.kv.layout import KvLayout
from simulator.caches.pool import SimulatedPool
from simulator.events import EventLoop

PART_BLOCKS = 65_536


class SharedPlacements:
    """One index stands for those of all gateways, which hear the same events at the same time."""

    def __init__(self, layout: KvLayout, loop: EventLoop) -> None:
        self.index = PlacementIndex(layout)
        self._loop = loop

    def meet(self, pool: SimulatedPool) -> None:
        """Take a pool's snapshot: from now on its events can be followed."""
        pool.events()  # what it has stored until now is in the snapshot
        snapshot = pool.log.snapshot()
        self.index.doubt(pool.worker)
        incoming = self.index.open_snapshot(pool.worker)
        for part in snapshot.parts(PART_BLOCKS):
            incoming.add(part)
            self._make_room()
        self.index.finish_snapshot(incoming, snapshot.epoch, snapshot.sequence)

    def apply(self, event: PlacementEvent) -> None:
        self.index.apply(event, self._loop.now_s)
        self._make_room()

    def _make_room(self) -> None:
        if self.index.room_wanted is not None:
            self.index.take_room(PairTable(self.index.room_wanted))
