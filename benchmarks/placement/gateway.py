"""A gateway's registry, index and feed, without the rest of it, and events as records of the bus."""

from collections import Counter
from collections.abc import Iterable

from services.gateway.cluster.feed import DECODE_CONDITION, Feed
from services.gateway.cluster.registry import Registry
from services.gateway.placement.index import PlacementIndex
from shared.bus.events import TOPIC_MEMBERSHIP, TOPIC_PLACEMENT, MembershipEvent, PlacementEvent, StoredBlocks
from shared.bus.kafka import Record
from shared.ids import Datacenter, Epoch, LayoutHash, ModelFingerprint, WorkerId
from shared.kv.layout import KvLayout, LayerSpec
from shared.rpc.client import Channels
from shared.service.health import Health

LAYOUT = KvLayout(tuple(LayerSpec(None if i % 6 == 5 else 512, 1, 256) for i in range(18)), "bfloat16")
"""Gemma 3 270M's: 3 full layers and 15 with a window."""

FULL, WINDOW = 0b10, 0b01
ALL = FULL | WINDOW
WHOLE, ON_DISK, PARTIAL = (ALL, ALL), (ALL, 0), (FULL, FULL)  # groups in any tier, in memory


class Gateway:
    """What turns records of the bus into placements: `Feed.take` and all that it calls."""

    def __init__(self, channels: Channels) -> None:
        self.index = PlacementIndex(LAYOUT)
        registry = Registry(ModelFingerprint("bench"), LayoutHash("bench"))
        self.feed = Feed(self.index, registry, channels, Health(DECODE_CONDITION))
        self._sequences: Counter[WorkerId] = Counter()
        self._offset = 0

    def meet(self, holder: WorkerId) -> None:
        """Let a holder be trusted from an empty snapshot on."""
        self.index.doubt(holder)
        intake = self.index.open_snapshot(holder)
        self.index.finish_snapshot(intake, 1, 0)
        intake.close()

    def placed(self, holder: WorkerId, stored: Iterable[StoredBlocks] = (), evicted: bytes = b"") -> Record:
        """Return the next event of a holder as the bus hands it over."""
        self._sequences[holder] += 1
        event = PlacementEvent(
            holder=holder,
            dc=Datacenter("east"),
            epoch=Epoch(1),
            sequence=self._sequences[holder],
            stored=tuple(stored),
            evicted=evicted,
        )
        return self._record(TOPIC_PLACEMENT, event.encode())

    def announced(self, holder: WorkerId, address: str) -> Record:
        event = MembershipEvent(
            worker=holder,
            role="cachepool",
            dc=Datacenter("east"),
            address=address,
            epoch=Epoch(1),
            pool_address=address,
        )
        return self._record(TOPIC_MEMBERSHIP, event.encode())

    def _record(self, topic: str, value: bytes) -> Record:
        self._offset += 1
        return Record(topic, 0, self._offset, 0, "bench", value, ())


def runs(keys: bytes) -> tuple[StoredBlocks, ...]:
    """Split packed keys as a pool with a working set does: most whole and in memory, some not."""
    num_blocks = len(keys) // 32
    cuts = (0, num_blocks * 8 // 10 * 32, num_blocks * 9 // 10 * 32, num_blocks * 32)
    parts = zip((WHOLE, ON_DISK, PARTIAL), cuts, cuts[1:], strict=False)
    return tuple(StoredBlocks(keys[start:end], *state) for state, start, end in parts if end > start)
