"""Batches of a link between the threads that received them and the streams that consume them."""

import asyncio
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import NamedTuple, Protocol

from shared.errors import BadRequest, LaneBroken
from shared.kv.codec import Payload
from shared.lanes.sockets.batch import Received


class Slots(Protocol):
    """Where payloads arrive: what a link needs of `SlotMemory`. Any thread."""

    def take_all(self, sizes: Sequence[int]) -> list[memoryview]:
        """Return a writable view of a free slot for each size. Raises `Overloaded`, and then takes none."""

    def free(self, view: Payload) -> None:
        """Give a slot back."""


class _Arrival(NamedTuple):
    stream: int
    received: Received
    num_bytes: int  # admitted for it: what it holds, records among it


class Incoming:
    """What arrives on one stream, in the order in which it was received; a context manager that ends the stream.

    Raises `LaneBroken` after the last batch when the link breaks: what was on its way is lost. One consumer, which
    iterates, or calls `take` each time that `changed` is set, which it clears before.
    """

    def __init__(self, inbox: "LinkInbox", stream: int) -> None:
        self._inbox = inbox
        self._stream = stream
        self._arrivals: deque[_Arrival] = deque()
        self._broken: str | None = None
        self.changed = asyncio.Event()

    def __enter__(self) -> "Incoming":
        self._inbox.open(self._stream, self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._inbox.leave(self._stream)
        while self._arrivals:
            self._inbox.drop(self._arrivals.popleft())

    def __aiter__(self) -> "Incoming":
        return self

    async def __anext__(self) -> Received:
        while not self._arrivals:
            if self._broken is not None:
                raise LaneBroken(self._broken)
            self.changed.clear()
            await self.changed.wait()
        arrival = self._arrivals.popleft()
        self._inbox.consumed(arrival.num_bytes)
        return arrival.received

    def take(self) -> list[Received]:
        """Return all that has arrived, at once."""
        if not self._arrivals and self._broken is not None:
            raise LaneBroken(self._broken)
        arrivals, self._arrivals = self._arrivals, deque()
        if arrivals:
            self._inbox.consumed(sum(arrival.num_bytes for arrival in arrivals))
        return [arrival.received for arrival in arrivals]

    def put(self, arrival: _Arrival) -> None:
        self._arrivals.append(arrival)
        self.changed.set()

    def end(self, reason: str) -> None:
        self._broken = reason
        self.changed.set()


class LinkInbox:
    """Takes batches from the receiving threads of a link to its event loop.

    Always: the bytes of batches, with their records, that were admitted and neither consumed nor dropped are at most
    `max_unread_bytes`, or they are one batch. `admit` and `deliver` are for the threads, all else is for the event loop
    unless it says otherwise.
    """

    def __init__(self, memory: Slots, max_unread_bytes: int) -> None:
        self.memory = memory
        self._max_unread_bytes = max_unread_bytes
        self._loop = asyncio.get_running_loop()
        self._changed = threading.Condition()
        self._streams: dict[int, Incoming] = {}
        self._arrived: list[_Arrival] = []
        self._unread_bytes = 0
        self._is_scheduled = False
        self._ended: str | None = None
        self._num_receiving = 0  # connections in the midst of payloads
        self._busy_since = 0.0
        self._busy_s = 0.0  # of the time that no batch has been told

    @property
    def unread_bytes(self) -> int:
        return self._unread_bytes

    @property
    def receiving_s(self) -> float:
        """Seconds in which any connection was receiving payloads, and that no batch has told yet."""
        with self._changed:
            self._count_time()
            return self._busy_s

    def stream(self, number: int) -> Incoming:
        """Return what will arrive on a stream, from when its context is entered."""
        return Incoming(self, number)

    def admit(self, stream: int, num_bytes: int) -> bool:
        """Wait until a batch may be received; False when nobody awaits its stream. Raises `LaneBroken` at the end.

        What is admitted is delivered, or given back by `consumed`.
        """
        with self._changed:
            while self._ended is None:
                if stream not in self._streams:
                    return False
                if not self._unread_bytes or self._unread_bytes + num_bytes <= self._max_unread_bytes:
                    self._unread_bytes += num_bytes
                    return True
                self._changed.wait()
        raise LaneBroken(self._ended)

    @contextmanager
    def receiving(self) -> Iterator[None]:
        """Count the time of the block, once for all connections, as time in which the link is busy."""
        with self._changed:
            self._count_time()
            self._num_receiving += 1
        try:
            yield
        finally:
            with self._changed:
                self._count_time()
                self._num_receiving -= 1

    def _count_time(self) -> None:
        now = time.monotonic()
        if self._num_receiving:
            self._busy_s += now - self._busy_since
        self._busy_since = now

    def deliver(self, stream: int, received: Received, num_bytes: int) -> None:
        """Hand a batch to the event loop; batches that come while it is busy go in one call."""
        with self._changed:
            self._arrived.append(_Arrival(stream, received._replace(busy_s=self._busy_s), num_bytes))
            self._busy_s = 0.0
            is_first, self._is_scheduled = not self._is_scheduled, True
        if is_first:
            try:
                self._loop.call_soon_threadsafe(self._dispatch)
            except RuntimeError:  # the loop is closed: nobody consumes
                self._drop_arrived()

    def consumed(self, num_bytes: int) -> None:
        """Make room for other batches. Any thread."""
        with self._changed:
            self._unread_bytes -= num_bytes
            self._changed.notify_all()

    def drop(self, arrival: _Arrival) -> None:
        """Free what nobody consumes. Any thread."""
        for frame in arrival.received.frames:
            self.memory.free(frame.payload)
        self.consumed(arrival.num_bytes)

    def open(self, stream: int, incoming: Incoming) -> None:
        with self._changed:
            if self._ended is not None:
                raise LaneBroken(self._ended)
            if stream in self._streams:
                raise BadRequest(f"stream {stream} is in use on this link")
            self._streams[stream] = incoming

    def leave(self, stream: int) -> None:
        with self._changed:
            self._streams.pop(stream, None)
            self._changed.notify_all()

    def end(self, reason: str) -> None:
        """Let streams have what has arrived, then fail; nothing more is admitted."""
        with self._changed:
            self._ended = self._ended or reason
            self._changed.notify_all()
        self._dispatch()
        for incoming in self._streams.values():
            incoming.end(reason)

    def _dispatch(self) -> None:
        for arrival in self._take_arrived():
            incoming = self._streams.get(arrival.stream)
            if incoming is None:
                self.drop(arrival)
            else:
                incoming.put(arrival)

    def _drop_arrived(self) -> None:
        for arrival in self._take_arrived():
            self.drop(arrival)

    def _take_arrived(self) -> list[_Arrival]:
        with self._changed:
            arrived, self._arrived = self._arrived, []
            self._is_scheduled = False
        return arrived
