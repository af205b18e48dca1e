"""Prefixes that are kept by name for a time, whatever else is asked for: which, until when, within a bound."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from services.cachepool.store.block import BLOCK_OVERHEAD_BYTES, ENTRY_OVERHEAD_BYTES
from services.cachepool.store.store import Store
from services.cachepool.store.tenants import Tenants
from shared.errors import BadRequest, Overloaded
from shared.ids import BlockKey
from shared.kv.entries import BlockEntries
from shared.kv.layout import KvLayout, iter_layers
from shared.tenant import Tenant

MAX_NAME_CHARS = 256


@dataclass(frozen=True)
class Pin:
    """What one name keeps."""

    blocks: tuple[BlockEntries, ...]
    tenant: Tenant
    num_bytes: int  # what its entries take when all are here, uncompressed
    ends_at: float


class Pins:
    """Owns the pins of one store. Always: the bytes of all pins are within their share of the budget.

    A pin counts with its full size from the start, whether its blocks are here or still to come, so that what was
    promised fits. With a tenant quota, a tenant may pin its quota of that share. Prefixes that overlap count twice.
    """

    def __init__(self, store: Store, share: float, tenant_share: float, max_ttl_s: float) -> None:
        """`share`: the part of the store's budget that may be pinned."""
        self._store = store
        self._limit_bytes = int(store.budget_bytes * share)
        self._max_ttl_s = max_ttl_s
        self._paid = Tenants(self._limit_bytes, tenant_share)
        self._pins: dict[str, Pin] = {}
        self._names: dict[BlockKey, dict[str, int]] = {}  # layers of a block by the name that pins them
        self._changed = asyncio.Event()
        self.num_bytes = 0

    def __len__(self) -> int:
        return len(self._pins)

    def pin(
        self, name: str, layout: KvLayout, blocks: Sequence[BlockEntries], ttl_s: float, tenant: Tenant
    ) -> list[int]:
        """Keep blocks under a name for `ttl_s`, at most the configured time; the same name again replaces what it kept.

        Returns the layers of each block that are here. Raises `BadRequest` and `Overloaded`, and changes nothing then.
        """
        _check(name, layout, blocks, ttl_s)
        self.expire()
        num_bytes = sum(_size(layout, block.layers) for block in blocks)
        old = self._pins.get(name)
        self._check_room(num_bytes, tenant, old)
        if old is not None:
            self._drop(name, old)
        ends_at = self._store.clock() + min(ttl_s, self._max_ttl_s)
        self._pins[name] = Pin(tuple(blocks), tenant, num_bytes, ends_at)
        self.num_bytes += num_bytes
        self._paid.charge(tenant, num_bytes)
        for block in blocks:
            self._names.setdefault(block.key, {})[name] = block.layers
            self._apply(block.key)
        self._changed.set()
        return [self._store.lookup(block.key) for block in blocks]

    def unpin(self, name: str) -> bool:
        """Let go of what a name keeps; False when it keeps nothing."""
        pin = self._pins.get(name)
        if pin is None:
            return False
        self._drop(name, pin)
        return True

    def expire(self) -> None:
        """Let go of what has outlived its time."""
        now = self._store.clock()
        for name, pin in [item for item in self._pins.items() if item[1].ends_at <= now]:
            self._drop(name, pin)

    async def run(self) -> None:
        """Expire pins when their time comes, until cancelled."""
        while True:
            self._changed.clear()
            self.expire()
            first = min((pin.ends_at for pin in self._pins.values()), default=None)
            try:
                async with asyncio.timeout(None if first is None else max(0.0, first - self._store.clock())):
                    await self._changed.wait()
            except TimeoutError:
                pass  # the first one's time has come

    def _check_room(self, num_bytes: int, tenant: Tenant, old: Pin | None) -> None:
        freed = old.num_bytes if old else 0
        freed_of_tenant = freed if old and old.tenant == tenant else 0
        if self.num_bytes - freed + num_bytes > self._limit_bytes:
            raise Overloaded(
                f"pins of {num_bytes} bytes do not fit: {self.num_bytes - freed} of {self._limit_bytes} are taken"
            )
        if self._paid.used_bytes(tenant) - freed_of_tenant + num_bytes > self._paid.quota_bytes:
            raise Overloaded(f"pins of {num_bytes} bytes are above what one tenant may pin: {self._paid.quota_bytes}")

    def _drop(self, name: str, pin: Pin) -> None:
        del self._pins[name]
        self.num_bytes -= pin.num_bytes
        self._paid.charge(pin.tenant, -pin.num_bytes)
        for block in pin.blocks:
            del self._names[block.key][name]
            self._apply(block.key)

    def _apply(self, key: BlockKey) -> None:
        """Tell the store what all pins together keep of a block."""
        layers = 0
        for mask in self._names[key].values():
            layers |= mask
        if not layers:
            del self._names[key]
        self._store.pin(key, layers)


def _check(name: str, layout: KvLayout, blocks: Sequence[BlockEntries], ttl_s: float) -> None:
    if not 1 <= len(name) <= MAX_NAME_CHARS:
        raise BadRequest(f"a pin needs a name of 1 to {MAX_NAME_CHARS} characters")
    if ttl_s <= 0:
        raise BadRequest("a pin needs a time to live")
    if not blocks or len({block.key for block in blocks}) != len(blocks):
        raise BadRequest("a pin names at least one block, and none twice")
    if any(not block.layers or block.layers & ~layout.all_layers for block in blocks):
        raise BadRequest("a pin names layers of its KV layout, at least one of each block")


def _size(layout: KvLayout, layers: int) -> int:
    return BLOCK_OVERHEAD_BYTES + sum(ENTRY_OVERHEAD_BYTES + layout.entry_bytes(layer) for layer in iter_layers(layers))
