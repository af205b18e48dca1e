"""One question to a peer at the far end of a link, or a row of probes, each of which asks it for so many bytes."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from time import monotonic

from services.cachepool.peers.stream import PeerNetwork
from shared.deadline import Deadline
from shared.errors import DeadlineExceeded
from shared.lanes.settings import MAX_CONNECTIONS
from shared.pool.client import PoolClient
from shared.rpc.options import ChannelId

LIMIT_S = 3.0
"""Of one question or probe. A probe that is not over by then has seen a link that is slower than was thought."""

_ASKING = ChannelId(MAX_CONNECTIONS)
"""A connection that carries nothing else: in others a question would wait behind what is on its way."""

_FIRST_PROBING = MAX_CONNECTIONS + 1

MIN_SPAN_S = 0.01
"""Bytes that came in less count as having taken so long: arrivals are not told apart better."""


async def ask(network: PeerNetwork, address: str) -> float:
    """Return how long a peer took to answer a question, in seconds. Raises what `PoolClient.probe` raises."""
    asked_at = monotonic()
    client = PoolClient(network.channels, address, _ASKING)
    question = client.probe(0, network.links.dc, Deadline.after(LIMIT_S))
    async with aclosing(question) as answer:
        async for _ in answer:
            pass
    return monotonic() - asked_at


@asynccontextmanager
async def probes(network: PeerNetwork, address: str, num_connections: int) -> AsyncIterator["Probes"]:
    """Open connections for one row of probes, which close with the block.

    TCP connections that have seen a bad link keep to its speed for a long time after it is good again: congestion
    control must not rush. New ones find out within a few round trips.
    """
    channel_ids = [ChannelId(_FIRST_PROBING + number) for number in range(num_connections)]
    try:
        yield Probes(network, address, channel_ids)
    finally:
        await network.channels.forget(address, channel_ids)


class Probes:
    """A row of probes of one link over the same connections, as many as a pull would have."""

    def __init__(self, network: PeerNetwork, address: str, channel_ids: list[ChannelId]) -> None:
        self.num_bytes = 0
        """What they have brought in all."""
        self._network = network
        self._clients = [PoolClient(network.channels, address, channel_id) for channel_id in channel_ids]

    async def rate(self, num_bytes: int) -> float:
        """Ask for so many bytes; return the bytes per second after the first message, 0 when the probe had to give way.

        The first message pays for the round trip, the others only for the link. Raises what `PoolClient.probe` raises.
        """
        arrivals, deadline = _Arrivals(), Deadline.after(LIMIT_S)
        share = max(1, num_bytes // len(self._clients))
        results = await asyncio.gather(
            *(self._receive(client, share, deadline, arrivals) for client in self._clients), return_exceptions=True
        )
        self.num_bytes += arrivals.num_bytes
        failures = [result for result in results if isinstance(result, BaseException)]
        for failure in failures:
            if not isinstance(failure, DeadlineExceeded) or not arrivals.has_several:
                raise failure
        if not failures and arrivals.num_bytes < share * len(self._clients):
            return 0.0
        return arrivals.rate(monotonic() if failures else arrivals.last_at)

    async def _receive(self, client: PoolClient, num_bytes: int, deadline: Deadline, arrivals: "_Arrivals") -> None:
        async with aclosing(client.probe(num_bytes, self._network.links.dc, deadline)) as arriving:
            async for arrived in arriving:
                arrivals.add(sum(len(frame.payload) for frame in arrived.frames))


class _Arrivals:
    """What has come of one probe, over all its streams."""

    def __init__(self) -> None:
        self.num_bytes = self.first_bytes = 0
        self.first_at = self.last_at = 0.0

    @property
    def has_several(self) -> bool:
        return self.num_bytes > self.first_bytes

    def add(self, num_bytes: int) -> None:
        self.last_at = monotonic()
        if not self.num_bytes:
            self.first_bytes, self.first_at = num_bytes, self.last_at
        self.num_bytes += num_bytes

    def rate(self, until: float) -> float:
        return (self.num_bytes - self.first_bytes) / max(until - self.first_at, MIN_SPAN_S)
