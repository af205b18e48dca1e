"""One end of a link: the connections of one attachment, seen from the event loop."""

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from typing import TypeVar

from shared.kv.frame import Frame
from shared.lanes.sockets.batch import pack_batch
from shared.lanes.sockets.connection import LinkConnection
from shared.lanes.sockets.options import LinkOptions
from shared.lanes.sockets.receiving import Incoming, LinkInbox, Slots
from shared.lanes.sockets.sending import OutgoingBatch, SendQueue
from shared.lanes.sockets.transport import Transport

T = TypeVar("T")


class SocketLink:
    """Streams of batches over a few connections, both ways; both ends are alike. Belongs to one event loop.

    The batches of a stream may overtake one another where there are several connections. A link breaks as a whole when
    one of its connections does: neither end can know which batches of which streams were on it, and a stream that
    begins afterwards must not lose any to a connection that only one end knows to be dead.
    """

    def __init__(
        self,
        number: int,
        memory: Slots,
        options: LinkOptions,
        on_ended: Callable[["SocketLink"], None] | None = None,
    ) -> None:
        self.number = number
        self._options = options
        self._on_ended = on_ended
        self._loop = asyncio.get_running_loop()
        self._queue = SendQueue()
        self._inbox = LinkInbox(memory, options.max_unread_bytes)
        self._connections: list[LinkConnection] = []
        self._past_sent = self._past_received = self._num_added = 0
        self._broken: str | None = None
        self._has_ended = asyncio.Event()

    @property
    def broken(self) -> str | None:
        """Why nothing can be sent or received any more, or None."""
        return self._broken

    @property
    def num_connections(self) -> int:
        return len(self._connections)

    @property
    def num_bytes_sent(self) -> int:
        """Bytes that the kernel has taken, headers among them."""
        return self._past_sent + sum(connection.num_bytes_sent for connection in self._connections)

    @property
    def num_bytes_received(self) -> int:
        """Bytes that have arrived, headers and discarded batches among them."""
        return self._past_received + sum(connection.num_bytes_received for connection in self._connections)

    @property
    def unread_bytes(self) -> int:
        """Bytes that were received and that no consumer has taken."""
        return self._inbox.unread_bytes

    @property
    def receiving_s(self) -> float:
        """Seconds for which the link has been busy with payloads that have not come wholly."""
        return self._inbox.receiving_s

    @property
    def num_waiting(self) -> int:
        """Batches that wait for a free connection."""
        return len(self._queue)

    def add(self, transport: Transport) -> None:
        """Serve one more connection, which is the link's from now on."""
        assert self._broken is None, "a link that is broken takes no connections"
        connection = LinkConnection(
            f"lane-{self.number & 0xFFFF:04x}-{self._num_added}",
            transport,
            self._queue,
            self._inbox,
            verify=self._options.verify,
            on_broken=self._call(self.shut),
            on_ended=self._call(self._remove),
        )
        self._num_added += 1
        self._connections.append(connection)
        connection.start()

    async def send(self, stream: int, frames: Sequence[Frame], *, is_background: bool = False, layer: int = 0) -> None:
        """Return when the kernel has taken the frames, in one batch; none are no batch.

        Whoever waits for a free connection is served foreground first, then by the lowest layer, then in order. When
        this is cancelled, a batch that waits is not sent; one that is being sent is finished, and its memory is held
        until then. Raises `LaneBroken`, and `BadRequest` when the frames are more than a batch holds or have no bytes.
        """
        if not frames:
            return
        batch = self.post(stream, frames, is_background=is_background, layer=layer)
        try:
            await batch.done
        except asyncio.CancelledError:
            self.withdraw(batch)
            raise

    def post(
        self, stream: int, frames: Sequence[Frame], *, is_background: bool = False, layer: int = 0
    ) -> OutgoingBatch:
        """Begin what `send` does and return at once; `done` of the batch says when it is over. At least one frame.

        Whoever posts awaits `done` or calls `withdraw`. Raises as `send` does.
        """
        batch = OutgoingBatch(pack_batch(stream, frames), is_background=is_background, layer=layer)
        self._queue.put(batch)
        return batch

    def withdraw(self, batch: OutgoingBatch) -> None:
        """Give up a batch that was posted: it is not sent if it still waits, and nobody asks what became of it."""
        self._queue.withdraw(batch)
        if not batch.done.cancel() and not batch.done.cancelled():
            batch.done.exception()

    def incoming(self, stream: int) -> Incoming:
        """Return what arrives on a stream, while its context lasts; what comes before or after is thrown away.

        Each stream number is used once. Entering it raises `LaneBroken` on a broken link, `BadRequest` for a number
        that is in use.
        """
        return self._inbox.stream(stream)

    async def close(self) -> None:
        """Cut all connections and return when their threads have ended; whoever sends or receives gets `LaneBroken`."""
        self.shut("the link is closed")
        await self._has_ended.wait()

    def shut(self, reason: str) -> None:
        """Break the link at once; its threads end soon. Idempotent."""
        if self._broken is not None:
            return
        self._broken = reason
        self._queue.end(reason)
        self._inbox.end(reason)
        for connection in self._connections:
            connection.shut()
        if not self._connections:
            self._end()

    def _remove(self, connection: LinkConnection) -> None:
        connection.join()
        self._past_sent += connection.num_bytes_sent
        self._past_received += connection.num_bytes_received
        self._connections.remove(connection)
        if not self._connections:
            self._end()

    def _end(self) -> None:
        self._inbox.end(self._broken or "")
        self._has_ended.set()
        if self._on_ended is not None:
            self._on_ended(self)

    def _call(self, action: Callable[[T], None]) -> Callable[[T], None]:
        """Return what a thread calls to have something done by the event loop."""

        def call(argument: T) -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed, and nobody is there any more
                self._loop.call_soon_threadsafe(action, argument)

        return call
