"""One link as the pool at its end sees it: goodput, probes of pauses and stalls are the real pool's."""

from collections.abc import Callable

import numpy as np

from services.cachepool.links.goodput import Goodput
from services.cachepool.links.incoming import IncomingLink
from services.cachepool.links.probing import Probing
from services.cachepool.peers.watch import LOOK_EVERY_S
from shared.bus.events import LinkLoad
from shared.ids import Datacenter
from simulator.events import EventLoop
from simulator.network.links import LinkSpec, SharedLink, Transfer
from simulator.outcome import LinkHistory

STREAM = "link"
"""All transfers of a link count as one stream: time that several are busy with counts once."""
LEAST_S = 1e-9


class WatchedTransfer:
    """A transfer whose reader gives up when the link stands still."""

    def __init__(self, transfer: Transfer, on_failed: Callable[[], None]) -> None:
        self.transfer = transfer
        self.on_failed = on_failed
        self.is_over = False

    def abandon(self) -> None:
        """End without a word; idempotent."""
        self.is_over = True
        self.transfer.abandon()


class WatchedLink:
    """Looks at a link every tenth of a second from its first transfer on, as a pool does.

    `on_news` is called when the goodput is another than was known. Probes are transfers like any other, which give way
    to those of requests.
    """

    def __init__(self, spec: LinkSpec, loop: EventLoop, seed: str, stall_s: float, on_news: Callable[[], None]) -> None:
        self.shared = SharedLink(spec, loop, seed)
        self.was_used = False
        self._loop = loop
        self._stall_s = stall_s
        self._on_news = on_news
        goodput = Goodput(lambda: loop.now_s)
        self._incoming = IncomingLink(Datacenter(spec.from_dc), goodput, Probing(loop.now_s))
        self._open: dict[WatchedTransfer, None] = {}
        self._probe: Transfer | None = None
        self._seen_bytes = self._seen_busy_s = 0.0
        self._moved_at_s = loop.now_s
        self._sampled_bytes = 0.0
        self._samples: list[tuple[float, float, float]] = []

    def open(self, on_arrived: Callable[[], None], on_failed: Callable[[], None]) -> WatchedTransfer:
        """Begin a transfer. Exactly one of the two is called, unless it is abandoned."""

        def arrived() -> None:
            if not watched.is_over:
                watched.is_over = True
                self._open.pop(watched, None)
                on_arrived()

        watched = WatchedTransfer(self.shared.open(arrived), on_failed)
        self._open[watched] = None
        if self._probe is not None:
            self._end_probe()
            self._incoming.probing.failed(self._loop.now_s)
        if not self.was_used:
            self.was_used = True
            self._moved_at_s = self._loop.now_s
            self._loop.after(LOOK_EVERY_S, self._look)
        return watched

    def load(self) -> LinkLoad:
        """Return what the pool reports."""
        load = self._incoming.load(int(self.shared.backlog_bytes))
        return load._replace(round_trip_s=self.shared.spec.round_trip_s)

    def sample(self, passed_s: float) -> None:
        """Record the use since the last sample."""
        shared = self.shared
        shared.sync()
        rate = (shared.crossed_bytes - self._sampled_bytes) / passed_s
        self._sampled_bytes = shared.crossed_bytes
        self._samples.append((rate, shared.capacity_bytes_per_s, shared.backlog_bytes))

    def history(self) -> LinkHistory:
        table = np.array(self._samples, np.float64).reshape(-1, 3)
        return LinkHistory(table[:, 0], table[:, 1], table[:, 2])

    def _look(self) -> None:
        incoming, now_s = self._incoming, self._loop.now_s
        self.shared.sync()
        if self._probe is None:
            self._measure(now_s)
        self._open = {watched: None for watched in self._open if not watched.is_over}
        if now_s - self._moved_at_s >= self._stall_s:
            self._give_up(now_s)
        if incoming.is_news():
            self._on_news()
        goodput = incoming.goodput
        incoming.probing.saw(now_s, goodput.bytes_per_s, is_sure=goodput.is_sure)
        if self._probe is None and not self.shared.num_flowing:
            self._put_probe(incoming.probing.next_bytes(now_s, goodput.bytes_per_s))
        self._loop.after(LOOK_EVERY_S, self._look)

    def _measure(self, now_s: float) -> None:
        """Tell the goodput what has crossed, and in how much time in which there was something to carry."""
        shared, incoming = self.shared, self._incoming
        num_bytes, busy_s = int(shared.crossed_bytes - self._seen_bytes), shared.busy_s - self._seen_busy_s
        self._seen_bytes, self._seen_busy_s = shared.crossed_bytes, shared.busy_s
        if busy_s > 0:
            incoming.goodput.carried(STREAM, num_bytes, busy_s)
        else:
            incoming.goodput.ended(STREAM)
        if num_bytes:
            incoming.brought(shared.spec.from_dc, num_bytes, now_s)
        if num_bytes or not shared.num_flowing:
            self._moved_at_s = now_s

    def _give_up(self, now_s: float) -> None:
        """End all transfers of a link that stands still."""
        self._moved_at_s = now_s
        failed, self._open = list(self._open), {}
        for watched in failed:
            watched.abandon()
        for watched in failed:
            watched.on_failed()

    def _put_probe(self, num_bytes: int) -> None:
        if not num_bytes:
            return
        began_s = self._loop.now_s + self.shared.spec.round_trip_s / 2

        def arrived() -> None:
            if self._probe is not probe:
                return
            self._end_probe()
            now_s, goodput, probing = self._loop.now_s, self._incoming.goodput, self._incoming.probing
            seconds = max(now_s - began_s, LEAST_S)
            seen = num_bytes / seconds
            if known := probing.ended(now_s, seen, goodput.bytes_per_s, self.shared.spec.round_trip_s):
                goodput.probed(known, seconds)
            self._put_probe(probing.next_bytes(now_s, goodput.bytes_per_s))

        probe = self._probe = self.shared.open(arrived)
        probe.offer(num_bytes)
        probe.close()

    def _end_probe(self) -> None:
        """Forget the probe; its bytes are no goodput."""
        if self._probe is not None:
            self._probe.abandon()
            self._probe = None
        self.shared.sync()
        self._seen_bytes, self._seen_busy_s = self.shared.crossed_bytes, self.shared.busy_s
