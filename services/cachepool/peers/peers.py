"""Pulls of blocks from peer pools: this pool becomes their local writer, once for all readers that want them."""

import asyncio
from collections.abc import Sequence
from dataclasses import replace

from services.cachepool.links.links import PoolLinks
from services.cachepool.metrics import PoolMetrics
from services.cachepool.peers.pull import Pull, PullContext
from services.cachepool.peers.stream import PeerNetwork, Terms
from services.cachepool.peers.suspects import Suspects
from services.cachepool.settings import PoolSettings
from services.cachepool.store.sources import SourcedReader
from services.cachepool.store.store import Store
from shared.bus.events import LinkLoad
from shared.ids import Datacenter
from shared.kv.entries import BlockEntries
from shared.log import get_logger
from shared.pool.lanes.chosen import PoolLanes
from shared.rpc.client import Channels

log = get_logger()

LOST_PATIENCE_S = 1.0
"""How long readers wait at most for what a lost peer should have sent."""


class PeerPulls:
    """Owns the pulls in progress. First writer wins in the store, so each entry crosses from a peer at most once.

    A pull ends when the peer has sent or denied everything, at its deadline, when the peer is lost, or as soon as no
    reader wants any entry that it has still to fill. One from another datacenter comes over several connections.
    """

    def __init__(
        self,
        store: Store,
        channels: Channels,
        links: PoolLinks,
        metrics: PoolMetrics,
        settings: PoolSettings,
        lanes: PoolLanes,
        own_address: str = "",
    ) -> None:
        """`own_address`: a plan may name this node as a source; it never asks itself."""
        self._own_address = own_address
        self._store = store
        self._links = links
        self._metrics = metrics
        self.network = PeerNetwork(channels, links, lanes, settings.stall_s)
        self._context = PullContext(
            store,
            self.network,
            metrics,
            self._accuse,
            limit_s=settings.pull_timeout_s,
            num_connections=settings.link_connections,
        )
        self._suspects = Suspects(store.clock)
        self._pulls: set[Pull] = set()

    def start(self, sourced: SourcedReader) -> None:
        """Begin pulling what the reader wants, nobody writes, and a source of its may have."""
        for peer, blocks in sourced.next_requests(self._may_ask).items():
            self._begin(
                Terms(peer, sourced.layout, sourced.wait_s, sourced.is_background, sourced.reader.tenant), blocks
            )

    def hasten(self, sourced: SourcedReader) -> None:
        """Pull in the foreground what a foreground reader wants of pulls that run in the background.

        What of it is under way already crosses twice: a background stream's window at most.
        """
        if sourced.is_background:
            return
        for pull in [pull for pull in self._pulls if pull.terms.is_background]:
            if urgent := pull.wanted_by(sourced.reader):
                rest = pull.left()
                self._end(pull, "hastened")
                self._begin(replace(pull.terms, wait_s=sourced.wait_s, is_background=False), urgent)
                self._begin(pull.terms, rest)

    def cancel_unwanted(self) -> None:
        """Cancel the pulls that no reader waits for any more. Their grants are free when this returns."""
        for pull in [pull for pull in self._pulls if not self._store.is_awaited(pull.writer)]:
            if pull.writer.granted:
                self._end(pull, "cancelled")

    def link_loads(self) -> tuple[LinkLoad, ...]:
        """Return how the links from other datacenters do."""
        backlog: dict[Datacenter, int] = {}
        for pull in self._pulls:
            dc = pull.terms.peer.dc
            backlog[dc] = backlog.get(dc, 0) + pull.num_bytes_left
        return self._links.loads(lambda dc: backlog.get(dc, 0))

    def suspects(self) -> tuple[str, ...]:
        """Return the addresses of peers that nothing is pulled from at present."""
        return self._suspects.addresses()

    async def close(self) -> None:
        """Cancel every pull and wait for the ends."""
        pulls = list(self._pulls)
        for pull in pulls:
            self._end(pull, "cancelled")
        if tasks := [pull.task for pull in pulls if pull.task]:
            await asyncio.wait(tasks)

    def _begin(self, terms: Terms, blocks: Sequence[BlockEntries]) -> None:
        """Claim what of these entries is free and start a pull of it."""
        writer = self._store.open_writer(terms.tenant)
        grants = self._store.grant(writer, terms.layout, blocks)
        wanted = [BlockEntries(b.key, g.granted) for b, g in zip(blocks, grants, strict=True) if g.granted]
        if not wanted:
            self._store.abandon(writer)
            return
        pull = Pull(self._context, terms, writer)
        self._pulls.add(pull)
        pull.task = asyncio.create_task(self._run(pull, wanted), name=f"pull from {terms.peer.address}")
        pull.task.add_done_callback(_log_crash)

    async def _run(self, pull: Pull, blocks: Sequence[BlockEntries]) -> None:
        outcome = "failed"
        try:
            if await pull.run(blocks):
                outcome = "finished"
        finally:
            self._end(pull, outcome)

    def _end(self, pull: Pull, outcome: str) -> None:
        """Free the grants and count the outcome, once.

        A peer that is lost will not be asked again, and who computes for it cannot write there either: its readers wait
        for another source or a writer here, but not as long as for one that was promised.
        """
        if pull not in self._pulls:
            return
        self._pulls.remove(pull)
        self._metrics.pulls.labels(pull.terms.peer.address, outcome).inc()
        spent_s = max(0.0, pull.terms.wait_s - LOST_PATIENCE_S) if outcome == "failed" else 0.0
        self._store.abandon(pull.writer, self._store.clock() - spent_s)
        if pull.task is not None and not pull.task.done() and pull.task is not asyncio.current_task():
            pull.task.cancel()

    def _may_ask(self, address: str) -> bool:
        return address != self._own_address and not self._suspects.is_suspect(address)

    def _accuse(self, address: str, for_s: float) -> None:
        """Pull nothing more from a peer for a while."""
        if self._suspects.accuse(address, for_s):
            self._metrics.suspected.labels(address).inc()
            log.warning("peer_suspected", peer=address, for_s=for_s)


def _log_crash(task: "asyncio.Task[None]") -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        log.error("pull_crashed", pull=task.get_name(), exc_info=error)
