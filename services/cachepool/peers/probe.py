"""One question or probe of a link, put to a peer at its far end."""

import asyncio
from contextlib import aclosing
from time import monotonic

from services.cachepool.peers.stream import PeerNetwork
from shared.deadline import Deadline
from shared.errors import DeadlineExceeded
from shared.pool.client import PoolClient
from shared.pool.lanes.lane import Lane
from shared.pool.lanes.messages import IN_MESSAGES
from shared.rpc.options import ChannelId

LIMIT_S = 3.0
"""Of one question or probe. A probe that is not over by then has seen a link that is slower than was thought."""

STREAM_BYTES = 64 * 1024
"""A probe in messages has a stream for so many bytes, at most as many as a pull has."""

MIN_SPAN_S = 0.01
"""Bytes that came in less count as having taken so long: arrivals are not told apart better."""


async def ask(network: PeerNetwork, address: str) -> float:
    """Return how long a peer took to answer a question, in seconds. Raises what `PoolClient.probe` raises."""
    asked_at = monotonic()
    question = PoolClient(network.channels, address).probe(0, network.links.dc, IN_MESSAGES, Deadline.after(LIMIT_S))
    async with aclosing(question) as answer:
        async for _ in answer:
            pass
    return monotonic() - asked_at


class Probe:
    """So many bytes from a peer, over the lane and the connections that a pull would use."""

    def __init__(self, network: PeerNetwork, address: str, num_bytes: int, num_connections: int) -> None:
        self.num_bytes = 0
        """What has come."""
        self._network = network
        self._address = address
        self._asked_bytes = num_bytes
        self._num_connections = num_connections
        self._first_bytes = 0
        self._first_at = self._last_at = 0.0

    async def rate(self) -> float:
        """Return the bytes per second after the first message; 0 when the probe gave way to other streams.

        The first message pays for the round trip, the others only for the link. Raises what `PoolClient.probe` raises.
        """
        lane = await self._network.lanes.to(self._address)
        most = 1 if lane is not IN_MESSAGES else self._num_connections  # a link has connections of its own
        num = max(1, min(most, self._asked_bytes // STREAM_BYTES))
        sizes = [self._asked_bytes // num] * num
        deadline = Deadline.after(LIMIT_S)
        results = await asyncio.gather(
            *(self._receive(lane, ChannelId(number), size, deadline) for number, size in enumerate(sizes)),
            return_exceptions=True,
        )
        for result in results:
            if isinstance(result, DeadlineExceeded) and self.num_bytes > self._first_bytes:
                self._last_at = monotonic()
            elif isinstance(result, BaseException):
                raise result
        if self.num_bytes < sum(sizes) and not any(results):
            return 0.0
        return (self.num_bytes - self._first_bytes) / max(self._last_at - self._first_at, MIN_SPAN_S)

    async def _receive(self, lane: Lane, channel_id: ChannelId, num_bytes: int, deadline: Deadline) -> None:
        client = PoolClient(self._network.channels, self._address, channel_id)
        async with aclosing(client.probe(num_bytes, self._network.links.dc, lane, deadline)) as arriving:
            async for arrived in arriving:
                self._count(sum(len(frame.payload) for frame in arrived.frames))

    def _count(self, num_bytes: int) -> None:
        self._last_at = monotonic()
        if not self.num_bytes:
            self._first_bytes, self._first_at = num_bytes, self._last_at
        self.num_bytes += num_bytes
