"""A datacenter's pool: the real store, its eviction and its placement events; payloads share their bytes."""

from collections.abc import Iterable, Sequence

from services.cachepool.placement import PlacementLog
from services.cachepool.store.block import whole_charge
from services.cachepool.store.store import Store
from shared.bus.events import PlacementEvent
from shared.ids import BlockKey, Datacenter, Epoch, WorkerId
from shared.kv.codec import Codec, Fidelity, Payload
from shared.kv.entries import BlockEntries
from shared.kv.frame import Frame
from shared.kv.layout import KvLayout
from shared.lanes.slots import SlotMemory
from simulator.events import EventLoop


class NotCopied(SlotMemory):
    """Keeps what it is given: payloads are the same bytes again and again, and pools of any size cost only records."""

    def __init__(self) -> None:
        super().__init__(0, shared=False)
        self._views: dict[int, memoryview] = {}

    def keep_all(self, payloads: Iterable[Payload]) -> list[memoryview | None]:
        return [self._view(payload) for payload in payloads]

    def free_all(self, views: Iterable[Payload]) -> None:
        pass

    def _view(self, payload: Payload) -> memoryview:
        view = self._views.get(id(payload))
        if view is None:
            view = self._views[id(payload)] = memoryview(payload)
        return view


class SimulatedPool:
    """Blocks of one node, each an entry for every layer. A block is stored whole or not at all."""

    def __init__(self, name: str, dc: str, layout: KvLayout, num_blocks: int, loop: EventLoop) -> None:
        self.worker = WorkerId(name)
        self.address = f"{name}:1"
        self.layout = layout
        self._loop = loop
        self.store = Store(num_blocks * whole_charge(layout), lambda: loop.now_s, memory=NotCopied())
        self.log = PlacementLog(self.worker, Datacenter(dc), Epoch(1))
        self.store.listen(on_groups=lambda key, groups: self.log.note(key, groups, groups))
        self._room = num_blocks
        self._payloads = [bytes(layout.entry_bytes(layer)) for layer in range(layout.num_layers)]

    def events(self) -> list[PlacementEvent]:
        """Return what has changed since the last call."""
        return self.log.take() if self.log.num_pending else []

    def num_leading(self, keys: Sequence[BlockKey]) -> int:
        """Return how many blocks from the first on are here."""
        lookup, whole = self.store.lookup, self.layout.all_layers
        for index, key in enumerate(keys):
            if lookup(key) != whole:
                return index
        return len(keys)

    def put(self, keys: Sequence[BlockKey]) -> None:
        """Store a chain; what is here already counts as used. What does not fit is not stored."""
        if not self._room or not keys:
            return
        whole = self.layout.all_layers
        writer = self.store.open_writer()
        grants = self.store.grant(writer, self.layout, [BlockEntries(key, whole) for key in keys])
        frames = [
            Frame(key, layer, Codec.RAW, Fidelity.LOSSLESS, len(payload), payload, 0)
            for key, grant in zip(keys, grants, strict=True)
            for layer, payload in enumerate(self._payloads)
            if grant.granted >> layer & 1
        ]
        if frames:
            self.store.put_all(writer, frames)
        self.store.abandon(writer)

    def use(self, keys: Sequence[BlockKey]) -> None:
        """Count a request that reads a chain."""
        if keys and self._room:
            whole = self.layout.all_layers
            wanted = [BlockEntries(key, whole) for key in keys]
            self.store.close(self.store.subscribe(self.layout, wanted, 0.0, lambda: None))
