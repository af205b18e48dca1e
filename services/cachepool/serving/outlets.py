"""How the payloads of one Fetch stream leave: in its messages, named in shared memory, or on a link beside it."""

import asyncio
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any, Protocol

import grpc.aio

from services.cachepool.serving.batch_size import BatchSize
from shared.kv.frame import Frame
from shared.lanes.records import pack_records
from shared.lanes.settings import LaneName
from shared.lanes.shared_memory.client import AttachedClient
from shared.lanes.slots import SlotMemory
from shared.lanes.sockets.link import SocketLink
from shared.proto import prfaas_pb2 as pb
from shared.rpc.convert import MAX_BATCH_BYTES

Context = grpc.aio.ServicerContext[Any, Any]

MAPPED_BATCH_BYTES = 16 * 1024 * 1024
"""What one message names at most: names are small, and a reader that copies does so in one go."""


class Outlet(Protocol):
    """Where entries go that were taken for a reader."""

    @property
    def name(self) -> LaneName: ...

    def limit(self, num_bytes: int) -> int:
        """Return how much one `send` takes at most where a message would take `num_bytes`."""

    async def send(self, frames: Sequence[Frame]) -> None:
        """Pass frames on; returns when more may follow. Raises `LaneBroken`."""

    async def finish(self) -> None:
        """Return when all that was passed on has left. Raises `LaneBroken`."""


class MessageOutlet:
    """Frames in messages."""

    name: LaneName = "grpc"

    def __init__(self, context: Context) -> None:
        self._context = context

    def limit(self, num_bytes: int) -> int:
        return num_bytes

    async def send(self, frames: Sequence[Frame]) -> None:
        await self._context.write(frames)

    async def finish(self) -> None:
        pass


class MappedOutlet:
    """Frames that lie in memory which the reader has mapped: it is told where, and they stay until it lets go."""

    name: LaneName = "shared_memory"

    def __init__(self, context: Context, memory: SlotMemory, client: AttachedClient, stream: int) -> None:
        self._context = context
        self._memory = memory
        self._client = client
        self._stream = stream

    def limit(self, num_bytes: int) -> int:
        return MAPPED_BATCH_BYTES if num_bytes >= MAX_BATCH_BYTES else num_bytes

    async def send(self, frames: Sequence[Frame]) -> None:
        views = [frame.payload for frame in frames if isinstance(frame.payload, memoryview)]  # as all that is stored
        self._client.hold(self._stream, views)
        records = pack_records(frames, self._memory.places(views))
        await self._context.write(pb.FetchReply(placed=pb.RecordBatch(records=records)))

    async def finish(self) -> None:
        pass


class LinkedOutlet:
    """Frames on the connections of a link: a batch on each, and one that waits for it.

    A connection that has sent its batch finds the next one at once, and not when the event loop has time.
    """

    name: LaneName = "socket"

    def __init__(
        self,
        context: Context,
        link: SocketLink,
        stream: int,
        permit: Callable[[], AbstractAsyncContextManager[bool]],
        *,
        is_background: bool,
    ) -> None:
        """A batch holds a `permit` while it is being sent; one of background has had its own before."""
        self._context = context
        self._link = link
        self._stream = stream
        self._permit = permit
        self._is_background = is_background
        self._sending: set[asyncio.Task[None]] = set()
        self._num_sent = 0
        self._size = BatchSize(MAX_BATCH_BYTES)

    def limit(self, num_bytes: int) -> int:
        if num_bytes < MAX_BATCH_BYTES:  # the stream's first, or one of background
            return num_bytes
        return self._size.limit_bytes(self._link.num_connections)

    async def send(self, frames: Sequence[Frame]) -> None:
        is_first = not self._num_sent  # somebody can begin with it: what comes next is not to be in its way
        self._num_sent += len(frames)
        self._sending.add(asyncio.create_task(self._send(frames), name="batch on a link"))
        await self._until(0 if is_first else 2 * self._link.num_connections - 1)

    async def finish(self) -> None:
        await self._until(0)
        await self._context.write(pb.FetchReply(sent=pb.LaneCount(num_entries=self._num_sent)))

    async def close(self) -> None:
        """End what is still waiting for its turn."""
        for task in self._sending:
            task.cancel()
        if self._sending:
            await asyncio.wait(self._sending)

    async def _until(self, num_left: int) -> None:
        while len(self._sending) > max(0, num_left):
            done, self._sending = await asyncio.wait(self._sending, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()

    async def _send(self, frames: Sequence[Frame]) -> None:
        layer = frames[0].layer
        if self._is_background:
            await self._link.send(self._stream, frames, is_background=True, layer=layer)
            return
        async with self._permit():
            num_bytes = 0
            self._size.begun(time.monotonic())
            try:
                await self._link.send(self._stream, frames, layer=layer)
                num_bytes = sum(len(frame.payload) for frame in frames)
            finally:
                self._size.ended(num_bytes, time.monotonic())
