"""Pages to fetch into, and pools that answer as a test says."""

from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager

from shared.deadline import Deadline
from shared.engine.fetch import PageFetch
from shared.engine.stage import Arrival, HostStager, Stager
from shared.engine.thread import WorkThread
from shared.engine.transfer import PageTransfer, TransferMetrics
from shared.errors import PrfaasError
from shared.ids import BlockKey, Datacenter
from shared.kv.codec import Codec, Fidelity
from shared.kv.entries import BlockEntries, Source
from shared.kv.frame import Frame, seal
from shared.kv.layout import KvLayout, iter_layers
from shared.metrics import Metrics
from shared.pool.lanes.lane import Arrived
from shared.pool.memory import MemoryPool
from shared.pool.nodes import Publishing
from tests.support.entries import entry_bytes
from tests.support.tiny import tiny_model
from tests.support.waiting import LIMIT_S

NUM_BLOCKS, NUM_LAYERS, ALL = 4, 4, 0b1111
KEYS = [BlockKey(bytes([i + 1]) * 32) for i in range(NUM_BLOCKS)]
UNTOUCHED = b"\xff"
SOURCES = [Source(0, 3, Datacenter("east"), ("east:1",)), Source(2, 4, Datacenter("south"), ("south:1",))]
Entry = tuple[int, int]
"""A block and a layer."""


class ScriptedPool:
    """Answers each fetch with the next of its scripts: messages of frames, and an error that ends it."""

    address = "scripted"

    def __init__(self, *scripts: Iterable[list[Frame] | PrfaasError]) -> None:
        self._scripts = iter(scripts)
        self.asked: list[tuple[list[BlockEntries], list[Source], float]] = []

    async def fetch(
        self,
        layout: KvLayout,
        blocks: Sequence[BlockEntries],
        sources: Iterable[Source],
        wait_s: float,
        deadline: Deadline,
        *,
        doubted: bool = False,
    ) -> AsyncGenerator[Arrived, None]:
        self.asked.append((list(blocks), list(sources), wait_s))
        for event in next(self._scripts):
            if isinstance(event, PrfaasError):
                raise event
            yield Arrived(event, [])

    def publish(self, deadline: Deadline) -> AbstractAsyncContextManager[Publishing]:
        raise AssertionError("fetching does not publish")


class FetchBench:
    """Pages for a few blocks, full of bytes that no entry has, and who fetches into them."""

    def __init__(self, copier: WorkThread, stager: Stager) -> None:
        kv = tiny_model("llama", num_pages=NUM_BLOCKS).kv
        reservation = kv.reserve([], NUM_BLOCKS * 64)
        assert reservation is not None
        self.kv, self.layout, self.reservation = kv, kv.layout, reservation
        self._metrics = Metrics()
        self._transfer = PageTransfer(kv, copier, TransferMetrics(self._metrics), stager)
        self.num_woken = 0
        for layer in range(NUM_LAYERS):
            raw = UNTOUCHED * self.layout.entry_bytes(layer)
            blocks = kv.blocks_of(layer)
            HostStager().land([Arrival(raw, blocks, kv.block_number(layer, reservation, b)) for b in range(NUM_BLOCKS)])

    def fetch(self, wanted: Mapping[int, int], at_least: Fidelity = Fidelity.LOSSLESS) -> PageFetch:
        return PageFetch(self._transfer, self.reservation, KEYS, wanted, self._woken, at_least)

    def frame(self, block: int, layer: int, codec: Codec = Codec.RAW) -> Frame:
        shape = self.layout.entry_shape(layer)
        return seal(KEYS[block], layer, bytes([block + 1, layer]) * (shape.num_bytes // 2), codec, shape)

    def landed(self) -> set[Entry]:
        """Return the entries whose pages hold what was sealed; all other pages are as they were."""
        held = {
            (block, layer): entry_bytes(self.kv.block(layer, self.reservation, block))
            for block in range(NUM_BLOCKS)
            for layer in range(NUM_LAYERS)
        }
        new = {entry for entry, raw in held.items() if raw != UNTOUCHED * len(raw)}
        assert all(held[entry] == self.frame(*entry).payload for entry in new)
        return new

    def counted(self) -> tuple[float, float, float]:
        """Return how many entries have landed, were corrupt, and were missing in the end."""
        names = ("fetched", "corrupt", "missing")
        landed, corrupt, missing = (
            self._metrics.registry.get_sample_value(f"prfaas:{name}_entries_total") or 0.0 for name in names
        )
        return landed, corrupt, missing

    @property
    def landing_bytes_per_s(self) -> float:
        return self._transfer.landing.per_s

    async def publish(self, pool: MemoryPool, entries: Iterable[Entry]) -> None:
        entries = list(entries)
        async with pool.publish(soon()) as publication:
            await publication.open(self.layout, [BlockEntries(KEYS[block], 1 << layer) for block, layer in entries])
            await publication.send([self.frame(*entry) for entry in entries])

    def _woken(self) -> None:
        self.num_woken += 1


def soon() -> Deadline:
    return Deadline.after(2 * LIMIT_S)


def of(wanted: Mapping[int, int]) -> set[Entry]:
    return {(block, layer) for block, layers in wanted.items() for layer in iter_layers(layers)}


@asynccontextmanager
async def fetch_bench(stager: Stager) -> AsyncIterator[FetchBench]:
    copier = WorkThread("copier")
    try:
        yield FetchBench(copier, stager)
    finally:
        copier.close()
