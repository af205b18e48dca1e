"""Blocks that requests saw arrive in a pool, ahead of the pool's own events."""

import time
from collections.abc import Callable, Sequence

from services.gateway.cluster.registry import Registry
from services.gateway.placement.index import PlacementIndex
from shared.ids import BlockKey
from shared.kv.layout import KvLayout
from shared.kv.rendezvous import partition
from shared.kv.resume import needed_groups

ASSUMED_S = 5.0
"""How long blocks that were seen to arrive are credited to a pool whose own event is still on its way."""


class Arrivals:
    """Tells the placement index, so that the next request need not wait for events."""

    def __init__(
        self,
        index: PlacementIndex,
        registry: Registry,
        layout: KvLayout,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._index = index
        self._registry = registry
        self._layout = layout
        self._clock = clock

    def note(self, keys: Sequence[BlockKey], nodes: Sequence[str]) -> None:
        """Credit `nodes` with the blocks of a prefix that have come to them.

        `keys` are a request's blocks from the first one on; what a resume behind them does not need is not credited.
        """
        if not keys:
            return
        groups, until = needed_groups(self._layout, len(keys)), self._clock() + ASSUMED_S
        for node, blocks in partition(keys, nodes).items():
            holder = self._registry.pool_at(node)
            if holder is not None:
                self._index.assume(holder, [keys[block] for block in blocks], groups[blocks], until)
