"""The records of the store: a block with the state of each layer's entry, and the writer who fills some of them."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from shared.ids import BlockKey
from shared.kv.frame import Frame
from shared.kv.layout import KvLayout

if TYPE_CHECKING:
    from services.cachepool.subscription import Subscription

BLOCK_OVERHEAD_BYTES = 1024
"""What one stored block costs beside its entries: record, key, slots per layer, LRU and placement bookkeeping."""

ENTRY_OVERHEAD_BYTES = 320
"""What one stored entry costs beside its payload: `Frame`, its key and integers, the bytes header."""


def entry_charge(frame: Frame) -> int:
    """Return the bytes that an entry takes from the budget."""
    return len(frame.payload) + ENTRY_OVERHEAD_BYTES


class Block:
    """One block. A layer's entry is *present*, *filling* (some writer holds its grant) or absent (neither bit set).

    Owned by the `Store`, which alone changes it. Always: `present & filling == 0`; `frames[i]` is set exactly when
    bit i of `present` is. The two lifetimes: readers hold the block through `readers`, writers through `filling`.
    """

    __slots__ = (
        "charge",
        "filling",
        "frames",
        "groups",
        "is_held",
        "key",
        "layout",
        "num_children",
        "parent",
        "present",
        "readers",
        "serial",
        "tick",
    )

    def __init__(self, key: BlockKey, layout: KvLayout, serial: int) -> None:
        self.key = key
        self.layout = layout
        self.serial = serial  # order of creation; parents are always older, which keeps the links free of cycles
        self.tick = 0  # last use
        self.parent: Block | None = None
        self.num_children = 0  # records whose `parent` this is
        self.present = 0  # layer bitmask
        self.filling = 0  # layer bitmask
        self.groups = 0  # mask of the layer groups that are wholly present
        self.is_held = False  # by the write-behind of the object tier
        self.charge = 0  # bytes taken from the budget
        self.frames: list[Frame | None] = []
        self.readers: dict[Subscription, int] = {}  # subscription -> index of this block in it

    @property
    def referenced(self) -> bool:
        return bool(self.readers or self.filling or self.is_held)

    @property
    def evictable(self) -> bool:
        """Unreferenced, worth something, and no parent of a block that is still here."""
        return bool(self.present) and not self.referenced and not self.num_children


@dataclass(eq=False, slots=True)
class Writer:
    """One Publish stream or one pull from a peer: the grants it holds and has not yet filled."""

    granted: dict[Block, int] = field(default_factory=dict)  # block -> layer bitmask, never 0
    is_open: bool = True
