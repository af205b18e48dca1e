"""What a pool has: records of blocks in chains, the entries in them, who pays, and what goes when room is needed."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from weakref import WeakValueDictionary

from services.cachepool.store.block import BLOCK_OVERHEAD_BYTES, ENTRY_OVERHEAD_BYTES, Block, entry_charge
from services.cachepool.store.eviction import Eviction
from services.cachepool.store.tenants import Tenants
from shared.errors import BadRequest, Overloaded
from shared.ids import BlockKey, LayoutHash
from shared.kv.codec import Payload
from shared.kv.entries import BlockEntries
from shared.kv.frame import Frame, with_payload
from shared.kv.layout import KvLayout
from shared.lanes.slots import SlotMemory
from shared.tenant import Tenant

MAX_EVICTED_FOR_SLOT = 64
"""Blocks that may go for one entry while the budget has room for it, but the memory no slot of its size."""


class Shelf:
    """Owns the records and the budget for the `Store`, which says who holds what.

    Always: `used_bytes <= budget_bytes`, and it is the sum over `tenants`; a record that has no entries, is not
    referenced and precedes nobody is dropped; what is referenced, pinned or precedes another block is not evicted,
    window entries of inner blocks excepted.
    """

    def __init__(
        self,
        budget_bytes: int,
        clock: Callable[[], float],
        tenant_share: float,
        policy: type[Eviction],
        memory: SlotMemory,
    ) -> None:
        self._memory = memory
        self.budget_bytes = budget_bytes
        self.used_bytes = 0
        self.tenants = Tenants(budget_bytes, tenant_share)
        self.num_stored = 0  # blocks with at least one entry
        self.num_entries = 0
        self.num_evicted = 0  # blocks, since the start
        self.num_trimmed = 0  # entries of window groups that went before their block, since the start
        self.on_groups: Callable[[BlockKey, int], None] = lambda _key, _groups: None
        self._eviction = policy(clock, by_tenant=self.tenants.has_quota)
        self._blocks: dict[BlockKey, Block] = {}
        self._layouts: WeakValueDictionary[LayoutHash, KvLayout] = WeakValueDictionary()
        self._pinned: dict[BlockKey, int] = {}  # layers, also of blocks that are not here
        self._num_created = 0

    def __iter__(self) -> Iterator[Block]:
        return iter(self._blocks.values())

    def get(self, key: BlockKey) -> Block | None:
        return self._blocks.get(key)

    def present(self, keys: Iterable[BlockKey]) -> list[int]:
        """Return the layers that are present of each block, as bitmasks."""
        return [block.present if block else 0 for block in map(self._blocks.get, keys)]

    def chain(self, layout: KvLayout, blocks: Sequence[BlockEntries]) -> list[Block]:
        """Return the records of a request's blocks, linked in chain order; new ones for what is not there.

        Whoever calls this holds or settles every record before it returns. Raises `BadRequest` and changes nothing.
        """
        layout = self._layouts.setdefault(layout.hash, layout)
        self._check(layout, blocks)
        chain: list[Block] = []
        previous: Block | None = None
        for key, _ in blocks:
            block = self._blocks.get(key) or self._new(key, layout)
            if previous is not None:
                if block.parent is None and previous.serial < block.serial:
                    block.parent = previous
                    previous.num_children += 1
                if block.parent is previous:
                    block.depth = previous.depth + 1
            chain.append(block)
            previous = block
        return chain

    def use(self, chain: Sequence[Block], is_tail: Callable[[int], bool]) -> None:
        """Count a request that names a chain: see `Eviction.use`."""
        # What there is room for is known once something had to go; until then ghosts are to keep all they are shown.
        num_blocks = self.num_stored if self.num_evicted else 2 * (self.num_stored + len(chain))
        self._eviction.use(chain, is_tail, num_blocks)

    def touch(self, chain: Sequence[Block]) -> None:
        """Renew the use of a chain: see `Eviction.touch`."""
        self._eviction.touch(chain)

    def insert(self, block: Block, frame: Frame, tenant: Tenant) -> None:
        """Store an entry, its payload as a copy unless it lies in a slot. The first of a block says who pays for all.

        Evicts what has to go. Raises `Overloaded`, typed by cause; nothing is stored then.
        """
        layer, payload, present = frame.layer, frame.payload, block.present
        charge = len(payload) + (ENTRY_OVERHEAD_BYTES if present else ENTRY_OVERHEAD_BYTES + BLOCK_OVERHEAD_BYTES)
        if self.used_bytes + charge > self.budget_bytes:
            self._make_room(block.tenant if present else tenant, charge)
        kept = self._keep(payload, block.tenant if present else tenant, charge)
        if not present:
            block.frames = [None] * block.layout.num_layers
            block.tenant = tenant
            self.num_stored += 1
        block.frames[layer] = with_payload(frame, kept)
        block.present = present = present | 1 << layer
        self._charge(block, charge)
        self.num_entries += 1
        group = block.layout.group_layers[layer]
        if present & group == group:
            self._tell_groups(block)

    def pin(self, key: BlockKey, layers: int) -> None:
        """Keep these layers of a block from eviction, once they are here, and no others; 0: none."""
        if layers:
            self._pinned[key] = layers
        else:
            self._pinned.pop(key, None)
        if (block := self._blocks.get(key)) is not None:
            block.pinned = layers
            self.settle(block)

    def remove(self, block: Block, layers: int) -> None:
        """Forget entries that are present."""
        gone = [frame for layer, frame in enumerate(block.frames) if frame and layers >> layer & 1]
        for frame in gone:
            self._memory.free(frame.payload)
        self.num_entries -= len(gone)
        if layers == block.present:
            freed = block.charge
            block.frames = []
            self.num_stored -= 1
            self.num_evicted += 1
        else:
            freed = sum(map(entry_charge, gone))
            block.frames = [None if layers >> layer & 1 else frame for layer, frame in enumerate(block.frames)]
            self.num_trimmed += len(gone)
        block.present &= ~layers
        self._charge(block, -freed)
        self._tell_groups(block)
        self.settle(block)

    def settle(self, block: Block | None) -> None:
        """Act on a block that nothing may hold any more: offer it for eviction, or drop its record when it is empty."""
        while block is not None and not block.referenced:
            if block.present or block.num_children:
                self._eviction.offer(block)
                return
            if self._blocks.get(block.key) is not block:
                return  # dropped already, on the way up from a child of the same chain
            del self._blocks[block.key]
            self._eviction.history.remember(block.key, block.uses, self.num_stored)
            parent, block.parent = block.parent, None
            if parent is not None:
                parent.num_children -= 1
            block = parent

    def _new(self, key: BlockKey, layout: KvLayout) -> Block:
        self._num_created += 1
        block = self._blocks[key] = Block(key, layout, self._num_created)
        block.uses = self._eviction.history.recall(key)
        block.pinned = self._pinned.get(key, 0)
        return block

    def _check(self, layout: KvLayout, blocks: Sequence[BlockEntries]) -> None:
        if len({key for key, _ in blocks}) != len(blocks):
            raise BadRequest("a request names a block twice")
        for key, layers in blocks:
            if layers & ~layout.all_layers:
                raise BadRequest(f"block {key.hex()[:12]}: the KV layout has {layout.num_layers} layers")
            block = self._blocks.get(key)
            if block is not None and block.layout is not layout:
                raise BadRequest(f"block {key.hex()[:12]} is known here with another KV layout")

    def _make_room(self, payer: Tenant, num_bytes: int) -> None:
        if num_bytes > self.budget_bytes:
            raise Overloaded(f"an entry of {num_bytes} bytes exceeds the pool's budget of {self.budget_bytes}")
        while self.used_bytes + num_bytes > self.budget_bytes:
            self._evict_for(payer, num_bytes)

    def _keep(self, payload: Payload, payer: Tenant, charge: int) -> memoryview:
        """Return a payload that stays, although slots of its size may run out before the budget does."""
        for _ in range(MAX_EVICTED_FOR_SLOT):
            try:
                return self._memory.keep(payload)
            except Overloaded:
                self._evict_for(payer, charge)
        return self._memory.keep(payload)

    def _evict_for(self, payer: Tenant, num_bytes: int) -> None:
        """Evict something: of the payer when that is above its quota, else of others that are, else of anybody."""
        tenants = self.tenants
        if tenants.has_quota and tenants.used_bytes(payer) + num_bytes > tenants.quota_bytes:
            victim = self._eviction.pop(payer)
            if victim is None:
                raise Overloaded("all blocks of a tenant that is above its quota are held or pinned")
        else:
            above = (self._eviction.pop(tenant) for tenant in (tenants.above() if tenants.has_quota else ()))
            victim = next((victim for victim in above if victim), None) or self._eviction.pop()
            if victim is None:
                raise Overloaded("all blocks of the pool are held by readers and writers, or pinned")
        self.remove(victim.block, victim.layers)

    def _charge(self, block: Block, num_bytes: int) -> None:
        block.charge += num_bytes
        self.used_bytes += num_bytes
        if not self.tenants.charge(block.tenant, num_bytes):
            self._eviction.forget_tenant(block.tenant)

    def _tell_groups(self, block: Block) -> None:
        groups = block.layout.group_mask(block.present)
        if groups != block.groups:
            block.groups = groups
            self.on_groups(block.key, groups)

    def check_integrity(self) -> None:
        """Recount everything and assert the class's invariants: for tests, and for a pool that has gone idle."""
        stored = [block for block in self if block.present]
        by_tenant: dict[Tenant, int] = {}
        for block in stored:
            charge = sum(entry_charge(frame) for frame in block.frames if frame) + BLOCK_OVERHEAD_BYTES
            assert charge == block.charge
            by_tenant[block.tenant] = by_tenant.get(block.tenant, 0) + charge
        assert self.used_bytes == sum(by_tenant.values()) <= self.budget_bytes
        assert len(self.tenants) == len(by_tenant)
        assert all(self.tenants.used_bytes(tenant) == used for tenant, used in by_tenant.items())
        assert self.num_entries == sum(block.present.bit_count() for block in stored)
        assert self.num_stored == len(stored)
        assert self._memory.num_kept == self.num_entries, "a slot was not freed, or freed twice"
        for block in self:
            assert not block.present & block.filling
            assert block.present or block.referenced or block.num_children, "an empty record was not dropped"
            assert block.parent is None or self._blocks[block.parent.key] is block.parent
            held = sum(1 << layer for layer, frame in enumerate(block.frames) if frame is not None)
            assert held == block.present
            assert block.groups == block.layout.group_mask(block.present)
            assert block.pinned == self._pinned.get(block.key, 0)
