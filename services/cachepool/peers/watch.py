"""Keeps what is known of the links true: asks and probes those that pause, and says when one has changed."""

import asyncio
from collections.abc import Callable, Coroutine

from services.cachepool.links.incoming import IncomingLink
from services.cachepool.peers.probe import MIN_SPAN_S, ask, probes
from services.cachepool.peers.stream import PeerNetwork
from shared.errors import PrfaasError
from shared.log import get_logger
from shared.metrics import Metrics

log = get_logger()

LOOK_EVERY_S = 0.1


class LinkWatch:
    """Looks at every link that was pulled over. At most one question or probe of a link is under way at a time."""

    def __init__(
        self,
        network: PeerNetwork,
        suspects: Callable[[], tuple[str, ...]],
        metrics: Metrics,
        clock: Callable[[], float],
        *,
        num_connections: int,
    ) -> None:
        """`num_connections`: of a pull from another datacenter."""
        self._network = network
        self._suspects = suspects
        self._clock = clock
        self._num_connections = num_connections
        self._asked: dict[IncomingLink, asyncio.Task[None]] = {}
        self._probes = metrics.counter("link_probes", "Probes of pausing links.", ["dc", "outcome"])
        self._probe_bytes = metrics.counter("link_probe_bytes", "Payload bytes that probes brought.", ["dc"])

    async def run(self, on_news: Callable[[], None]) -> None:
        """Look at the links for ever. `on_news` is called when the goodput of one is another than was known."""
        async with asyncio.TaskGroup() as asking:
            while True:
                links = self._network.links.incoming
                if [link for link in links if link.is_news()]:
                    on_news()
                for link in links:
                    task = self._asked.get(link)
                    if (task is None or task.done()) and (work := self._next(link)) is not None:
                        self._asked[link] = asking.create_task(work, name=f"asking {link.dc}")
                await asyncio.sleep(LOOK_EVERY_S)

    def _next(self, link: IncomingLink) -> Coroutine[None, None, None] | None:
        now, goodput = self._clock(), link.goodput
        link.probing.saw(now, goodput.bytes_per_s, is_sure=goodput.is_sure)
        address = link.peer(self._suspects())
        if address is None:
            return None
        if link.round_trip.is_due(now, is_pausing=link.is_pausing):
            link.round_trip.asked(now, is_pausing=link.is_pausing)
            return self._ask(link, address)
        if link.is_pausing and (num_bytes := link.probing.next_bytes(now, goodput.bytes_per_s)):
            return self._probe(link, address, num_bytes)
        return None

    async def _ask(self, link: IncomingLink, address: str) -> None:
        try:
            link.round_trip.answered(await ask(self._network, address))
        except PrfaasError as error:
            link.failed(address)
            log.debug("peer_not_answering", peer=address, error=str(error))

    async def _probe(self, link: IncomingLink, address: str, num_bytes: int) -> None:
        """Put a row of probes, of which the first has so many bytes."""
        async with probes(self._network, address, self._num_connections) as row:
            while num_bytes:
                crossed_bytes, outcome, rate = link.crossed_bytes, "gave_way", 0.0
                try:
                    rate = await row.rate(num_bytes)
                except PrfaasError as error:
                    outcome = "failed"
                    link.failed(address)
                    log.debug("probe_failed", peer=address, error=str(error))
                if rate and link.crossed_bytes == crossed_bytes:
                    outcome = "measured"
                self._probes.labels(link.dc, outcome).inc()
                num_bytes = self._learn(link, rate, num_bytes) if outcome == "measured" else self._give_up(link)
        self._probe_bytes.labels(link.dc).inc(row.num_bytes)

    def _learn(self, link: IncomingLink, rate: float, num_bytes: int) -> int:
        """Take in what a probe saw; return the size of the next one."""
        now, goodput = self._clock(), link.goodput
        if known := link.probing.ended(now, rate, goodput.bytes_per_s, link.round_trip.seconds):
            goodput.probed(known, max(MIN_SPAN_S, num_bytes / rate))
        return link.probing.next_bytes(now, goodput.bytes_per_s)

    def _give_up(self, link: IncomingLink) -> int:
        link.probing.failed(self._clock())
        return 0
