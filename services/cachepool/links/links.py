"""Links between datacenters: several connections for one pull, who goes first, what crossed and how fast."""

import math
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager

from prometheus_client import Counter
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from services.cachepool.links.goodput import Goodput
from services.cachepool.links.incoming import IncomingLink
from services.cachepool.links.probing import Probing
from services.cachepool.links.rate_limiter import BACKGROUND_BATCH_BYTES, RateLimiter
from shared.bus.events import LinkLoad
from shared.errors import BadRequest
from shared.ids import Datacenter
from shared.kv.frame import Frame
from shared.metrics import PREFIX, Metrics
from shared.rpc.convert import MAX_BATCH_BYTES
from shared.rpc.options import ChannelId

MIN_STREAM_BLOCKS = 4
"""Blocks that are worth a stream of their own."""

ASSUMED_BYTES_PER_S = 2e6
"""Of a link that was never busy yet."""

MAX_DATACENTERS = 64
"""Names come from requests: a bound on what is remembered of them."""


def channel_ids(num_blocks: int, num_connections: int, *, is_background: bool = False) -> list[ChannelId]:
    """Return the connections that a pull uses: few for few blocks.

    One TCP window does not fill a long fat pipe, and one lost packet halves only one of several windows.
    """
    num = max(1, min(num_connections, math.ceil(num_blocks / MIN_STREAM_BLOCKS)))
    return [ChannelId(number, is_background) for number in range(num)]


class Sender:
    """Sends one stream's messages: says how large they are and when the next may leave, and counts what crosses."""

    is_background = False
    max_batch_bytes = MAX_BATCH_BYTES

    @asynccontextmanager
    async def permit(self, patience_s: float | None = None) -> AsyncIterator[bool]:
        """Hold the permit to send one message, which is ready. At home nobody has to wait.

        Yields whether it was granted within `patience_s`.
        """
        yield True

    def sent(self, frames: Sequence[Frame]) -> None:
        """A message has left. Only what leaves the datacenter is counted here."""


class LinkSender(Sender):
    """Sends to a pool of another datacenter, within the limits of the link."""

    def __init__(self, limiter: RateLimiter, sent: tuple[Counter, Counter], *, is_background: bool) -> None:
        """`sent` counts entries and payload bytes."""
        self._limiter = limiter
        self._sent_entries, self._sent_bytes = sent
        self.is_background = is_background
        self.max_batch_bytes = BACKGROUND_BATCH_BYTES if is_background else MAX_BATCH_BYTES

    @asynccontextmanager
    async def permit(self, patience_s: float | None = None) -> AsyncIterator[bool]:
        if self.is_background:
            async with self._limiter.background(patience_s) as is_granted:
                yield is_granted
        else:
            async with self._limiter.foreground():
                yield True

    def sent(self, frames: Sequence[Frame]) -> None:
        num_bytes = sum(len(frame.payload) for frame in frames)
        self._limiter.sent(num_bytes, is_background=self.is_background)
        self._sent_entries.inc(len(frames))
        self._sent_bytes.inc(num_bytes)


class Receiver:
    """Receives one stream's messages: says how long the next one may take, and counts what crosses."""

    def patience_s(self, stall_s: float) -> float:
        """Return how long to wait for a message of a peer that is well."""
        return stall_s

    def arrived(self, frames: Sequence[Frame], busy_s: float | None = None) -> None:
        """A message is here. Only what comes from another datacenter is counted.

        `busy_s`: how long the link was busy with it, if that was measured.
        """


class LinkReceiver(Receiver):
    """Receives from a pool of another datacenter."""

    def __init__(
        self, link: IncomingLink, address: str, received: tuple[Counter, Counter], clock: Callable[[], float]
    ) -> None:
        """`received` counts entries and payload bytes of the peer at `address`."""
        self._link = link
        self._goodput = link.goodput
        self._address = address
        self._received_entries, self._received_bytes = received
        self._clock = clock

    def patience_s(self, stall_s: float) -> float:
        """A link that is slow, or has many streams, brings no message of any of them for long: nobody hangs there."""
        speed = self._goodput.usual_bytes_per_s or ASSUMED_BYTES_PER_S
        return stall_s + 2 * max(1, self._goodput.num_carrying) * MAX_BATCH_BYTES / speed

    def arrived(self, frames: Sequence[Frame], busy_s: float | None = None) -> None:
        """A message fills up only while the one before it is being sent: behind a full one more was ready. Background
        messages never get that full: what their small windows let through says little of the link.
        """
        sizes = [len(frame.payload) for frame in frames]
        num_bytes = sum(sizes)
        is_full = bool(sizes) and num_bytes + max(sizes) > MAX_BATCH_BYTES
        if busy_s is None:
            self._goodput.arrived(self, num_bytes, more=is_full)
        else:
            self._goodput.carried(self, num_bytes, busy_s)
        if num_bytes:
            self._link.brought(self._address, num_bytes, self._clock())
        self._received_entries.inc(len(frames))
        self._received_bytes.inc(num_bytes)


class PoolLinks:
    """All links of one pool, by the datacenter at the other end. Both ends count the payload that crossed."""

    def __init__(self, dc: Datacenter, metrics: Metrics, clock: Callable[[], float]) -> None:
        self.dc = dc
        self._clock = clock
        self._limiters: dict[Datacenter, RateLimiter] = {}
        self._incoming: dict[Datacenter, IncomingLink] = {}
        sent, received = ["dc", "urgency"], ["dc"]
        self._sent = metrics.counter("link_sent_bytes", "Payload bytes sent to pools of another datacenter.", sent)
        self._sent_entries = metrics.counter("link_sent_entries", "Entries sent there.", sent)
        self._received = metrics.counter("link_received_bytes", "Payload bytes from pools of another one.", received)
        self._received_entries = metrics.counter("link_received_entries", "Entries from there.", received)

    def is_remote(self, dc: str) -> bool:
        return bool(dc) and dc != self.dc

    def sender(self, dc: str, *, is_background: bool) -> Sender:
        """Return where a stream to a reader in `dc` leaves. Raises `BadRequest` when there are too many of them."""
        if not self.is_remote(dc):
            return Sender()
        if dc not in self._limiters and len(self._limiters) >= MAX_DATACENTERS:
            raise BadRequest(f"readers of {MAX_DATACENTERS} datacenters have asked already, {dc!r} would be one more")
        labels = (dc, "background" if is_background else "foreground")
        limiter = self._limiters.setdefault(Datacenter(dc), RateLimiter())
        sent = (self._sent_entries.labels(*labels), self._sent.labels(*labels))
        return LinkSender(limiter, sent, is_background=is_background)

    @contextmanager
    def receiver(
        self, dc: Datacenter, address: str, receiving_s: Callable[[], float] = lambda: 0.0
    ) -> Iterator[Receiver]:
        """Open the receiver of one stream from the pool at `address` in `dc`.

        `receiving_s`: how long its connections have been busy with what has not come yet, where somebody knows.
        """
        if not self.is_remote(dc):
            yield Receiver()
            return
        link = self._incoming.get(dc)
        if link is None:
            link = self._incoming[dc] = IncomingLink(dc, Goodput(self._clock), Probing(self._clock()))
        received = (self._received_entries.labels(dc), self._received.labels(dc))
        receiver = LinkReceiver(link, address, received, self._clock)
        link.goodput.watch(receiver, receiving_s)
        try:
            yield receiver
        finally:
            link.goodput.ended(receiver)

    @property
    def incoming(self) -> list[IncomingLink]:
        """Return the links that were pulled over."""
        return [link for _, link in sorted(self._incoming.items())]

    def loads(self, backlog_bytes: Callable[[Datacenter], int]) -> tuple[LinkLoad, ...]:
        """Return how the links that were pulled over do, for `prfaas.load`."""
        return tuple(link.load(backlog_bytes(link.dc)) for link in self.incoming)


class LinkCollector(Collector):
    """The links' estimates, read when scraped."""

    def __init__(self, loads: Callable[[], tuple[LinkLoad, ...]]) -> None:
        self._loads = loads

    def collect(self) -> Iterator[Metric]:
        goodput = GaugeMetricFamily(
            PREFIX + "link_goodput_bytes_per_s", "Smoothed, over the time in which there was something.", labels=["dc"]
        )
        backlog = GaugeMetricFamily(PREFIX + "link_backlog_bytes", "Asked for and not here yet.", labels=["dc"])
        round_trip = GaugeMetricFamily(
            PREFIX + "link_round_trip_seconds",
            "Of a question to a pool there, at its least; 0: unknown.",
            labels=["dc"],
        )
        for load in self._loads():
            goodput.add_metric([load.peer_dc], load.goodput_bytes_per_s)
            backlog.add_metric([load.peer_dc], load.backlog_bytes)
            round_trip.add_metric([load.peer_dc], load.round_trip_s)
        yield from (goodput, backlog, round_trip)
