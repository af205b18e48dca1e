"""Small layouts, keys and frames, and a clock that only moves when told to, for tests of the pool."""

import hashlib
from collections.abc import Callable, Sequence

from services.cachepool.store.block import BLOCK_OVERHEAD_BYTES, ENTRY_OVERHEAD_BYTES, Block, Writer
from services.cachepool.store.eviction import Eviction
from services.cachepool.store.guard import Guard
from services.cachepool.store.store import Store
from services.cachepool.store.subscription import Subscription
from shared.ids import BlockKey
from shared.kv.codec import Codec
from shared.kv.entries import BlockEntries
from shared.kv.frame import Frame, seal
from shared.kv.layout import KvLayout, LayerSpec
from shared.tenant import NO_TENANT, Tenant

LAYOUT = KvLayout((LayerSpec(None, 1, 4), LayerSpec(8, 1, 4), LayerSpec(None, 1, 4)), "bfloat16", block_tokens=4)
"""Three layers of 64 bytes each: 0 and 2 are group 0 (full), 1 is group 1 (window)."""

FULL = KvLayout((LayerSpec(None, 1, 4),) * 3, "bfloat16", block_tokens=4)
"""The same without windows: nothing but whole blocks is evicted."""

ALL = LAYOUT.all_layers
ENTRY_BYTES = LAYOUT.entry_bytes(0)
BLOCK_BYTES = BLOCK_OVERHEAD_BYTES + LAYOUT.num_layers * (ENTRY_BYTES + ENTRY_OVERHEAD_BYTES)
"""What a whole block takes from a pool's budget."""


class ManualClock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += seconds


def key(name: object) -> BlockKey:
    return BlockKey(hashlib.sha256(repr(name).encode()).digest())


def keys(prefix: object, count: int) -> list[BlockKey]:
    return [key((prefix, number)) for number in range(count)]


def wanting(block_keys: Sequence[BlockKey], layers: int = ALL) -> list[BlockEntries]:
    return [BlockEntries(block_key, layers) for block_key in block_keys]


def frame(block_key: BlockKey, layer: int, layout: KvLayout = LAYOUT) -> Frame:
    """A sealed frame whose content is determined by its key and layer."""
    seed = block_key + bytes([layer])
    size = layout.entry_bytes(layer)
    return seal(block_key, layer, (seed * (size // len(seed) + 1))[:size], Codec.RAW)


class ByWorth(Eviction):
    """The order by worth, whether it pays or not."""

    def __init__(self, clock: Callable[[], float], *, by_tenant: bool) -> None:
        super().__init__(clock, by_tenant=by_tenant)
        self.guard = _Sure()


class _Sure(Guard):
    def __init__(self) -> None:
        super().__init__()
        self.worth_pays = True

    def use(self, chain: Sequence[Block], bonus_s: Callable[[Block], float], num_blocks: int) -> None:
        pass


class SamplePool:
    """A store with a manual clock and what its callbacks said."""

    def __init__(
        self,
        num_blocks: float = 100,
        layout: KvLayout = LAYOUT,
        tenant_share: float = 1.0,
        policy: type[Eviction] = Eviction,
    ) -> None:
        self.clock = ManualClock()
        self.layout = layout
        self.groups: list[tuple[BlockKey, int]] = []
        budget_bytes = int(num_blocks * BLOCK_BYTES)
        self.store = Store(budget_bytes, self.clock, tenant_share=tenant_share, policy=policy)
        self.store.listen(on_groups=lambda k, g: self.groups.append((k, g)))
        self.num_notified = 0

    def writer(self, *block_keys: BlockKey, layers: int = ALL, tenant: Tenant = NO_TENANT) -> Writer:
        writer = self.store.open_writer(tenant)
        self.store.grant(writer, self.layout, wanting(block_keys, layers))
        return writer

    def fill(self, *block_keys: BlockKey, tenant: Tenant = NO_TENANT) -> None:
        """A second later, publish whole blocks as one chain; what is there already is left as it is."""
        self.clock.advance(1.0)
        writer = self.store.open_writer(tenant)
        grants = self.store.grant(writer, self.layout, wanting(block_keys))
        for layer in range(self.layout.num_layers):
            for block_key, grant in zip(block_keys, grants, strict=True):
                if grant.granted >> layer & 1:
                    self.store.put(writer, frame(block_key, layer, self.layout))
        self.store.abandon(writer)

    def reader(self, *block_keys: BlockKey, layers: int = ALL, wait_s: float = 1.0) -> Subscription:
        return self.store.subscribe(self.layout, wanting(block_keys, layers), wait_s, self._notified)

    def read(self, *block_keys: BlockKey) -> None:
        """Fetch what a resume behind the last of the blocks needs."""
        layers = [self.layout.needed_layers(index, len(block_keys)) for index in range(len(block_keys))]
        wanted = [BlockEntries(key, mask) for key, mask in zip(block_keys, layers, strict=True)]
        self.store.close(self.store.subscribe(self.layout, wanted, 0.0, self._notified))

    def _notified(self) -> None:
        self.num_notified += 1

    def held(self, *block_keys: BlockKey) -> list[bool]:
        return [self.store.lookup(block_key) == ALL for block_key in block_keys]
