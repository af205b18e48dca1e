"""The pool's state: entries by (block, layer), who writes them, who waits for them. No I/O."""

from collections.abc import Callable, Mapping, Sequence
from itertools import takewhile
from typing import NamedTuple

from services.cachepool.store.block import Block, WaitingReader, Writer
from services.cachepool.store.eviction import Eviction
from services.cachepool.store.shelf import Shelf
from services.cachepool.store.subscription import Subscription
from shared.errors import BadRequest, CorruptFrame, Overloaded
from shared.ids import BlockKey
from shared.kv.codec import Codec
from shared.kv.entries import BlockEntries
from shared.kv.frame import Frame
from shared.kv.layout import KvLayout
from shared.lanes.slots import SlotMemory, limit_for
from shared.tenant import NO_TENANT, Tenant

_RAW = Codec.RAW  # looking a member up in its Enum is a tenth of what an entry takes


class BlockGrant(NamedTuple):
    """What a writer was told about one block. What is in neither mask is being written by somebody else."""

    granted: int  # layer bitmask: the writer's to fill
    present: int  # layer bitmask: stored already


class PutResult(NamedTuple):
    """What became of frames, up to the first one that is wrong."""

    num_stored: int
    num_bytes: int  # of stored payloads
    refused: Sequence[Overloaded]  # why those were not stored that do not fit
    error: BadRequest | CorruptFrame | None  # what is wrong with the next frame, which ended it

    @property
    def num_done(self) -> int:
        """Frames before the wrong one."""
        return self.num_stored + len(self.refused)


class StoreStats(NamedTuple):
    num_blocks: int  # with at least one entry
    num_entries: int
    used_bytes: int  # payload and overhead, as the budget counts them
    num_leases: int  # blocks held by readers, counted once for each reader
    num_readers: int
    num_writers: int
    num_evicted: int  # blocks, since the start
    num_trimmed: int  # entries of window groups that went before their block, since the start
    num_tenants: int  # with at least one entry
    largest_tenant_bytes: int


class HeldBlock(NamedTuple):
    """What a held block had when it was taken hold of."""

    layout: KvLayout
    parent: BlockKey | None  # the block before it, as far as requests have told
    layers: int  # bitmask
    charge: int  # bytes that it takes from the budget
    frames: list[Frame]


class Store:
    """Owns every block and every decision about it; belongs to one event loop and never waits.

    Always: `used_bytes <= budget_bytes`; an entry has at most one writer, and the first one wins; a block that a reader
    or a writer holds is not evicted, nor is the predecessor of a block that is still here: of that, only entries of
    window groups may go.

    Requests list blocks in chain order, which is how the store learns what precedes what. A block with no layers
    only tells its place in the chain.
    """

    def __init__(
        self,
        budget_bytes: int,
        clock: Callable[[], float],
        tenant_share: float = 1.0,
        policy: type[Eviction] = Eviction,
        memory: SlotMemory | None = None,
    ) -> None:
        """`tenant_share`: each tenant's quota as a part of the budget; 1: no quota.

        `policy`: what goes first. Benchmarks compare others, and have a `memory` that keeps nothing. Without a
        `memory`, payloads lie in one of the store's own. Raises `SettingsError` when the budget cannot be mapped.
        """
        self.clock = clock
        self._shelf = Shelf(
            budget_bytes, clock, tenant_share, policy, memory or SlotMemory(limit_for(budget_bytes), shared=False)
        )
        self._on_settled: Callable[[BlockKey], None] = _nothing
        self._num_leases = 0
        self._num_readers = 0
        self._num_writers = 0

    @property
    def budget_bytes(self) -> int:
        return self._shelf.budget_bytes

    @property
    def used_bytes(self) -> int:
        return self._shelf.used_bytes

    @property
    def stats(self) -> StoreStats:
        shelf = self._shelf
        return StoreStats(
            shelf.num_stored,
            shelf.num_entries,
            shelf.used_bytes,
            self._num_leases,
            self._num_readers,
            self._num_writers,
            shelf.num_evicted,
            shelf.num_trimmed,
            len(shelf.tenants),
            shelf.tenants.largest_bytes,
        )

    def listen(
        self,
        on_groups: Callable[[BlockKey, int], None] | None = None,
        on_settled: Callable[[BlockKey], None] | None = None,
    ) -> None:
        """Have changes told, from now on. Neither function may call back what changes the store.

        `on_groups(key, mask)` is told each change of the layer groups that a block wholly holds; 0 when evicted.
        `on_settled(key)` is told when a block has entries and, after a change, no writer.
        """
        if on_groups is not None:
            self._shelf.on_groups = on_groups
        if on_settled is not None:
            self._on_settled = on_settled

    def lookup(self, key: BlockKey) -> int:
        """Return the layers of a block that are present, as a bitmask. Not a use: the LRU order stays."""
        block = self._shelf.get(key)
        return block.present if block else 0

    def lookup_all(self, keys: Sequence[BlockKey]) -> list[int]:
        """Return what `lookup` returns for each key, in one pass: clients ask for thousands."""
        return self._shelf.present(keys)

    def frames(self, entries: BlockEntries) -> list[Frame]:
        """Return what is present of some layers of a block. Not a use."""
        block = self._shelf.get(entries.key)
        return [
            frame
            for frame in (block.frames if block else ())
            if frame is not None and entries.layers >> frame.layer & 1
        ]

    def discard(self, frame: Frame) -> bool:
        """Forget an entry that was found corrupt; False when it is not here any more. Its readers wait for a writer."""
        block = self._shelf.get(frame.key)
        if block is None or not any(present is frame for present in block.frames):
            return False
        bit, now = 1 << frame.layer, self.clock()
        for reader, index in block.readers.items():
            reader.on_lost(index, bit, now)
        self._shelf.remove(block, bit)
        return True

    def pin(self, key: BlockKey, layers: int) -> None:
        """Keep exactly these layers of a block from eviction, as soon as they are here; 0: none. See `Pins`."""
        self._shelf.pin(key, layers)

    def groups(self, key: BlockKey) -> int:
        """Return the layer groups that a block holds wholly, as a bitmask."""
        block = self._shelf.get(key)
        return block.groups if block else 0

    def hold(self, key: BlockKey) -> HeldBlock | None:
        """Keep a block from eviction until `let_go`, and return what it has; None when it has nothing. Not a use."""
        block = self._shelf.get(key)
        if block is None or not block.present:
            return None
        block.is_held = True
        frames = [frame for frame in block.frames if frame is not None]
        parent = block.parent.key if block.parent else None
        return HeldBlock(block.layout, parent, block.present, block.charge, frames)

    def let_go(self, key: BlockKey) -> None:
        """End `hold`."""
        block = self._shelf.get(key)
        assert block is not None, "a held block was dropped"
        block.is_held = False
        self._shelf.settle(block)

    # Writers

    def open_writer(self, tenant: Tenant = NO_TENANT) -> Writer:
        """`tenant` pays for the blocks whose first entry this writer stores."""
        self._num_writers += 1
        return Writer(tenant)

    def grant(self, writer: Writer, layout: KvLayout, blocks: Sequence[BlockEntries]) -> list[BlockGrant]:
        """Give the writer those of the entries that nobody holds or writes. Raises `BadRequest` and grants nothing."""
        assert writer.is_open, "a closed writer asks for grants"
        grants = []
        chain = self._shelf.chain(layout, blocks)
        full = layout.all_layers & ~layout.window_layers
        known = sum(1 for _ in takewhile(lambda block: block.present & full == full, chain))
        for block, asked in zip(chain, blocks, strict=True):
            layers = asked.layers & ~block.present & ~block.filling
            if layers:
                block.filling |= layers
                writer.granted[block] = writer.granted.get(block, 0) | layers
                for reader, index in block.readers.items():
                    reader.on_granted(index, layers)
            grants.append(BlockGrant(layers, asked.layers & block.present))
        # A writer names all layers of what it computes; what a resume behind its last block needs is the tail. So is
        # what it would have resumed from, were all window entries here: else nobody learns that some are missed.
        needed = [layout.needed_layers(index, len(chain)) for index in range(len(chain))]
        needed[:known] = [a | layout.needed_layers(index, known) for index, a in enumerate(needed[:known])]
        self._use(chain, needed)
        return grants

    def put(self, writer: Writer, frame: Frame) -> None:
        """Store one frame, as `put_all` does. Raises what that returns."""
        result = self.put_all(writer, (frame,))
        if result.error is not None:
            raise result.error
        if result.refused:
            raise result.refused[0]

    def put_all(self, writer: Writer, frames: Sequence[Frame]) -> PutResult:
        """Store verified frames and hand them to their readers, up to the first one that is wrong.

        A frame is wrong when the writer holds no grant for it (`BadRequest`), or when it cannot be this layer's KV
        (`CorruptFrame`). One that does not fit, because readers and writers hold all there is (`Overloaded`), does not
        keep others from being stored. The grants of all frames before a wrong one end, whether they are stored or not.
        """
        blocks, layers_of, error = self._check(writer, frames)
        if error is not None:
            frames = frames[: len(blocks)]
        num_bytes = sum([len(frame[5]) for frame in frames])
        refused = self._shelf.insert(blocks, frames, num_bytes, writer.tenant) if blocks else []
        self._end_grants(writer, layers_of)
        stored = layers_of
        if refused:
            stored, now = dict(layers_of), self.clock()
            for block, frame, _ in refused:
                num_bytes -= len(frame.payload)
                stored[block] ^= 1 << frame.layer
                for reader, index in block.readers.items():
                    reader.on_orphaned(index, 1 << frame.layer, now)
        _tell_present(stored)
        for block in layers_of:
            if not block.filling:  # else it is not settled
                if block.present:
                    self._on_settled(block.key)
                self._shelf.settle(block)
        return PutResult(len(blocks) - len(refused), num_bytes, [refusal.error for refusal in refused], error)

    def make_slots(self, sizes: Sequence[int]) -> bool:
        """Evict for who writes beside the store and finds no slots of these sizes; False when that was not enough."""
        return self._shelf.make_slots(sizes)

    def release(self, writer: Writer, entries: BlockEntries, since: float) -> None:
        """Take grants back from a writer that will not fill them. Its readers' patience counts from `since`."""
        block = self._shelf.get(entries.key)
        layers = writer.granted.get(block, 0) & entries.layers if block else 0
        if block and layers:
            self._release(writer, block, layers, since)

    def abandon(self, writer: Writer, since: float | None = None) -> int:
        """Close a writer and return how many of its grants were still unfilled; idempotent.

        Those entries are absent again. Their readers wait on for a next writer, counted from `since`, or from now.
        """
        if not writer.is_open:
            return 0
        writer.is_open = False
        self._num_writers -= 1
        since = self.clock() if since is None else since
        num_unfilled = sum(layers.bit_count() for layers in writer.granted.values())
        for block, layers in list(writer.granted.items()):
            self._release(writer, block, layers, since)
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
        self,
        layout: KvLayout,
        blocks: Sequence[BlockEntries],
        wait_s: float,
        notify: Callable[[], None],
        tenant: Tenant = NO_TENANT,
    ) -> Subscription:
        """Take a lease on the blocks for a reader, until `close`. Raises `BadRequest` and takes nothing.

        `tenant` pays for what others fill on this reader's behalf.
        """
        chain = self._shelf.chain(layout, blocks)
        reader = Subscription(chain, [asked.layers for asked in blocks], wait_s, notify, tenant)
        now = self.clock()
        for index, block in enumerate(chain):
            block.readers[reader] = index
            wanted = blocks[index].layers
            reader.on_orphaned(index, wanted & ~block.present & ~block.filling, now)
        self._num_readers += 1
        self._num_leases += len(chain)
        self._use(chain, [asked.layers for asked in blocks])
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
        self._shelf.touch(reader.blocks)
        for block in reversed(reader.blocks):
            self._shelf.settle(block)

    def _use(self, chain: Sequence[Block], needed: Sequence[int]) -> None:
        """Count a request that needs these layers of a chain's blocks, and settle them, from the chain's end."""
        self._shelf.use(chain, lambda index: bool(needed[index] & chain[index].layout.window_layers))
        for block in reversed(chain):
            self._shelf.settle(block)

    def _check(
        self, writer: Writer, frames: Sequence[Frame]
    ) -> tuple[list[Block], dict[Block, int], BadRequest | CorruptFrame | None]:
        """Return the blocks of frames up to the first one that is wrong, their layers by block, and what is wrong."""
        get, granted = self._shelf.get, writer.granted
        blocks: list[Block] = []
        layers_of: dict[Block, int] = {}
        layout, last_layer, entry_bytes = None, -1, 0  # most batches are of one layer
        for key, layer, codec, _, raw_bytes, payload, _ in frames:
            block, bit = get(key), 1 << layer
            if block is None or not granted.get(block, 0) & ~(layers := layers_of.get(block, 0)) & bit:
                error = BadRequest(f"block {key.hex()[:12]} layer {layer} was not granted to this writer")
                return blocks, layers_of, error
            if layer != last_layer or block.layout is not layout:
                layout, last_layer = block.layout, layer
                entry_bytes = layout.entry_bytes(layer)
            if raw_bytes != entry_bytes or (codec is _RAW and len(payload) != raw_bytes):
                wrong = CorruptFrame(f"{raw_bytes} bytes in layer {layer} are not what the KV layout says")
                return blocks, layers_of, wrong
            layers_of[block] = layers | bit
            blocks.append(block)
        return blocks, layers_of, None

    def _end_grants(self, writer: Writer, layers_of: Mapping[Block, int]) -> None:
        granted = writer.granted
        for block, layers in layers_of.items():
            block.filling ^= layers
            if granted[block] == layers:
                del granted[block]
            else:
                granted[block] ^= layers

    def _release(self, writer: Writer, block: Block, layers: int, since: float) -> None:
        self._end_grants(writer, {block: layers})
        for reader, index in block.readers.items():
            reader.on_orphaned(index, layers, since)
        if block.present and not block.filling:
            self._on_settled(block.key)
        self._shelf.settle(block)

    def check_integrity(self) -> None:
        """Recount everything and assert the class's invariants: for tests, and for a pool that has gone idle."""
        self._shelf.check_integrity()
        assert self._num_leases == sum(len(block.readers) for block in self._shelf)


def _tell_present(layers_of: Mapping[Block, int]) -> None:
    """Tell the readers of blocks of the layers that have come, once for all blocks of which the same have."""
    told: dict[tuple[WaitingReader, int], list[int]] = {}
    for block, layers in layers_of.items():
        if layers:
            for reader, index in block.readers.items():
                told.setdefault((reader, layers), []).append(index)
    for (reader, layers), indices in told.items():
        reader.on_present(indices, layers)


def _nothing(_key: BlockKey) -> None:
    """Tell nobody."""
