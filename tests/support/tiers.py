"""The parts of an object tier over a store in memory that fails as told, on a manual clock; nothing runs by itself."""

from collections.abc import Sequence
from pathlib import Path

from services.cachepool.store.sources import SourcedReader
from services.cachepool.tiers.breaker import Breaker
from services.cachepool.tiers.bucket import Bucket
from services.cachepool.tiers.context import TierContext
from services.cachepool.tiers.index import ObjectIndex, Stored
from services.cachepool.tiers.metrics import TierMetrics
from services.cachepool.tiers.objects import ObjectHeader, object_path, pack
from services.cachepool.tiers.reader import Reader
from services.cachepool.tiers.reads import ReadThrough
from services.cachepool.tiers.recovery import Recovery
from services.cachepool.tiers.room import Room
from services.cachepool.tiers.writes import WriteBehind, WriteLimits
from shared.ids import BlockKey
from shared.kv.frame import Frame
from shared.kv.layout import KvLayout
from shared.metrics import Metrics
from tests.support.objects import FaultyClient
from tests.support.samples import LAYOUT, SamplePool, frame
from tests.support.waiting import LIMIT_S


class SampleTier:
    """A pool's memory of `num_blocks` blocks, and behind it objects of `budget_bytes` bytes (0: any number)."""

    def __init__(
        self,
        num_blocks: float = 100,
        budget_bytes: int = 0,
        layout: KvLayout = LAYOUT,
        call_limit_s: float = LIMIT_S,
        read_limit_s: float = LIMIT_S,
        max_reads: int = 8,
        write_limits: WriteLimits = WriteLimits(max_waiting=100, max_writes=1),  # noqa: B008 - frozen
        folder: Path | None = None,
    ) -> None:
        self.pool = SamplePool(num_blocks, layout)
        self.store, self.clock = self.pool.store, self.pool.clock
        self.client = FaultyClient()
        self.index = ObjectIndex(budget_bytes, self.clock)
        self.breaker = Breaker(self.clock)
        self._metrics = Metrics()
        metrics = TierMetrics(self._metrics)
        bucket = Bucket(self.client, call_limit_s, metrics.on_call)
        context = TierContext(bucket, self.index, self.breaker, metrics, self.clock)
        self.room = Room(bucket, self.index, metrics, self.clock)
        self.recovery = Recovery(context, self.room, folder)
        self.reader = Reader(context, self.recovery, max_reads, self.clock)
        self.reads = ReadThrough(context, self.store, self.reader, read_limit_s)
        self.writes = WriteBehind(context, self.store, self.room, self.reader, self.recovery, write_limits)

    def count(self, name: str, **labels: str) -> float:
        return self._metrics.registry.get_sample_value(f"prfaas:{name}", labels) or 0.0

    def put(self, key: BlockKey, frames: Sequence[Frame] | None = None, layout: KvLayout = LAYOUT) -> ObjectHeader:
        """Lay an object into the store, whole by default, as an earlier life would have: nobody here knows of it."""
        if frames is None:
            frames = [frame(key, layer, layout) for layer in range(layout.num_layers)]
        header = pack(key, None, layout, frames)
        self.client.replace(object_path(key), header.raw + b"".join(bytes(frame.payload) for frame in frames))
        return header

    def add(self, *keys: BlockKey, layout: KvLayout = LAYOUT) -> None:
        """Lay whole objects into the store, a second between two, and record them."""
        for key in keys:
            self.clock.advance(1.0)
            self.index.add(Stored.of(self.put(key, layout=layout), self.clock()))

    def sourced(self, *keys: BlockKey, wait_s: float = 1.0) -> SourcedReader:
        """A reader of whole blocks that names no peers."""
        return SourcedReader(self.pool.reader(*keys, wait_s=wait_s), self.pool.layout, [], wait_s)
