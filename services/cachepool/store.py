"""The pool's state: entries by (block, layer), who writes them, who waits for them, what fits the budget. No I/O."""

from collections.abc import Callable, Sequence
from typing import NamedTuple
from weakref import WeakValueDictionary

from services.cachepool.block import BLOCK_OVERHEAD_BYTES, Block, Writer, entry_charge
from services.cachepool.eviction import LeastRecentlyUsed
from services.cachepool.memory import PayloadMemory
from services.cachepool.subscription import Subscription
from shared.errors import BadRequest, CorruptFrame, Overloaded
from shared.ids import BlockKey, LayoutHash
from shared.kv.codec import Codec
from shared.kv.entries import BlockEntries
from shared.kv.frame import Frame
from shared.kv.layout import KvLayout


class Grant(NamedTuple):
    """What a writer was told about one block. What is in neither mask is being written by somebody else."""

    granted: int  # layer bitmask: the writer's to fill
    present: int  # layer bitmask: stored already


class StoreStats(NamedTuple):
    num_blocks: int  # with at least one entry
    num_entries: int
    used_bytes: int  # payload and overhead, as the budget counts them
    num_leases: int  # blocks held by readers, counted once for each reader
    num_readers: int
    num_writers: int
    num_evicted: int  # blocks, since the start


class Held(NamedTuple):
    """What a held block had when it was taken hold of."""

    layout: KvLayout
    parent: BlockKey | None  # the block before it, as far as requests have told
    layers: int  # bitmask
    charge: int  # bytes that it takes from the budget
    frames: list[Frame]


class Store:
    """Owns every block and every decision about it; belongs to one event loop and never waits.

    Always: `used_bytes <= budget_bytes`; an entry has at most one writer, and the first one wins; a block that a reader
    or a writer holds is not evicted, nor is the predecessor of a block that is still here.

    Requests list blocks in chain order, which is how the store learns what precedes what. A block with no layers
    only tells its place in the chain.
    """

    def __init__(
        self,
        budget_bytes: int,
        clock: Callable[[], float],
        on_groups: Callable[[BlockKey, int], None] = lambda _key, _groups: None,
        on_settled: Callable[[BlockKey], None] = lambda _key: None,
    ) -> None:
        """`on_groups(key, mask)` is told each change of the layer groups that a block wholly holds; 0 when evicted.

        `on_settled(key)` is told when a block has entries and, after a change, no writer. Neither may call back what
        changes the store.
        """
        self.budget_bytes = budget_bytes
        self.used_bytes = 0
        self.memory = PayloadMemory()  # where frames put what they bring; what is evicted goes back to it
        self.clock = clock
        self._on_groups = on_groups
        self._on_settled = on_settled
        self._blocks: dict[BlockKey, Block] = {}
        self._lru = LeastRecentlyUsed()
        self._layouts: WeakValueDictionary[LayoutHash, KvLayout] = WeakValueDictionary()
        self._num_created = 0
        self._num_stored = 0
        self._num_entries = 0
        self._num_leases = 0
        self._num_readers = 0
        self._num_writers = 0
        self._num_evicted = 0

    @property
    def stats(self) -> StoreStats:
        return StoreStats(
            self._num_stored,
            self._num_entries,
            self.used_bytes,
            self._num_leases,
            self._num_readers,
            self._num_writers,
            self._num_evicted,
        )

    def lookup(self, key: BlockKey) -> int:
        """Return the layers of a block that are present, as a bitmask. Not a use: the LRU order stays."""
        block = self._blocks.get(key)
        return block.present if block else 0

    def groups(self, key: BlockKey) -> int:
        """Return the layer groups that a block holds wholly, as a bitmask."""
        block = self._blocks.get(key)
        return block.groups if block else 0

    def hold(self, key: BlockKey) -> Held | None:
        """Keep a block from eviction until `let_go`, and return what it has; None when it has nothing. Not a use."""
        block = self._blocks.get(key)
        if block is None or not block.present:
            return None
        block.is_held = True
        frames = [frame for frame in block.frames if frame is not None]
        parent = block.parent.key if block.parent else None
        return Held(block.layout, parent, block.present, block.charge, frames)

    def let_go(self, key: BlockKey) -> None:
        """End `hold`."""
        block = self._blocks[key]
        block.is_held = False
        self._settle(block)

    # Writers

    def open_writer(self) -> Writer:
        self._num_writers += 1
        return Writer()

    def grant(self, writer: Writer, layout: KvLayout, blocks: Sequence[BlockEntries]) -> list[Grant]:
        """Give the writer those of the entries that nobody holds or writes. Raises `BadRequest` and grants nothing."""
        assert writer.is_open, "a closed writer asks for grants"
        grants = []
        chain = self._chain(layout, blocks)
        for block, asked in zip(chain, blocks, strict=True):
            layers = asked.layers & ~block.present & ~block.filling
            if layers:
                block.filling |= layers
                writer.granted[block] = writer.granted.get(block, 0) | layers
                for reader, index in block.readers.items():
                    reader.on_granted(index, layers)
            grants.append(Grant(layers, asked.layers & block.present))
        self._used(chain)
        return grants

    def put(self, writer: Writer, frame: Frame) -> None:
        """Store a verified frame and hand it to its readers. The grant of the entry ends, whether it is stored or not.

        Raises `BadRequest` when the writer holds no grant for it, `CorruptFrame` when it cannot be this layer's KV,
        `Overloaded` when it does not fit because readers and writers hold all there is.
        """
        block, bit = self._blocks.get(frame.key), 1 << frame.layer
        if block is None or not writer.granted.get(block, 0) & bit:
            raise BadRequest(f"block {frame.key.hex()[:12]} layer {frame.layer} was not granted to this writer")
        if frame.raw_bytes != block.layout.entry_bytes(frame.layer) or (
            frame.codec is Codec.RAW and len(frame.payload) != frame.raw_bytes
        ):
            raise CorruptFrame(f"{frame.raw_bytes} bytes in layer {frame.layer} are not what the KV layout says")
        charge = entry_charge(frame) + (0 if block.present else BLOCK_OVERHEAD_BYTES)
        try:
            self._make_room(charge)
        except Overloaded:
            self._release(writer, block, bit, self.clock())
            raise
        self._end_grant(writer, block, bit)
        self._insert(block, frame, charge)
        for reader, index in block.readers.items():
            reader.on_present(index, bit)
        if not block.filling:
            self._on_settled(block.key)
        self._settle(block)

    def release(self, writer: Writer, entries: BlockEntries, since: float) -> None:
        """Take grants back from a writer that will not fill them. Its readers' patience counts from `since`."""
        block = self._blocks.get(entries.key)
        layers = writer.granted.get(block, 0) & entries.layers if block else 0
        if block and layers:
            self._release(writer, block, layers, since)

    def abandon(self, writer: Writer) -> int:
        """Close a writer and return how many of its grants were still unfilled; idempotent.

        Those entries are absent again. Their readers wait on for a next writer, counted from now.
        """
        if not writer.is_open:
            return 0
        writer.is_open = False
        self._num_writers -= 1
        now = self.clock()
        num_unfilled = sum(layers.bit_count() for layers in writer.granted.values())
        for block, layers in list(writer.granted.items()):
            self._release(writer, block, layers, now)
        return num_unfilled

    def is_awaited(self, writer: Writer) -> bool:
        """Return whether any reader wants any entry that this writer has still to fill."""
        return any(
            reader.wants(index) & layers
            for block, layers in writer.granted.items()
            for reader, index in block.readers.items()
        )

    # Readers

    def subscribe(
        self, layout: KvLayout, blocks: Sequence[BlockEntries], wait_s: float, notify: Callable[[], None]
    ) -> Subscription:
        """Take a lease on the blocks for a reader, until `close`. Raises `BadRequest` and takes nothing."""
        chain = self._chain(layout, blocks)
        reader = Subscription(chain, [asked.layers for asked in blocks], wait_s, notify)
        now = self.clock()
        for index, block in enumerate(chain):
            block.readers[reader] = index
            wanted = blocks[index].layers
            reader.on_orphaned(index, wanted & ~block.present & ~block.filling, now)
        self._num_readers += 1
        self._num_leases += len(chain)
        self._used(chain)
        return reader

    def close(self, reader: Subscription) -> None:
        """End a reader's lease; idempotent."""
        if not reader.is_open:
            return
        reader.is_open = False
        self._num_readers -= 1
        self._num_leases -= len(reader.blocks)
        for block in reader.blocks:
            del block.readers[reader]
        self._used(reader.blocks)

    # Blocks

    def _chain(self, layout: KvLayout, blocks: Sequence[BlockEntries]) -> list[Block]:
        """Return the records of a request's blocks, linked in chain order; new ones for what is not there.

        Whoever calls this holds or settles every record before it returns.
        """
        layout = self._layouts.setdefault(layout.hash, layout)
        self._check(layout, blocks)
        chain: list[Block] = []
        previous: Block | None = None
        for key, _ in blocks:
            block = self._blocks.get(key)
            if block is None:
                self._num_created += 1
                block = self._blocks[key] = Block(key, layout, self._num_created)
            if previous is not None and block.parent is None and previous.serial < block.serial:
                block.parent = previous
                previous.num_children += 1
            chain.append(block)
            previous = block
        return chain

    def _check(self, layout: KvLayout, blocks: Sequence[BlockEntries]) -> None:
        if len({key for key, _ in blocks}) != len(blocks):
            raise BadRequest("a request names a block twice")
        for key, layers in blocks:
            if layers & ~layout.all_layers:
                raise BadRequest(f"block {key.hex()[:12]}: the KV layout has {layout.num_layers} layers")
            block = self._blocks.get(key)
            if block is not None and block.layout is not layout:
                raise BadRequest(f"block {key.hex()[:12]} is known here with another KV layout")

    def _used(self, chain: Sequence[Block]) -> None:
        """Make a chain's blocks the most recently used, its head last, so that it would be evicted from its tail."""
        for block in reversed(chain):
            self._lru.touch(block)
            self._settle(block)

    def _insert(self, block: Block, frame: Frame, charge: int) -> None:
        if not block.present:
            block.frames = [None] * block.layout.num_layers
            self._num_stored += 1
        block.frames[frame.layer] = frame
        block.present |= 1 << frame.layer
        block.charge += charge
        self.used_bytes += charge
        self._num_entries += 1
        groups = block.layout.group_mask(block.present)
        if groups != block.groups:
            block.groups = groups
            self._on_groups(block.key, groups)

    def _end_grant(self, writer: Writer, block: Block, layers: int) -> None:
        block.filling &= ~layers
        left = writer.granted[block] & ~layers
        if left:
            writer.granted[block] = left
        else:
            del writer.granted[block]

    def _release(self, writer: Writer, block: Block, layers: int, since: float) -> None:
        self._end_grant(writer, block, layers)
        for reader, index in block.readers.items():
            reader.on_orphaned(index, layers, since)
        if block.present and not block.filling:
            self._on_settled(block.key)
        self._settle(block)

    def _make_room(self, num_bytes: int) -> None:
        """Evict until `num_bytes` more fit. Raises `Overloaded` when what is left is held."""
        if num_bytes > self.budget_bytes:
            raise Overloaded(f"an entry of {num_bytes} bytes exceeds the pool's budget of {self.budget_bytes}")
        while self.used_bytes + num_bytes > self.budget_bytes:
            victim = self._lru.pop()
            if victim is None:
                raise Overloaded("all blocks of the pool are held by readers and writers")
            self._evict(victim)

    def _evict(self, block: Block) -> None:
        had_groups = block.groups
        self.used_bytes -= block.charge
        self._num_entries -= block.present.bit_count()
        self._num_stored -= 1
        self._num_evicted += 1
        block.present = block.groups = block.charge = 0
        block.frames = []
        if had_groups:
            self._on_groups(block.key, 0)
        self._settle(block)

    def _settle(self, block: Block | None) -> None:
        """Act on a block that nothing may hold any more: offer it for eviction, or drop its record when it is empty."""
        while block is not None and not block.referenced and not block.num_children:
            if block.present:
                self._lru.offer(block, self._num_stored)
                return
            if self._blocks.get(block.key) is not block:
                return  # dropped already, on the way up from a child of the same chain
            del self._blocks[block.key]
            parent, block.parent = block.parent, None
            if parent is not None:
                parent.num_children -= 1
            block = parent

    def check_integrity(self) -> None:
        """Recount everything and assert the class's invariants: for tests, and for a pool that has gone idle."""
        stored = [block for block in self._blocks.values() if block.present]
        leases = sum(len(block.readers) for block in self._blocks.values())
        charges = [
            sum(entry_charge(frame) for frame in block.frames if frame) + BLOCK_OVERHEAD_BYTES for block in stored
        ]
        assert charges == [block.charge for block in stored]
        assert self.used_bytes == sum(charges) <= self.budget_bytes
        assert self._num_entries == sum(block.present.bit_count() for block in stored)
        assert (self._num_stored, self._num_leases) == (len(stored), leases)
        for block in self._blocks.values():
            assert not block.present & block.filling
            assert block.present or block.referenced or block.num_children, "an empty record was not dropped"
            assert block.parent is None or self._blocks[block.parent.key] is block.parent
            held = sum(1 << layer for layer, frame in enumerate(block.frames) if frame is not None)
            assert held == block.present
            assert block.groups == block.layout.group_mask(block.present)
