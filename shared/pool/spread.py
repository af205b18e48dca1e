"""A publication over several pool nodes: each block goes to its owner, and a node that is lost takes only its share."""

import asyncio
from collections.abc import Sequence
from typing import NamedTuple

from shared.deadline import Deadline
from shared.errors import PrfaasError, WorkerLost
from shared.ids import BlockKey
from shared.kv.entries import BlockEntries
from shared.kv.frame import Frame
from shared.kv.layout import KvLayout
from shared.kv.rendezvous import partition
from shared.log import get_logger
from shared.patience import Patience
from shared.pool.client import PoolClient
from shared.pool.lanes.lane import PublishLane
from shared.pool.publication import Grant, Publication

log = get_logger()

PATIENCE_S = 10.0
"""How long a node may take nothing, or leave a question open, before it is given up: all others wait for it."""

MAX_QUEUED = 2
"""Messages that may wait for one node, so that one which is slow for a moment does not hold the others up."""


class _Opening(NamedTuple):
    """A question to a node, in its place among the frames."""

    layout: KvLayout
    blocks: Sequence[BlockEntries]
    grant: "asyncio.Future[Grant]"

    def answer(self, grant: Grant) -> None:
        if not self.grant.done():
            self.grant.set_result(grant)


class _NodeWriter:
    """Owns the publication at one node: a task that writes what is queued and, once the node is lost, discards it."""

    def __init__(self, client: PoolClient, deadline: Deadline) -> None:
        self.lost: PrfaasError | None = None
        self._client = client
        self._deadline = deadline
        self._queue: asyncio.Queue[_Opening | Sequence[Frame] | None] = asyncio.Queue(MAX_QUEUED)
        self._publication: Publication | None = None
        self._writing: PublishLane | None = None  # outlives the publication: its room may be written into until the end
        self._task = asyncio.create_task(self._run(), name=f"publication at {client.address}")

    async def open(self, layout: KvLayout, blocks: Sequence[BlockEntries]) -> Grant:
        opening = _Opening(layout, blocks, asyncio.get_running_loop().create_future())
        try:
            async with Patience(PATIENCE_S):
                await self._queue.put(opening)
                return await opening.grant
        except TimeoutError:
            self._give_up()
            return _all_of(blocks)

    async def room(self, keys: Sequence[BlockKey], num_bytes: int) -> list[memoryview | None]:
        if self.lost is not None or self._publication is None:
            return [None] * len(keys)
        try:
            async with Patience(PATIENCE_S):
                return await self._publication.room(keys, num_bytes)
        except TimeoutError:
            self._give_up()
        except PrfaasError as error:
            self._lose(error)
        return [None] * len(keys)

    async def send(self, frames: Sequence[Frame]) -> None:
        try:
            async with Patience(PATIENCE_S):
                await self._queue.put(frames)
        except TimeoutError:
            self._give_up()

    async def close(self) -> None:
        """Return when the node has stored everything, or is lost."""
        try:
            async with Patience(PATIENCE_S):
                await self._queue.put(None)
                await asyncio.shield(self._task)
        except TimeoutError:
            self._give_up()

    async def abandon(self) -> None:
        """End the writer's lease, if it is still held. Idempotent."""
        self._task.cancel()
        await asyncio.wait({self._task})
        if self._writing is not None:
            self._writing.end()
        if not self._task.cancelled():
            self._task.result()

    async def _run(self) -> None:
        item: _Opening | Sequence[Frame] | None = None
        try:
            self._writing = await self._client.writing()
            async with self._client.publish_over(self._writing, self._deadline) as self._publication:
                while (item := await self._queue.get()) is not None:
                    await _write(item, self._publication)
            return
        except PrfaasError as error:
            self._lose(error)
        while item is not None:
            _discard(item)
            item = await self._queue.get()

    def _give_up(self) -> None:
        self._lose(WorkerLost(f"{self._client.address} has not answered for {PATIENCE_S:g} s"))
        if self._publication is not None:
            self._publication.cancel()  # what waits for the node now fails, and the task goes on to discard

    def _lose(self, error: PrfaasError) -> None:
        if self.lost is None:
            self.lost = error
            log.warning("pool_node_lost", node=self._client.address, code=error.code, error=str(error))


class SpreadPublication:
    """An open Publish stream at every node that owns something of what was opened.

    What a lost node should take is granted and dropped: nobody has it, so it is the writer's to compute, and its
    readers do without. Raises only when all nodes are lost.
    """

    def __init__(self, clients: Sequence[PoolClient], deadline: Deadline) -> None:
        self._clients = {client.address: client for client in clients}
        self._deadline = deadline
        self._writers: dict[str, _NodeWriter] = {}
        self._writer_of: dict[BlockKey, _NodeWriter] = {}

    async def open(self, layout: KvLayout, blocks: Sequence[BlockEntries]) -> Grant:
        """As `Publication.open`. A node is told of blocks without layers only where it owns others, too."""
        grant = Grant([0] * len(blocks), [0] * len(blocks))

        async def ask(node: str, share: Sequence[int]) -> None:
            writer = self._writer_at(node)
            self._writer_of.update((blocks[i].key, writer) for i in share)
            answer = await writer.open(layout, [blocks[i] for i in share])
            for i, granted, present in zip(share, answer.granted, answer.present, strict=True):
                grant.granted[i], grant.present[i] = granted, present

        async with asyncio.TaskGroup() as asking:
            for node, share in partition([block.key for block in blocks], list(self._clients)).items():
                if any(blocks[i].layers for i in share):
                    asking.create_task(ask(node, share))
        self._raise_if_alone()
        return grant

    async def room(self, keys: Sequence[BlockKey], num_bytes: int) -> list[memoryview | None]:
        """As `Publication.room`, of each block at its owner; the blocks were opened before."""
        slots: dict[BlockKey, memoryview | None] = {}
        shares: dict[_NodeWriter, list[BlockKey]] = {}
        for key in keys:
            shares.setdefault(self._writer_of[key], []).append(key)
        for writer, share in shares.items():
            slots |= zip(share, await writer.room(share, num_bytes), strict=True)
        return [slots[key] for key in keys]

    async def send(self, frames: Sequence[Frame]) -> None:
        """As `Publication.send`; the frames' blocks were opened before."""
        shares: dict[_NodeWriter, list[Frame]] = {}
        for frame in frames:
            shares.setdefault(self._writer_of[frame.key], []).append(frame)
        for writer, share in shares.items():
            await writer.send(share)
        self._raise_if_alone()

    async def close(self) -> None:
        """Say that nothing more comes and wait until every node has stored all of its own, or is lost."""
        await asyncio.gather(*(writer.close() for writer in self._writers.values()))
        self._raise_if_alone()

    async def abandon(self) -> None:
        """End the leases that are still held. Idempotent."""
        await asyncio.gather(*(writer.abandon() for writer in self._writers.values()))

    def _writer_at(self, node: str) -> _NodeWriter:
        if node not in self._writers:
            self._writers[node] = _NodeWriter(self._clients[node], self._deadline)
        return self._writers[node]

    def _raise_if_alone(self) -> None:
        errors = [writer.lost for writer in self._writers.values() if writer.lost is not None]
        if len(errors) == len(self._clients):
            raise errors[0]


async def _write(item: "_Opening | Sequence[Frame]", publication: Publication) -> None:
    if isinstance(item, _Opening):
        item.answer(await publication.open(item.layout, item.blocks))
    else:
        await publication.send(item)


def _discard(item: "_Opening | Sequence[Frame]") -> None:
    if isinstance(item, _Opening):
        item.answer(_all_of(item.blocks))


def _all_of(blocks: Sequence[BlockEntries]) -> Grant:
    return Grant([block.layers for block in blocks], [0] * len(blocks))
