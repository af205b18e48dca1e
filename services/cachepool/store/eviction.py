"""What goes first when room is needed: window entries that no resume needs, then what is worth least of the rest."""

import heapq
from collections.abc import Callable, Sequence
from typing import NamedTuple

from services.cachepool.store.block import Block
from services.cachepool.store.guard import Guard
from services.cachepool.store.reuse import History, ReuseClock
from shared.tenant import Tenant

_SLACK = 256

DISPENSABLE, VALUED = 0, 1

HABIT = 3
"""Resumes at one place that make a habit: one made a chain's end there, and one went on. Whoever comes back to where
the last request went beyond makes it one at once: texts fork there."""


class Victim(NamedTuple):
    block: Block
    layers: int  # bitmask of the entries that go


class _Offer(NamedTuple):
    """A block's place in the order; compares by rank, worth and last use, never by block: `number` is unique."""

    rank: int
    worth: float
    tick: int  # the block's, when it was offered
    number: int
    whole: bool
    block: Block

    @property
    def layers(self) -> int:
        """What may still be evicted as it was offered: nothing once the block was used, held or followed."""
        block = self.block
        if block.tick != self.tick:
            return 0
        if self.whole:
            return block.present if block.evictable else 0
        return block.trimmable


class _Order:
    """A heap of offers, validated when popped; stale ones are swept once they outnumber the others."""

    def __init__(self) -> None:
        self._heap: list[_Offer] = []
        self._limit = _SLACK

    def push(self, offer: _Offer) -> None:
        heapq.heappush(self._heap, offer)
        if len(self._heap) > self._limit:
            live = {(offer.block.serial, offer.whole): offer for offer in self._heap if offer.layers}
            self._heap = list(live.values())
            heapq.heapify(self._heap)
            self._limit = 2 * len(self._heap) + _SLACK

    def pop(self) -> Victim | None:
        while self._heap:
            offer = heapq.heappop(self._heap)
            if offer.layers:
                return Victim(offer.block, offer.layers)
        return None


class Eviction:
    """The order in which unreferenced entries go. Never a block before those that follow it.

    First, oldest first: window entries of inner blocks, which only a resume right there needs, unless resumes there
    are a habit; and ends of chains whose window entries are gone, at which nothing can resume. Then whole blocks at the
    ends of chains and window entries where resumes are a habit, by worth (see `reuse`) where that is known to hit more
    than the order of last use does (see `guard`), else in that order. O(log n) for each operation.
    """

    def __init__(self, clock: Callable[[], float], *, by_tenant: bool) -> None:
        self.reuse = ReuseClock()
        self.history = History()
        self.guard = Guard()
        self._clock = clock
        self._by_tenant = by_tenant
        self._all = _Order()
        self._of_tenant: dict[Tenant, _Order] = {}
        self._num_uses = 0
        self._num_offers = 0

    def use(self, chain: Sequence[Block], is_tail: Callable[[int], bool], num_blocks: int) -> None:
        """Count a request that names a chain. `is_tail(i)`: it resumes or ends within a window behind block i.

        `num_blocks`: how many the pool has room for. Does not make blocks evictable: see `offer`.
        """
        self.touch(chain)
        now = self._clock()
        counted = []
        for index, block in enumerate(chain):
            if self.reuse.count(block.uses, now):
                counted.append(block)
            if block.layout.window_layers:
                was_inner, block.is_inner = block.is_inner, not is_tail(index)
                if not block.is_inner:
                    self.reuse.count(block.resumes, now, least=HABIT if was_inner else 1)
        self.guard.use(counted, self.reuse.bonus_s, num_blocks)

    def touch(self, chain: Sequence[Block]) -> None:
        """Make a chain the most recently used, its head last, without counting another use."""
        now = self._clock()
        for block in reversed(chain):
            self._num_uses += 1
            block.tick = self._num_uses
            block.uses.last_at = now

    def offer(self, block: Block) -> None:
        """Put what may be evicted of a block in its place; a no-op for what may not."""
        layers = block.trimmable
        if not layers and not block.evictable:
            return
        self._num_offers += 1
        rank, worth = self._place(block, trimmed=bool(layers))
        offer = _Offer(rank, worth, block.tick, self._num_offers, not layers, block)
        self._all.push(offer)
        if self._by_tenant:
            self._of_tenant.setdefault(block.tenant, _Order()).push(offer)

    def pop(self, tenant: Tenant | None = None) -> Victim | None:
        """Remove and return what is to be evicted next, of one tenant's or of all; None when everything is held."""
        order = self._all if tenant is None else self._of_tenant.get(tenant)
        return order.pop() if order else None

    def forget_tenant(self, tenant: Tenant) -> None:
        """A tenant stores nothing any more."""
        self._of_tenant.pop(tenant, None)

    def _place(self, block: Block, *, trimmed: bool) -> tuple[int, float]:
        pays = self.guard.worth_pays
        if trimmed:
            if block.resumes.count < HABIT:
                return DISPENSABLE, block.uses.last_at
            return VALUED, block.resumes.last_at + (self.reuse.resume_bonus_s(block) if pays else 0.0)
        windows = block.layout.window_layers
        if windows and block.present & windows != windows:
            return DISPENSABLE, block.uses.last_at
        return VALUED, block.uses.last_at + (self.reuse.bonus_s(block) if pays else 0.0)
