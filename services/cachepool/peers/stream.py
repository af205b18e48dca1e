"""One Fetch stream of a pull: its messages, each within the link's patience, and counted if they crossed one."""

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

from services.cachepool.links.links import PoolLinks
from services.cachepool.store.sources import Peer
from shared.deadline import Deadline
from shared.errors import DeadlineExceeded
from shared.kv.entries import BlockEntries
from shared.kv.layout import KvLayout
from shared.patience import Patience
from shared.pool.client import Crossing, PoolClient
from shared.pool.lanes.chosen import PoolLanes
from shared.pool.lanes.lane import Arrived
from shared.rpc.client import Channels
from shared.rpc.options import ChannelId
from shared.tenant import Tenant

HEARTBEATS_IN_PATIENCE = 3


@dataclass(frozen=True)
class PeerNetwork:
    """How peers are reached."""

    channels: Channels
    links: PoolLinks
    lanes: PoolLanes  # sockets beside the calls, where peers have them
    stall_s: float  # a peer that has sent nothing for so long, at home, is given up


@dataclass(frozen=True)
class Terms:
    """What all requests of one pull have in common."""

    peer: Peer
    layout: KvLayout
    wait_s: float
    is_background: bool
    tenant: Tenant  # of the reader whose want began it


class StreamRequest(NamedTuple):
    """What one stream asks for. Those of one share name the same blocks, and each brings a part of them."""

    blocks: Sequence[BlockEntries]
    wait_s: float
    channel_id: ChannelId
    share: bytes = b""
    doubted: bool = False  # these entries came corrupt before


async def arrivals(
    network: PeerNetwork, terms: Terms, request: StreamRequest, deadline: Deadline
) -> AsyncGenerator[Arrived, None]:
    """Yield what one stream brings. Raises what `PoolClient.fetch` raises, and `DeadlineExceeded` when it falls silent.

    A peer that has nothing to send yet, for prefill still computes it, says so in heartbeats. Silence is another thing.
    """
    peer, stall_s = terms.peer, network.stall_s
    dc = network.links.dc if network.links.is_remote(peer.dc) else ""
    crossing = Crossing(dc, terms.is_background, request.share, stall_s / HEARTBEATS_IN_PATIENCE)
    network.channels.expect(peer.address, peer.dc)
    client = PoolClient(network.channels, peer.address, request.channel_id, lanes=network.lanes)
    fetch = client.fetch(terms.layout, request.blocks, (), request.wait_s, deadline, crossing, doubted=request.doubted)
    receiving_s = partial(network.lanes.receiving_s, peer.address)
    with network.links.receiver(peer.dc, peer.address, receiving_s) as receiver:
        async with aclosing(fetch) as arriving:
            while True:
                patience_s = receiver.patience_s(stall_s)
                try:
                    async with Patience(patience_s):
                        arrived = await anext(arriving, None)
                except TimeoutError:
                    raise DeadlineExceeded(f"{peer.address} has sent nothing for {patience_s:.1f} s") from None
                if arrived is None:
                    return
                receiver.arrived(arrived.frames, arrived.busy_s)
                yield arrived
                del arrived  # the consumer's alone: this waits for the next one
