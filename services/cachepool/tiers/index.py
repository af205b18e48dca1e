"""What the object tier holds, and which object goes first when it must hold less. Pure."""

import heapq
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from services.cachepool.tiers.objects import ObjectHeader, parse
from shared.ids import BlockKey
from shared.kv.layout import KvLayout

_SLACK = 1024


@dataclass(eq=False, slots=True)
class Stored:
    """One object. Its header is kept packed: a fifth of what the parsed one takes."""

    key: BlockKey
    parent: BlockKey | None
    layout: KvLayout
    layers: int  # bitmask
    total_bytes: int
    raw_header: bytes = field(repr=False)
    used_at: float  # seconds since 1970
    rests_until: float = 0.0  # of the index's clock; it could not be read and is not asked for until then

    @classmethod
    def of(cls, header: ObjectHeader, used_at: float) -> "Stored":
        return cls(header.key, header.parent, header.layout, header.layers, header.total_bytes, header.raw, used_at)

    @property
    def header(self) -> ObjectHeader:
        return parse(self.raw_header, self.total_bytes)


class ObjectIndex:
    """Owns the records of the objects and their budget.

    Always: `used_bytes` is the sum of the objects' sizes. A victim is the least recently used object of which no
    other one here is the successor, so that no parent goes before its children.
    """

    def __init__(self, budget_bytes: int, clock: Callable[[], float]) -> None:
        """`budget_bytes` 0: unlimited."""
        self.used_bytes = 0
        self.reserved_bytes = 0  # of objects that are being written
        self._budget_bytes = budget_bytes or None
        self._full_at: int | None = None
        self._full_until = 0.0
        self._clock = clock
        self.on_change: Callable[[BlockKey], None] = lambda _key: None
        """Told each block whose object came, went or changed."""
        self._stored: dict[BlockKey, Stored] = {}
        self._num_children: Counter[BlockKey] = Counter()
        self._leaves: list[tuple[float, int, Stored]] = []  # heap, validated when popped
        self._pushes = 0

    def __len__(self) -> int:
        return len(self._stored)

    def get(self, key: BlockKey) -> Stored | None:
        return self._stored.get(key)

    def layers(self, key: BlockKey) -> int:
        """Return the layers of a block that its object has, as a bitmask."""
        stored = self._stored.get(key)
        return stored.layers if stored else 0

    def readable(self, key: BlockKey, layout: KvLayout | None = None) -> int:
        """Like `layers`, but none while the object rests or when it has another layout."""
        stored = self._stored.get(key)
        if stored is None or stored.rests_until > self._clock():
            return 0
        return stored.layers if layout is None or stored.layout.hash == layout.hash else 0

    def add(self, stored: Stored) -> None:
        """Record an object that is there now, in place of the one of the same block if there was one."""
        self._forget(stored.key)
        self._stored[stored.key] = stored
        self.used_bytes += stored.total_bytes
        if stored.parent is not None:
            self._num_children[stored.parent] += 1
        self._offer(stored)
        self.on_change(stored.key)

    def remove(self, key: BlockKey) -> bool:
        """Forget an object that is not there any more; False when it was not known."""
        if not self._forget(key):
            return False
        self.on_change(key)
        return True

    def touch(self, key: BlockKey, now: float) -> None:
        """Make an object the most recently used."""
        if (stored := self._stored.get(key)) is not None:
            stored.used_at = now
            self._offer(stored)

    def rest(self, key: BlockKey, seconds: float) -> None:
        """Do not offer an object for a while: it could not be read."""
        if (stored := self._stored.get(key)) is not None:
            stored.rests_until = self._clock() + seconds

    def fill_up(self, seconds: float) -> None:
        """The place where the objects lie is full: what is used now is the budget for a while."""
        self._full_at = self.used_bytes
        self._full_until = self._clock() + seconds

    @property
    def budget_bytes(self) -> int | None:
        """The bytes that objects may take now; None: any number."""
        if self._full_at is not None and self._clock() < self._full_until:
            return self._full_at if self._budget_bytes is None else min(self._full_at, self._budget_bytes)
        return self._budget_bytes

    def lacks_room(self, num_bytes: int) -> bool:
        """Return whether `num_bytes` more, beside what is being written, exceed the budget."""
        budget = self.budget_bytes
        return budget is not None and self.used_bytes + self.reserved_bytes + num_bytes > budget

    def pop_victim(self, spared: BlockKey | None = None) -> Stored | None:
        """Return the object to delete next, or None. The caller deletes and `remove`s it, or `restore`s it."""
        skipped: Stored | None = None
        victim: Stored | None = None
        while self._leaves and victim is None:
            item = heapq.heappop(self._leaves)
            if self._is_current(item):
                if item[2].key == spared:
                    skipped = item[2]
                else:
                    victim = item[2]
        if skipped is not None:
            self._offer(skipped)
        return victim

    def restore(self, victim: Stored) -> None:
        """Undo `pop_victim`: the object could not be deleted."""
        self._offer(victim)

    def _forget(self, key: BlockKey) -> bool:
        stored = self._stored.pop(key, None)
        if stored is None:
            return False
        self.used_bytes -= stored.total_bytes
        parent = stored.parent
        if parent is not None:
            self._num_children[parent] -= 1
            if not self._num_children[parent]:
                del self._num_children[parent]
                if (bared := self._stored.get(parent)) is not None:
                    self._offer(bared)
        return True

    def _offer(self, stored: Stored) -> None:
        if self._num_children.get(stored.key):
            return
        self._pushes += 1
        heapq.heappush(self._leaves, (stored.used_at, self._pushes, stored))
        if len(self._leaves) > 2 * len(self._stored) + _SLACK:
            live = {item[2].key: item for item in self._leaves if self._is_current(item)}
            self._leaves = list(live.values())
            heapq.heapify(self._leaves)

    def _is_current(self, item: tuple[float, int, Stored]) -> bool:
        used_at, _, stored = item
        return (
            self._stored.get(stored.key) is stored
            and stored.used_at == used_at
            and not self._num_children.get(stored.key)
        )
