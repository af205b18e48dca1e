"""What a pool has: records of blocks in chains, the entries in them, who pays, and what goes when room is needed."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from typing import NamedTuple
from weakref import WeakValueDictionary

from services.cachepool.store.block import BLOCK_OVERHEAD_BYTES, ENTRY_OVERHEAD_BYTES, Block, entry_charge
from services.cachepool.store.eviction import Eviction
from services.cachepool.store.tenants import Tenants
from shared.errors import BadRequest, Overloaded
from shared.ids import BlockKey, LayoutHash
from shared.kv.codec import Payload
from shared.kv.entries import BlockEntries
from shared.kv.frame import Frame
from shared.kv.layout import KvLayout
from shared.lanes.slots import SlotMemory
from shared.tenant import NO_TENANT, Tenant

MAX_EVICTED_FOR_SLOT = 64
"""Blocks that may go for one entry while the budget has room for it, but the memory no slot of its size."""


class Refusal(NamedTuple):
    """An entry that was not stored, and why."""

    block: Block
    frame: Frame
    error: Overloaded


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

    def insert(self, blocks: Sequence[Block], frames: Sequence[Frame], num_bytes: int, tenant: Tenant) -> list[Refusal]:
        """Store entries, payloads as copies unless they lie in slots, and return those that do not fit.

        `blocks` are parallel to `frames`, referenced, and have none of these entries yet. `num_bytes`: of all payloads.
        The first entry of a block says who pays for all. What has to go is evicted for all of them at once, where one
        tenant pays for them.
        """
        payers = {block.tenant if block.present else tenant for block in blocks}
        payer = payers.pop()
        if payers:
            return self._insert_each(blocks, frames, tenant)
        num_new = len({block for block in blocks if not block.present})
        num_bytes += ENTRY_OVERHEAD_BYTES * len(frames) + BLOCK_OVERHEAD_BYTES * num_new
        if self.used_bytes + num_bytes > self.budget_bytes:
            try:
                self._make_room(payer, num_bytes)
            except Overloaded as error:
                if len(frames) > 1:
                    return self._insert_each(blocks, frames, tenant)
                return [Refusal(blocks[0], frames[0], error)]
        return self._insert_all(blocks, frames, payer)

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
        if layers == block.present:
            gone = [frame for frame in block.frames if frame]
            freed = block.charge
            block.frames = []
            self.num_stored -= 1
            self.num_evicted += 1
        else:
            gone = [frame for layer, frame in enumerate(block.frames) if frame and layers >> layer & 1]
            freed = sum(map(entry_charge, gone))
            block.frames = [None if layers >> layer & 1 else frame for layer, frame in enumerate(block.frames)]
            self.num_trimmed += len(gone)
        self._memory.free_all([frame.payload for frame in gone])
        self.num_entries -= len(gone)
        block.present &= ~layers
        block.charge -= freed
        self._charge(block.tenant, -freed)
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

    def _insert_each(self, blocks: Sequence[Block], frames: Sequence[Frame], tenant: Tenant) -> list[Refusal]:
        """Store those entries for which there is room, or can be made."""
        refused = []
        for block, frame in zip(blocks, frames, strict=True):
            refused += self.insert((block,), (frame,), len(frame.payload), tenant)
        return refused

    def _insert_all(self, blocks: Sequence[Block], frames: Sequence[Frame], payer: Tenant) -> list[Refusal]:
        """Store entries for which the budget has room, and one tenant pays; slots may lack all the same."""
        make = tuple.__new__
        refused: list[Refusal] = []
        complete: list[Block] = []
        num_stored = num_new = num_bytes = 0
        layout, last_layer, group = None, -1, 0
        try:
            for block, frame, kept in zip(blocks, frames, self._memory.keep_all([f[5] for f in frames]), strict=True):
                key, layer, codec, fidelity, raw_bytes, payload, checksum = frame
                charge = len(payload) + ENTRY_OVERHEAD_BYTES
                if kept is None:
                    try:
                        kept = self._keep(payload, payer, charge)
                    except Overloaded as error:
                        refused.append(Refusal(block, frame, error))
                        continue
                present = block.present
                if not present:
                    block.frames = [None] * block.layout.num_layers
                    block.tenant = payer
                    charge += BLOCK_OVERHEAD_BYTES
                    num_new += 1
                block.frames[layer] = make(Frame, (key, layer, codec, fidelity, raw_bytes, kept, checksum))
                block.present = present = present | 1 << layer
                block.charge += charge
                num_bytes += charge
                num_stored += 1
                if layer != last_layer or block.layout is not layout:
                    layout, last_layer = block.layout, layer
                    group = layout.group_layers[layer]
                if present & group == group:
                    complete.append(block)
        finally:
            self.num_entries += num_stored
            self.num_stored += num_new
            self._charge(payer, num_bytes)
        for block in complete:
            self._tell_groups(block)
        return refused

    def _keep(self, payload: Payload, payer: Tenant, charge: int) -> memoryview:
        """Evict until a payload can stay: slots of its size may run out before the budget does."""
        for _ in range(MAX_EVICTED_FOR_SLOT):
            self._evict_for(payer, charge)
            with suppress(Overloaded):
                return self._memory.keep(payload)
        raise Overloaded(f"no slot for {len(payload)} bytes, although {MAX_EVICTED_FOR_SLOT} blocks have gone for it")

    def make_slots(self, sizes: Sequence[int]) -> bool:
        """Evict until there are slots of all these sizes; False when what may go for them was not enough.

        Looking for slots takes longer the more are asked for, so it is done seldom: a quarter too much may go.
        """
        if sum(sizes) > self._memory.size_bytes:
            return False
        num_evicted = 0
        while not self._memory.has_room(sizes):
            if num_evicted >= MAX_EVICTED_FOR_SLOT * len(sizes):
                return False
            for _ in range(1 + num_evicted // 4):
                try:
                    self._evict_for(NO_TENANT, 0)
                except Overloaded:
                    return self._memory.has_room(sizes)
                num_evicted += 1
        return True

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

    def _charge(self, payer: Tenant, num_bytes: int) -> None:
        self.used_bytes += num_bytes
        if not self.tenants.charge(payer, num_bytes):
            self._eviction.forget_tenant(payer)

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
