"""Drives stores as prefill and decode do, request by request, on the trace's own clock."""

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from benchmarks.trace.source import BLOCK_TOKENS, TraceRequest
from services.cachepool.store.block import Block, Writer, whole_charge
from services.cachepool.store.eviction import Eviction
from services.cachepool.store.reuse import ATTENTION_EQUALS_LINEAR_TOKENS
from services.cachepool.store.store import Store
from shared.errors import Overloaded
from shared.ids import BlockKey
from shared.kv.codec import Codec, Fidelity
from shared.kv.entries import BlockEntries
from shared.kv.frame import Frame
from shared.kv.layout import KvLayout, LayerSpec, iter_layers
from simulator.caches.pool import NotCopied

DENSE = KvLayout((LayerSpec(None, 90, 64),), "bfloat16", BLOCK_TOKENS)
"""KV of SmolLM2's size, its 30 layers as one: the store then has one entry for each block."""

HYBRID = KvLayout((LayerSpec(None, 3, 256), LayerSpec(512, 15, 256)), "bfloat16", BLOCK_TOKENS)
"""KV of Gemma 3 270M's size: 3 full layers as one, 15 layers with a window of 512 as another."""

UNLIMITED = 1 << 62


class Lru(Eviction):
    """The policy to beat: whole blocks, chains from their ends, least recently used first."""

    def offer(self, block: Block) -> None:
        if not block.trimmable:
            super().offer(block)

    def _place(self, block: Block, *, trimmed: bool) -> tuple[int, float]:
        return 0, block.uses.last_at


@dataclass
class ReplayOutcome:
    """What a replay has counted."""

    blocks: int = 0  # in all prompts
    hits: int = 0  # blocks that needed no computing: all before them were there too
    crossed: int = 0  # of the hits, blocks that came from the other datacenter
    cost: float = 0.0  # to compute all prompts, in units of the time for a first block
    saved: float = 0.0

    @property
    def hit_percent(self) -> float:
        return 100 * self.hits / self.blocks

    @property
    def saved_percent(self) -> float:
        return 100 * self.saved / self.cost

    def count(self, num_blocks: int, num_hits: int, num_crossed: int) -> None:
        self.blocks += num_blocks
        self.hits += num_hits
        self.crossed += num_crossed
        self.cost += sum(map(_cost, range(num_blocks)))
        self.saved += sum(map(_cost, range(num_hits)))


@dataclass
class Datacenter:
    """One pool and the clock it lives by. Payloads of one size share their bytes: the budget counts lengths."""

    layout: KvLayout
    budget_bytes: int
    policy: type[Eviction]
    now: float = 0.0
    store: Store = field(init=False)
    payloads: list[bytes] = field(init=False)

    def __post_init__(self) -> None:
        self.store = Store(self.budget_bytes, lambda: self.now, policy=self.policy, memory=NotCopied())
        self.payloads = [bytes(self.layout.entry_bytes(layer)) for layer in range(self.layout.num_layers)]

    def serve(self, keys: Sequence[BlockKey], peer: "Datacenter | None") -> tuple[int, int]:
        """Claim the prompt's blocks, fetch what a cache has, store the rest, fetch all for decode.

        Returns how many leading blocks needed no computing, and how many of those were pulled from `peer`.
        """
        layout, store = self.layout, self.store
        here = [store.lookup(key) for key in keys]
        there = [peer.store.lookup(key) if peer else 0 for key in keys]
        start = layout.longest_resume([a | b for a, b in zip(here, there, strict=True)])
        needed = [layout.needed_layers(block, start) for block in range(start)]
        writer = store.open_writer()
        grants = store.grant(writer, layout, [BlockEntries(key, layout.all_layers) for key in keys])
        pulled = [mask & grant.granted for mask, grant in zip(needed, grants, strict=False)]
        if peer is not None and any(pulled):
            peer.fetch(keys[:start], pulled)
        self.fetch(keys[:start], needed)
        computed = [layout.all_layers] * (len(keys) - start)
        for key, grant, layers in zip(keys, grants, [*pulled, *computed], strict=True):
            for layer in iter_layers(grant.granted & layers):
                self._put(writer, key, layer)
        store.abandon(writer)
        self.fetch(keys, [layout.needed_layers(block, len(keys)) for block in range(len(keys))])
        return start, sum(1 for layers in pulled if layers)

    def fetch(self, keys: Sequence[BlockKey], layers: Sequence[int]) -> None:
        wanted = [BlockEntries(key, mask) for key, mask in zip(keys, layers, strict=True)]
        self.store.close(self.store.subscribe(self.layout, wanted, 0.0, lambda: None))

    def _put(self, writer: Writer, key: BlockKey, layer: int) -> None:
        payload = self.payloads[layer]
        try:
            self.store.put(writer, Frame(key, layer, Codec.RAW, Fidelity.LOSSLESS, len(payload), payload, 0))
        except Overloaded:
            pass  # a prompt larger than the pool: its readers would compute


class Setup(NamedTuple):
    """How requests and capacity are spread over datacenters."""

    num_dcs: int = 1
    split: str = ""  # requests go to a datacenter by conversation, or at random
    pooled: bool = False  # what a datacenter lacks comes from the other, and is stored once more where it came to

    def __str__(self) -> str:
        return f"two, by {self.split}, {'pooled' if self.pooled else 'separate'}" if self.num_dcs > 1 else "one"

    def dc_of(self, request: TraceRequest, number: int) -> int:
        name = request.conversation if self.split == "conversation" else number
        return random.Random(name).randrange(self.num_dcs)


def replay(
    requests: Sequence[TraceRequest], layout: KvLayout, capacity_blocks: int, policy: type[Eviction], setup: Setup
) -> ReplayOutcome:
    """Serve all requests; the datacenters share the capacity (in whole blocks) evenly."""
    budget_bytes = capacity_blocks * whole_charge(layout) // setup.num_dcs
    dcs = [Datacenter(layout, budget_bytes, policy) for _ in range(setup.num_dcs)]
    outcome = ReplayOutcome()
    for number, request in enumerate(requests):
        home = setup.dc_of(request, number)
        for dc in dcs:
            dc.now = request.at_s
        start, crossed = dcs[home].serve(request.keys, dcs[1 - home] if setup.pooled else None)
        outcome.count(len(request.keys), start, crossed)
    return outcome


def _cost(depth: int) -> float:
    """Return the time to compute a block behind `depth` others: attention grows with what is before it."""
    return 1 + depth * BLOCK_TOKENS / ATTENTION_EQUALS_LINEAR_TOKENS
