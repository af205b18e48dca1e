"""Payloads on sockets beside the call, moved by threads: messages say only what does not come."""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import ExitStack, suppress
from itertools import count

from shared.errors import LaneBroken, PrfaasError
from shared.kv.frame import Frame
from shared.lanes.sockets.batch import MAX_ENTRIES, Received
from shared.lanes.sockets.link import SocketLink
from shared.lanes.sockets.sending import OutgoingBatch
from shared.pool.lanes.lane import Arrived, AskRoom, Replies, Write, arrived
from shared.pool.wire import Unreadable
from shared.proto import prfaas_pb2 as pb

TOGETHER_BYTES = 4 * 1024 * 1024
"""What a writer has sent in parts goes in one batch up to this size."""

MAX_SAID = 4
"""Messages of a fetch that were received and that nobody has taken."""
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

    @property
    def receiving_s(self) -> float:
        return self._link.receiving_s

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
        """As `FetchLane.arrivals`; the batches that have come meanwhile come as one."""
        changed = self._batches.changed
        said: asyncio.Queue[pb.FetchReply | list[Frame] | Unreadable] = asyncio.Queue(MAX_SAID)

        async def listen() -> None:
            async for reply in replies:
                await said.put(reply)
                changed.set()

        talking = asyncio.create_task(listen(), name="fetch messages")
        talking.add_done_callback(lambda _: changed.set())
        try:
            while not said.empty() or not talking.done() or self._num_received < self._num_announced:
                if batches := self._batches.take():
                    self._num_received += sum(received.num_entries for received in batches)
                    yield self._joined(batches)
                elif not said.empty():
                    reply = said.get_nowait()
                    if isinstance(reply, pb.FetchReply) and reply.HasField("sent"):
                        self._num_announced = reply.sent.num_entries
                    else:
                        yield arrived(reply)
                else:
                    await self._wait(talking)
            talking.result()
        finally:
            talking.cancel()
            await asyncio.wait({talking})

    async def _wait(self, talking: "asyncio.Task[None]") -> None:
        """Wait for more of either. Raises what the messages raised, `LaneBroken`."""
        patience_s: float | None = None
        if talking.done():
            talking.result()
            patience_s = LAST_PATIENCE_S
        self._batches.changed.clear()
        try:
            async with asyncio.timeout(patience_s):
                await self._batches.changed.wait()
        except TimeoutError:
            raise LaneBroken(f"announced batches have not come for {LAST_PATIENCE_S:g} s") from None

    def _joined(self, batches: Sequence[Received]) -> Arrived:
        frames = [frame for received in batches for frame in received.frames]
        corrupt = [entries for received in batches for entries in received.corrupt]
        return Arrived(frames, [], corrupt, self._verifies, sum(received.busy_s for received in batches))

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
