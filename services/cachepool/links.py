"""Links between datacenters: several connections for one pull, who goes first, what crossed and how fast."""

import asyncio
import math
from collections.abc import AsyncIterator, Callable, Hashable, Iterator, Sequence
from contextlib import asynccontextmanager

from prometheus_client import Counter
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from services.cachepool.goodput import Goodput
from shared.bus.events import LinkLoad
from shared.errors import BadRequest
from shared.ids import Datacenter
from shared.kv.frame import Frame
from shared.metrics import PREFIX, Metrics
from shared.rpc.convert import MAX_BATCH_BYTES
from shared.rpc.options import Lane

MIN_STREAM_BLOCKS = 4
"""Blocks that are worth a stream of their own."""

BACKGROUND_BATCH_BYTES = 64 * 1024
"""A foreground frame waits for at most one such message of each background stream."""

MAX_DATACENTERS = 64
"""Names come from requests: a bound on what is remembered of them."""


def lanes(num_blocks: int, num_connections: int, *, is_background: bool = False) -> list[Lane]:
    """Return the connections that a pull uses: few for few blocks.

    One TCP window does not fill a long fat pipe, and one lost packet halves only one of several windows.
    """
    num = max(1, min(num_connections, math.ceil(num_blocks / MIN_STREAM_BLOCKS)))
    return [Lane(number, is_background) for number in range(num)]


class Turns:
    """Who may send to one datacenter. Background streams wait while any foreground stream has something to send.

    A foreground stream holds its turn from when it has a frame until the connection has taken it: while the link is
    full, that is always, and background gets nothing. A link whose foreground waits for prefill is background's.
    """

    def __init__(self) -> None:
        self._num_foreground = 0
        self._free = asyncio.Event()
        self._free.set()

    @asynccontextmanager
    async def foreground(self) -> AsyncIterator[None]:
        """Hold the link for one message."""
        self._num_foreground += 1
        self._free.clear()
        try:
            yield
        finally:
            self._num_foreground -= 1
            if not self._num_foreground:
                self._free.set()

    @asynccontextmanager
    async def background(self) -> AsyncIterator[None]:
        """Wait until no foreground stream has anything to send."""
        while self._num_foreground:
            await self._free.wait()
        yield


class Outlet:
    """Where one stream's messages leave: their size, their turns, and the count of what crosses."""

    is_background = False
    max_batch_bytes = MAX_BATCH_BYTES

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """Enter with something ready, send one message of it, leave. At home nobody has to wait."""
        yield

    def sent(self, frames: Sequence[Frame]) -> None:
        """A message has left. Only what leaves the datacenter is counted here."""


class LinkOutlet(Outlet):
    """The outlet of a stream to a pool of another datacenter."""

    def __init__(self, turns: Turns, sent: tuple[Counter, Counter], *, is_background: bool) -> None:
        """`sent` counts entries and payload bytes."""
        self._turns = turns
        self._sent_entries, self._sent_bytes = sent
        self.is_background = is_background
        self.max_batch_bytes = BACKGROUND_BATCH_BYTES if is_background else MAX_BATCH_BYTES

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        async with self._turns.background() if self.is_background else self._turns.foreground():
            yield

    def sent(self, frames: Sequence[Frame]) -> None:
        self._sent_entries.inc(len(frames))
        self._sent_bytes.inc(sum(len(frame.payload) for frame in frames))


class Links:
    """All links of one pool, by the datacenter at the other end. Both ends count the payload that crossed."""

    def __init__(self, dc: Datacenter, metrics: Metrics, clock: Callable[[], float]) -> None:
        self.dc = dc
        self._clock = clock
        self._turns: dict[Datacenter, Turns] = {}
        self._goodputs: dict[Datacenter, Goodput] = {}
        self._crossed: dict[Datacenter, int] = {}
        sent, received = ["dc", "urgency"], ["dc"]
        self._sent = metrics.counter("link_sent_bytes", "Payload bytes sent to pools of another datacenter.", sent)
        self._sent_entries = metrics.counter("link_sent_entries", "Entries sent there.", sent)
        self._received = metrics.counter("link_received_bytes", "Payload bytes from pools of another one.", received)
        self._received_entries = metrics.counter("link_received_entries", "Entries from there.", received)

    def is_remote(self, dc: str) -> bool:
        return bool(dc) and dc != self.dc

    def outlet(self, dc: str, *, is_background: bool) -> Outlet:
        """Return where a stream to a reader in `dc` leaves. Raises `BadRequest` when there are too many of them."""
        if not self.is_remote(dc):
            return Outlet()
        if dc not in self._turns and len(self._turns) >= MAX_DATACENTERS:
            raise BadRequest(f"readers of {MAX_DATACENTERS} datacenters have asked already, {dc!r} would be one more")
        labels = (dc, "background" if is_background else "foreground")
        turns = self._turns.setdefault(Datacenter(dc), Turns())
        sent = (self._sent_entries.labels(*labels), self._sent.labels(*labels))
        return LinkOutlet(turns, sent, is_background=is_background)

    def arrived(self, dc: Datacenter, stream: Hashable, frames: Sequence[Frame]) -> None:
        """Count what one message brought; `stream` is whatever stands for its stream until `ended`.

        A message fills up only while the one before it is being sent: behind a full one more was ready. Background
        messages never get that full: what their small windows let through says little of the link.
        """
        sizes = [len(frame.payload) for frame in frames]
        num_bytes = sum(sizes)
        is_full = bool(sizes) and num_bytes + max(sizes) > MAX_BATCH_BYTES
        self._goodput(dc).arrived(stream, num_bytes, more=is_full)
        self._crossed[dc] = self._crossed.get(dc, 0) + num_bytes
        self._received.labels(dc).inc(num_bytes)
        self._received_entries.labels(dc).inc(len(frames))

    def ended(self, dc: Datacenter, stream: Hashable) -> None:
        self._goodput(dc).ended(stream)

    def loads(self, backlog_bytes: Callable[[Datacenter], int]) -> tuple[LinkLoad, ...]:
        """Return how the links that were pulled over do, for `prfaas.load`."""
        return tuple(
            LinkLoad(dc, goodput.bytes_per_s, backlog_bytes(dc), self._crossed.get(dc, 0))
            for dc, goodput in sorted(self._goodputs.items())
        )

    def _goodput(self, dc: Datacenter) -> Goodput:
        return self._goodputs.setdefault(dc, Goodput(self._clock))


class LinkCollector(Collector):
    """The links' estimates, read when scraped."""

    def __init__(self, loads: Callable[[], tuple[LinkLoad, ...]]) -> None:
        self._loads = loads

    def collect(self) -> Iterator[Metric]:
        goodput = GaugeMetricFamily(
            PREFIX + "link_goodput_bytes_per_s", "Smoothed, over the time in which there was something.", labels=["dc"]
        )
        backlog = GaugeMetricFamily(PREFIX + "link_backlog_bytes", "Asked for and not here yet.", labels=["dc"])
        for load in self._loads():
            goodput.add_metric([load.peer_dc], load.goodput_bytes_per_s)
            backlog.add_metric([load.peer_dc], load.backlog_bytes)
        yield goodput
        yield backlog
