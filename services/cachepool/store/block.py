"""The records of the store: a block with the state of each layer's entry, and the writer who fills some of them."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from shared.ids import BlockKey
from shared.kv.frame import Frame
from shared.kv.layout import KvLayout
from shared.tenant import NO_TENANT, Tenant

BLOCK_OVERHEAD_BYTES = 2304
"""What one stored block costs beside its entries: record, key, slots per layer, its place in the order of eviction,
placement bookkeeping, what is remembered of `History.PER_BLOCK` blocks that were evicted, and the guard's ghosts.
docs/results/pool.md says how it was measured."""

ENTRY_OVERHEAD_BYTES = 960
"""What one stored entry costs beside its payload: `Frame`, its key and integers, the view of its slot, what frees that.
`test_an_entry_costs_what_it_is_charged` measures it."""


@dataclass(slots=True)
class Uses:
    """How often something was used; uses close to each other count as one (see `reuse`)."""

    count: int = 0
    counted_at: float = 0.0
    last_at: float = 0.0


def entry_charge(frame: Frame) -> int:
    """Return the bytes that an entry takes from the budget."""
    return len(frame.payload) + ENTRY_OVERHEAD_BYTES


def whole_charge(layout: KvLayout) -> int:
    """Return what a block with all its entries, uncompressed, takes from the budget."""
    return layout.block_bytes + layout.num_layers * ENTRY_OVERHEAD_BYTES + BLOCK_OVERHEAD_BYTES


class WaitingReader(Protocol):
    """What the store tells whoever waits for entries; `index` is the block's among those that the reader wants."""

    def wants(self, index: int) -> int:
        """Return the layers of a block that were neither delivered nor reported missing."""

    def on_present(self, indices: Sequence[int], layers: int) -> None:
        """Entries can be delivered: these layers of some blocks, at least one."""

    def on_granted(self, index: int, layers: int) -> None:
        """Entries found a writer."""

    def on_orphaned(self, index: int, layers: int, since: float) -> None:
        """Entries have had no writer since then."""

    def on_lost(self, index: int, layers: int, since: float) -> None:
        """Entries that were present are not any more, and have no writer."""


class Block:
    """One block. A layer's entry is *present*, *filling* (some writer holds its grant) or absent (neither bit set).

    Owned by the `Store`, which alone changes it. Always: `present & filling == 0`; `frames[i]` is set exactly when
    bit i of `present` is. The two lifetimes: readers hold the block through `readers`, writers through `filling`.
    """

    __slots__ = (
        "charge",
        "depth",
        "filling",
        "frames",
        "groups",
        "is_held",
        "is_inner",
        "key",
        "layout",
        "num_children",
        "parent",
        "pinned",
        "present",
        "readers",
        "resumes",
        "serial",
        "tenant",
        "tick",
        "uses",
    )

    def __init__(self, key: BlockKey, layout: KvLayout, serial: int) -> None:
        self.key = key
        self.layout = layout
        self.serial = serial  # order of creation; parents are always older, which keeps the links free of cycles
        self.tick = 0  # number of its last use
        self.parent: Block | None = None
        self.num_children = 0  # records whose `parent` this is
        self.depth = 0  # blocks before it in its chain, as far as requests have told
        self.is_inner = False  # the last request that named it went on, and needs its window entries no more
        self.uses = Uses()  # requests whose chain it is in
        self.resumes = Uses()  # requests that end, or begin to compute, within a window behind it
        self.pinned = 0  # layer bitmask: what pins keep
        self.present = 0  # layer bitmask
        self.filling = 0  # layer bitmask
        self.groups = 0  # mask of the layer groups that are wholly present
        self.is_held = False  # by the write-behind of the object tier
        self.charge = 0  # bytes taken from the budget
        self.tenant = NO_TENANT  # who pays for them: whoever stored the block's first entry
        self.frames: list[Frame | None] = []
        self.readers: dict[WaitingReader, int] = {}  # reader -> index of this block among those it wants

    @property
    def referenced(self) -> bool:
        return bool(self.readers or self.filling or self.is_held)

    @property
    def evictable(self) -> bool:
        """Unreferenced, worth something, and no parent of a block that is still here."""
        return bool(self.present) and not (self.referenced or self.num_children or self.pinned)

    @property
    def trimmable(self) -> int:
        """The window entries that may go while the block stays, for others follow it; a layer bitmask."""
        if not (self.is_inner and self.num_children) or self.referenced:
            return 0
        layers = self.present & self.layout.window_layers & ~self.pinned
        return layers if layers != self.present else 0


@dataclass(eq=False, slots=True)
class Writer:
    """One Publish stream or one pull from a peer: the grants it holds and has not yet filled."""

    tenant: Tenant = NO_TENANT
    granted: dict[Block, int] = field(default_factory=dict)  # block -> layer bitmask, never 0
    is_open: bool = True
