"""Pulls of blocks from peer pools: this pool becomes their local writer, once for all readers that want them."""

import asyncio
from collections.abc import Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from services.cachepool.block import Writer
from services.cachepool.integrity import check
from services.cachepool.metrics import PoolMetrics
from services.cachepool.store import Store
from services.cachepool.subscription import Subscription
from shared.deadline import Deadline
from shared.errors import CorruptFrame, Overloaded, PrfaasError
from shared.kv.entries import BlockEntries, Source
from shared.kv.frame import Frame
from shared.kv.layout import KvLayout
from shared.kv.rendezvous import owner_indices
from shared.log import get_logger
from shared.rpc.client import Channels
from shared.rpc.pool import PoolClient

log = get_logger()

MAX_REFETCHES = 16
"""A peer with more corrupt entries than this in one pull is not worth asking again."""


class SourcedReader:
    """A reader together with the sources that it named, each of which is asked for each block at most once."""

    def __init__(self, reader: Subscription, layout: KvLayout, sources: Sequence[Source], wait_s: float) -> None:
        self.reader = reader
        self.layout = layout
        self.wait_s = wait_s
        self._sources = sources
        self._owners = [_owners(reader, source) for source in sources]
        self._asked: set[tuple[int, int]] = set()  # (source, block index)

    def next_asks(self, own_address: str) -> dict[str, list[BlockEntries]]:
        """Return, by peer, the entries without a writer that an untried source may have. They count as asked."""
        asks: dict[str, list[BlockEntries]] = {}
        for index, layers in self.reader.without_writer():
            for number, source in enumerate(self._sources):
                if not source.first <= index < source.end or (number, index) in self._asked:
                    continue
                self._asked.add((number, index))
                peer = source.nodes[self._owners[number][index - source.first]]
                if peer != own_address:
                    asks.setdefault(peer, []).append(BlockEntries(self.reader.blocks[index].key, layers))
                    break
        return asks


def _owners(reader: Subscription, source: Source) -> NDArray[np.intp]:
    """Return for each block of a source's range which of its nodes is asked."""
    return owner_indices([block.key for block in reader.blocks[source.first : source.end]], source.nodes)


@dataclass(eq=False)
class _Pull:
    """One Fetch from a peer that fills the grants of one writer."""

    client: PoolClient
    layout: KvLayout
    writer: Writer
    started: float
    deadline: Deadline
    num_refetched: int = 0
    task: asyncio.Task[None] | None = field(default=None, repr=False)

    @property
    def peer(self) -> str:
        return self.client.address


class PeerPulls:
    """Owns the pulls in progress. First writer wins in the store, so each entry crosses from a peer at most once.

    A pull ends when the peer has sent or denied everything, at its deadline, when the peer is lost, or as soon as no
    reader wants any entry that it has still to fill.
    """

    def __init__(self, store: Store, channels: Channels, metrics: PoolMetrics, timeout_s: float) -> None:
        self.own_address = ""
        self._store = store
        self._channels = channels
        self._metrics = metrics
        self._timeout_s = timeout_s
        self._pulls: set[_Pull] = set()

    def start(self, sourced: SourcedReader) -> None:
        """Begin pulling what the reader wants, nobody writes, and a source of its may have."""
        for peer, blocks in sourced.next_asks(self.own_address).items():
            writer = self._store.open_writer()
            deadline = Deadline.after(self._timeout_s)
            client = PoolClient(self._channels, peer, keep=True)
            pull = _Pull(client, sourced.layout, writer, self._store.clock(), deadline)
            grants = self._store.grant(writer, sourced.layout, blocks)
            wanted = [BlockEntries(b.key, g.granted) for b, g in zip(blocks, grants, strict=True) if g.granted]
            self._pulls.add(pull)
            assert wanted, "entries without a writer were not granted"
            pull.task = asyncio.create_task(self._run(pull, wanted, sourced.wait_s), name=f"pull from {peer}")
            pull.task.add_done_callback(_log_crash)

    def cancel_unwanted(self) -> None:
        """Cancel the pulls that no reader waits for any more. Their grants are free when this returns."""
        for pull in [pull for pull in self._pulls if not self._store.is_awaited(pull.writer)]:
            if pull.writer.granted:
                self._end(pull, "cancelled")

    async def close(self) -> None:
        """Cancel every pull and wait for the ends."""
        pulls = list(self._pulls)
        for pull in pulls:
            self._end(pull, "cancelled")
        if tasks := [pull.task for pull in pulls if pull.task]:
            await asyncio.wait(tasks)

    def _end(self, pull: _Pull, outcome: str) -> None:
        """Free the grants and count the outcome, once."""
        if pull not in self._pulls:
            return
        self._pulls.remove(pull)
        self._metrics.pulls.labels(pull.peer, outcome).inc()
        self._store.abandon(pull.writer)
        if pull.task is not None and not pull.task.done() and pull.task is not asyncio.current_task():
            pull.task.cancel()

    async def _run(self, pull: _Pull, blocks: Sequence[BlockEntries], wait_s: float) -> None:
        outcome = "failed"
        try:
            async with asyncio.TaskGroup() as refetches:

                def fetch_again(entry: BlockEntries) -> None:
                    refetches.create_task(self._refetch(pull, entry))

                await self._receive(pull, blocks, wait_s, fetch_again)
            outcome = "finished"
        except* PrfaasError as failed:
            log.warning("pull_failed", peer=pull.peer, error=str(failed.exceptions[0]), num_blocks=len(blocks))
        finally:
            self._end(pull, outcome)

    async def _receive(
        self,
        pull: _Pull,
        blocks: Sequence[BlockEntries],
        wait_s: float,
        on_corrupt: Callable[[BlockEntries], None],
    ) -> None:
        """Store what the peer sends and release what it denies.

        A peer denies after it has waited for a writer as long as our reader would: patience counts from the start.
        """
        async with aclosing(pull.client.fetch(pull.layout, blocks, (), wait_s, pull.deadline)) as arrivals:
            async for arrived in arrivals:
                for denied in arrived.missing:
                    self._store.release(pull.writer, denied, pull.started)
                checked = await check(arrived.frames)
                misfits = [frame for frame in checked.intact if not self._put(pull, frame)]
                for frame in (*checked.corrupt, *misfits):
                    self._metrics.corrupt.labels(pull.peer).inc()
                    if 0 <= frame.layer < pull.layout.num_layers:  # else nobody can tell which entry this was
                        on_corrupt(BlockEntries(frame.key, 1 << frame.layer))

    async def _refetch(self, pull: _Pull, entry: BlockEntries) -> None:
        """Ask once more for an entry that came corrupt, alone; the pull gives it up when that fails too."""
        pull.num_refetched += 1
        try:
            if pull.num_refetched <= MAX_REFETCHES:
                await self._receive(pull, [entry], 0.0, lambda _entry: None)
        except PrfaasError as error:
            log.warning("refetch_failed", peer=pull.peer, error=str(error))
        self._store.release(pull.writer, entry, pull.started)

    def _put(self, pull: _Pull, frame: Frame) -> bool:
        """Store a frame whose checksum is right; False when it is not KV of this layout all the same."""
        try:
            self._store.put(pull.writer, frame)
        except Overloaded:
            self._metrics.refused.inc()
        except CorruptFrame:
            return False
        # It has crossed the link, stored or not.
        self._metrics.pulled.labels(pull.peer).inc()
        self._metrics.pulled_bytes.labels(pull.peer).inc(len(frame.payload))
        return True


def _log_crash(task: "asyncio.Task[None]") -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        log.error("pull_crashed", pull=task.get_name(), exc_info=error)
