"""The gateway's view of the world, which all its requests share."""

import time
from collections.abc import Sequence
from dataclasses import dataclass

from services.gateway.cluster.promises import Promises
from services.gateway.cluster.registry import Registry
from services.gateway.metrics import GatewayMetrics
from services.gateway.model import ServedModel
from services.gateway.placement.index import PlacementIndex
from services.gateway.placement.resume import needed_groups
from shared.ids import BlockKey
from shared.kv.rendezvous import partition
from shared.rpc.client import Channels

ASSUMED_S = 5.0
"""How long blocks that were seen to arrive are credited to a pool whose own event is still on its way."""


@dataclass(frozen=True)
class Cluster:
    """Fed by the bus, corrected by what calls show."""

    model: ServedModel
    index: PlacementIndex
    promises: Promises
    registry: Registry
    channels: Channels
    metrics: GatewayMetrics

    def assume(self, keys: Sequence[BlockKey], nodes: Sequence[str]) -> None:
        """Credit `nodes` with the blocks of a prefix that have come to them: the next request need not wait for events.

        `keys` are a request's blocks from the first one on; what a resume behind them does not need is not credited.
        """
        groups, until = needed_groups(self.model.layout, len(keys)), time.monotonic() + ASSUMED_S
        for node, blocks in partition(keys, nodes).items():
            holder = self.registry.pool_at(node)
            if holder is not None:
                self.index.assume(holder, [keys[block] for block in blocks], groups[blocks], until)
