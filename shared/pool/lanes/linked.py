"""Payloads on sockets beside the call, moved by threads: messages say only what does not come."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import ExitStack, suppress
from itertools import count
from typing import Any, TypeVar

from shared.errors import LaneBroken, PrfaasError
from shared.kv.frame import Frame
from shared.lanes.sockets.batch import MAX_ENTRIES
from shared.lanes.sockets.link import SocketLink
from shared.lanes.sockets.sending import OutgoingBatch
from shared.pool.lanes.lane import Arrived, AskRoom, Replies, Write, arrived
from shared.pool.wire import Unreadable
from shared.proto import prfaas_pb2 as pb

T = TypeVar("T")

TOGETHER_BYTES = 4 * 1024 * 1024
"""What a writer has sent in parts goes in one batch up to this size."""

LAST_PATIENCE_S = 10.0
"""How long what the pool says it has sent may take to come when it says nothing else any more."""


class LinkedLane:
    """A `Lane` over one link to a pool."""

    name = "socket"

    def __init__(self, link: SocketLink, *, verifies: bool) -> None:
        """`verifies`: the link has checked what it hands over."""
        self._link = link
        self._verifies = verifies
        self._streams = count(1)

    @property
    def is_broken(self) -> bool:
        return self._link.broken is not None

    def fetching(self) -> "LinkedFetch":
        return LinkedFetch(self._link, next(self._streams), verifies=self._verifies)

    def publishing(self) -> "LinkedPublish":
        return LinkedPublish(self._link, next(self._streams))

    async def close(self) -> None:
        await self._link.close()


class LinkedFetch:
    """A `FetchLane`: batches come on the link, all else in messages."""

    def __init__(self, link: SocketLink, stream: int, *, verifies: bool) -> None:
        """Raises `LaneBroken`."""
        self._verifies = verifies
        self.use = pb.LaneUse(kind=pb.LANE_KIND_SOCKET, attachment=link.number, stream=stream)
        self._open = ExitStack()
        self._batches = self._open.enter_context(link.incoming(stream))
        self._num_announced = 0
        self._num_received = 0

    async def arrivals(self, replies: Replies) -> AsyncGenerator[Arrived, None]:
        batches = aiter(self._batches)
        talking: asyncio.Task[pb.FetchReply | list[Frame] | Unreadable | None] | None
        talking = asyncio.create_task(_next(replies), name="fetch messages")
        carrying = asyncio.create_task(_next(batches), name="fetch batches")
        try:
            while talking is not None or self._num_received < self._num_announced:
                waiting: set[asyncio.Task[Any]] = {carrying} if talking is None else {carrying, talking}
                patience_s: float | None = LAST_PATIENCE_S if talking is None else None
                done, _ = await asyncio.wait(waiting, timeout=patience_s, return_when=asyncio.FIRST_COMPLETED)
                if not done:
                    raise LaneBroken(f"announced batches have not come for {LAST_PATIENCE_S:g} s")
                if carrying in done:
                    received = carrying.result()
                    if received is None:
                        raise LaneBroken("the link was closed")
                    carrying = asyncio.create_task(_next(batches), name="fetch batches")
                    self._num_received += received.num_entries
                    yield Arrived(received.frames, [], received.corrupt, self._verifies, received.busy_s)
                if talking in done:
                    reply = talking.result()
                    talking = None if reply is None else asyncio.create_task(_next(replies), name="fetch messages")
                    if isinstance(reply, pb.FetchReply) and reply.HasField("sent"):
                        self._num_announced = reply.sent.num_entries
                    elif reply is not None:
                        yield arrived(reply)
        finally:
            tasks = {carrying} if talking is None else {carrying, talking}
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)

    def end(self) -> None:
        self._open.close()


class LinkedPublish:
    """A `PublishLane`: batches go on the link, as many at a time as it has connections, and their number in the end.

    While they are on their way the writer can seal more: what it sends meanwhile goes together in the next batch. That
    a batch failed is said by a later call.
    """

    def __init__(self, link: SocketLink, stream: int) -> None:
        self._link = link
        self._stream = stream
        self.use = pb.LaneUse(kind=pb.LANE_KIND_SOCKET, attachment=link.number, stream=stream)
        self._num_sent = 0
        self._waiting: list[Frame] = []
        self._waiting_bytes = 0
        self._under_way: list[OutgoingBatch] = []  # or failed

    async def room(self, ask: AskRoom, num_slots: int, slot_bytes: int, num_to_come: int) -> list[memoryview]:
        return []

    async def send(self, frames: Sequence[Frame], write: Write) -> None:
        num_bytes = sum(len(frame.payload) for frame in frames)
        while self._waiting and (
            self._waiting_bytes + num_bytes > TOGETHER_BYTES or len(self._waiting) + len(frames) > MAX_ENTRIES
        ):
            await self._until_one_is_sent()
        self._waiting += frames
        self._waiting_bytes += num_bytes
        self._num_sent += len(frames)
        self._post()

    async def finish(self, write: Write) -> None:
        while self._waiting or self._under_way:
            await self._until_one_is_sent()
        if self._num_sent:  # else the stream may not even have been opened
            await write(pb.PublishRequest(sent=pb.LaneCount(num_entries=self._num_sent)))

    def end(self) -> None:
        self._waiting = []
        for batch in self._under_way:
            self._link.withdraw(batch)
        self._under_way = []

    def _post(self) -> None:
        """Send what waits if a connection is free. Raises `LaneBroken`, `BadRequest`; it waits on then."""
        self._under_way = [batch for batch in self._under_way if not _is_sent(batch)]
        if self._waiting and len(self._under_way) < max(1, self._link.num_connections):
            batch = self._link.post(self._stream, self._waiting, layer=self._waiting[0].layer)
            self._waiting, self._waiting_bytes = [], 0
            self._under_way.append(batch)
            batch.done.add_done_callback(lambda _: self._on_done(batch))

    def _on_done(self, batch: OutgoingBatch) -> None:
        if _is_sent(batch):
            with suppress(PrfaasError):  # what waits is tried again by the next call, which says so
                self._post()

    async def _until_one_is_sent(self) -> None:
        self._post()
        if self._under_way:
            done, _ = await asyncio.wait([batch.done for batch in self._under_way], return_when=asyncio.FIRST_COMPLETED)
            for each in done:
                each.result()
            self._post()


def _is_sent(batch: OutgoingBatch) -> bool:
    return batch.done.done() and not batch.done.cancelled() and batch.done.exception() is None


async def _next(items: AsyncIterator[T]) -> T | None:
    return await anext(items, None)
