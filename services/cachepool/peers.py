"""Pulls of blocks from peer pools: this pool becomes their local writer, once for all readers that want them."""

import asyncio
import os
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from services.cachepool.block import Writer
from services.cachepool.integrity import check
from services.cachepool.links import Links, lanes
from services.cachepool.metrics import PoolMetrics
from services.cachepool.settings import PoolSettings
from services.cachepool.shares import SHARE_ID_BYTES
from services.cachepool.store import Store
from services.cachepool.subscription import Subscription
from services.cachepool.suspects import SUSPECT_S, Suspects
from shared.bus.events import LinkLoad
from shared.deadline import Deadline
from shared.errors import CorruptFrame, Overloaded, PrfaasError
from shared.ids import Datacenter
from shared.kv.entries import BlockEntries, Source
from shared.kv.frame import Frame
from shared.kv.layout import KvLayout
from shared.kv.rendezvous import owner_indices
from shared.log import get_logger
from shared.rpc.client import Channels
from shared.rpc.options import Lane
from shared.rpc.pool import Arrived, Crossing, PoolClient

log = get_logger()

MAX_REFETCHES = 16
"""A peer with more corrupt entries than this in one pull is not worth asking again."""

LOST_PATIENCE_S = 1.0
"""How long readers wait at most for what a lost peer should have sent."""


class Peer(NamedTuple):
    """A pool that entries are pulled from."""

    address: str
    dc: Datacenter  # empty: this one


class SourcedReader:
    """A reader together with the sources that it named, each of which is asked for each block at most once."""

    def __init__(
        self,
        reader: Subscription,
        layout: KvLayout,
        sources: Sequence[Source],
        wait_s: float,
        *,
        is_background: bool = False,
    ) -> None:
        self.reader = reader
        self.layout = layout
        self.wait_s = wait_s
        self.is_background = is_background
        self._sources = sources
        self._owners = [_owners(reader, source) for source in sources]
        self._asked: set[tuple[int, int]] = set()  # (source, block index)

    def next_asks(self, may_ask: Callable[[str], bool]) -> dict[Peer, list[BlockEntries]]:
        """Return, by peer, the entries without a writer that an untried source may have. They count as asked.

        `may_ask(address)` says of a peer whether it is asked at all.
        """
        asks: dict[Peer, list[BlockEntries]] = {}
        for index, layers in self.reader.without_writer():
            for number, source in enumerate(self._sources):
                if not source.first <= index < source.end or (number, index) in self._asked:
                    continue
                self._asked.add((number, index))
                address = source.nodes[self._owners[number][index - source.first]]
                if may_ask(address):
                    block = BlockEntries(self.reader.blocks[index].key, layers)
                    asks.setdefault(Peer(address, source.dc), []).append(block)
                    break
        return asks


def _owners(reader: Subscription, source: Source) -> NDArray[np.intp]:
    """Return for each block of a source's range which of its nodes is asked."""
    return owner_indices([block.key for block in reader.blocks[source.first : source.end]], source.nodes)


@dataclass(frozen=True)
class _Terms:
    """How a pull asks."""

    peer: Peer
    layout: KvLayout
    wait_s: float
    is_background: bool
    tenant: str  # of the reader whose want began it


class _Ask(NamedTuple):
    """One Fetch stream of a pull. Those of one share name the same blocks, and each brings a part of them."""

    blocks: Sequence[BlockEntries]
    wait_s: float
    lane: Lane
    share: bytes = b""


@dataclass(eq=False)
class _Pull:
    """One or more Fetch streams from a peer that fill the grants of one writer."""

    terms: _Terms
    writer: Writer
    started: float
    deadline: Deadline
    num_refetched: int = 0
    task: asyncio.Task[None] | None = field(default=None, repr=False)

    @property
    def address(self) -> str:
        return self.terms.peer.address

    @property
    def layout(self) -> KvLayout:
        return self.terms.layout

    def left(self) -> list[BlockEntries]:
        """Return what has still to come, in chain order."""
        blocks = sorted(self.writer.granted.items(), key=lambda item: item[0].serial)
        return [BlockEntries(block.key, layers) for block, layers in blocks]

    def wanted_by(self, reader: Subscription) -> list[BlockEntries]:
        """Return what of it a reader waits for, in the reader's order."""
        granted = self.writer.granted
        wanted = ((block, granted.get(block, 0) & reader.wants(index)) for index, block in enumerate(reader.blocks))
        return [BlockEntries(block.key, layers) for block, layers in wanted if layers]


class PeerPulls:
    """Owns the pulls in progress. First writer wins in the store, so each entry crosses from a peer at most once.

    A pull ends when the peer has sent or denied everything, at its deadline, when the peer is lost, or as soon as no
    reader wants any entry that it has still to fill. One from another datacenter comes over several connections.
    """

    def __init__(
        self, store: Store, channels: Channels, links: Links, metrics: PoolMetrics, settings: PoolSettings
    ) -> None:
        self.own_address = ""
        self._store = store
        self._channels = channels
        self._links = links
        self._metrics = metrics
        self._settings = settings
        self._suspects = Suspects(store.clock)
        self._pulls: set[_Pull] = set()

    def start(self, sourced: SourcedReader) -> None:
        """Begin pulling what the reader wants, nobody writes, and a source of its may have."""
        for peer, blocks in sourced.next_asks(self._may_ask).items():
            self._begin(
                _Terms(peer, sourced.layout, sourced.wait_s, sourced.is_background, sourced.reader.tenant), blocks
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
            num_bytes = sum(pull.layout.mask_bytes(layers) for layers in pull.writer.granted.values())
            backlog[pull.terms.peer.dc] = backlog.get(pull.terms.peer.dc, 0) + num_bytes
        return self._links.loads(lambda dc: backlog.get(dc, 0))

    async def close(self) -> None:
        """Cancel every pull and wait for the ends."""
        pulls = list(self._pulls)
        for pull in pulls:
            self._end(pull, "cancelled")
        if tasks := [pull.task for pull in pulls if pull.task]:
            await asyncio.wait(tasks)

    def _begin(self, terms: _Terms, blocks: Sequence[BlockEntries]) -> None:
        """Claim what of these entries is free and start a pull of it."""
        writer = self._store.open_writer(terms.tenant)
        pull = _Pull(terms, writer, self._store.clock(), Deadline.after(self._settings.pull_timeout_s))
        grants = self._store.grant(writer, terms.layout, blocks)
        wanted = [BlockEntries(b.key, g.granted) for b, g in zip(blocks, grants, strict=True) if g.granted]
        if not wanted:
            self._store.abandon(writer)
            return
        self._pulls.add(pull)
        pull.task = asyncio.create_task(self._run(pull, wanted), name=f"pull from {terms.peer.address}")
        pull.task.add_done_callback(_log_crash)

    def _end(self, pull: _Pull, outcome: str) -> None:
        """Free the grants and count the outcome, once.

        A peer that is lost will not be asked again, and who computes for it cannot write there either: its readers wait
        for another source or a writer here, but not as long as for one that was promised.
        """
        if pull not in self._pulls:
            return
        self._pulls.remove(pull)
        self._metrics.pulls.labels(pull.address, outcome).inc()
        spent_s = max(0.0, pull.terms.wait_s - LOST_PATIENCE_S) if outcome == "failed" else 0.0
        self._store.abandon(pull.writer, self._store.clock() - spent_s)
        if pull.task is not None and not pull.task.done() and pull.task is not asyncio.current_task():
            pull.task.cancel()

    async def _run(self, pull: _Pull, blocks: Sequence[BlockEntries]) -> None:
        outcome = "failed"
        num_connections = self._settings.link_connections if self._links.is_remote(pull.terms.peer.dc) else 1
        try:
            async with asyncio.TaskGroup() as streams:

                def fetch_again(entry: BlockEntries) -> None:
                    streams.create_task(self._refetch(pull, entry))

                used = lanes(len(blocks), num_connections, is_background=pull.terms.is_background)
                share = os.urandom(SHARE_ID_BYTES) if len(used) > 1 else b""
                for lane in used:
                    ask = _Ask(blocks, pull.terms.wait_s, lane, share)
                    streams.create_task(self._receive(pull, ask, fetch_again))
            outcome = "finished"
        except* PrfaasError as failed:
            log.warning("pull_failed", peer=pull.address, error=str(failed.exceptions[0]), num_blocks=len(blocks))
        finally:
            self._end(pull, outcome)

    async def _receive(self, pull: _Pull, ask: _Ask, on_corrupt: Callable[[BlockEntries], None]) -> None:
        """Store what the peer sends and release what it denies.

        A peer denies after it has waited for a writer as long as our reader would: patience counts from the start.
        """
        async with aclosing(self._arrivals(pull, ask)) as arrivals:
            async for arrived in arrivals:
                for denied in arrived.missing:
                    self._store.release(pull.writer, denied, pull.started)
                checked = check(arrived.frames, self._store.memory.keep)
                misfits = [frame for frame in checked.intact if not self._put(pull, frame)]
                for frame in (*checked.corrupt, *misfits):
                    self._metrics.corrupt.labels(pull.address).inc()
                    if 0 <= frame.layer < pull.layout.num_layers:  # else nobody can tell which entry this was
                        on_corrupt(BlockEntries(frame.key, 1 << frame.layer))

    async def _arrivals(self, pull: _Pull, ask: _Ask) -> AsyncGenerator[Arrived, None]:
        """Yield what one stream brings; what comes from another datacenter is accounted for."""
        dc = pull.terms.peer.dc
        client = PoolClient(self._channels, pull.address, ask.lane)
        if not self._links.is_remote(dc):
            fetch = client.fetch(pull.layout, ask.blocks, (), ask.wait_s, pull.deadline)
            async with aclosing(fetch) as arrivals:
                async for arrived in arrivals:
                    yield arrived
            return
        crossing = Crossing(self._links.dc, pull.terms.is_background, ask.share)
        fetch, stream = client.fetch(pull.layout, ask.blocks, (), ask.wait_s, pull.deadline, crossing), object()
        try:
            async with aclosing(fetch) as arrivals:
                async for arrived in arrivals:
                    self._links.arrived(dc, stream, arrived.frames)
                    yield arrived
        finally:
            self._links.ended(dc, stream)

    async def _refetch(self, pull: _Pull, entry: BlockEntries) -> None:
        """Ask once more for an entry that came corrupt, alone; the pull gives it up when that fails too."""
        pull.num_refetched += 1
        try:
            if pull.num_refetched <= MAX_REFETCHES:
                lane = Lane(is_background=pull.terms.is_background)
                await self._receive(pull, _Ask([entry], 0.0, lane), lambda _entry: self._accuse(pull.address))
            else:
                self._accuse(pull.address)
        except PrfaasError as error:
            log.warning("refetch_failed", peer=pull.address, error=str(error))
        self._store.release(pull.writer, entry, pull.started)

    def _may_ask(self, address: str) -> bool:
        return address != self.own_address and not self._suspects.is_suspect(address)

    def _accuse(self, address: str) -> None:
        """A peer has sent an entry corrupt twice: nothing more is pulled from it for a while."""
        if self._suspects.accuse(address):
            self._metrics.suspected.labels(address).inc()
            log.warning("peer_suspected", peer=address, for_s=SUSPECT_S)

    def _put(self, pull: _Pull, frame: Frame) -> bool:
        """Store a frame whose checksum is right; False when it is not KV of this layout all the same."""
        try:
            self._store.put(pull.writer, frame)
        except Overloaded:
            self._metrics.refused.inc()
        except CorruptFrame:
            return False
        # It has crossed the link, stored or not.
        self._metrics.pulled.labels(pull.address).inc()
        self._metrics.pulled_bytes.labels(pull.address).inc(len(frame.payload))
        return True


def _log_crash(task: "asyncio.Task[None]") -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        log.error("pull_crashed", pull=task.get_name(), exc_info=error)
