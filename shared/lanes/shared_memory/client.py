"""A process that has the pool's memory mapped, as the pool sees it."""

import asyncio
import contextlib
import socket
from collections.abc import Callable, Sequence

from shared.errors import LaneBroken
from shared.lanes.extents import Extents
from shared.lanes.shared_memory.messages import NUMBER, READ_BYTES, Numbers


class AttachedClient:
    """Owns the connection of one process, and holds what that process may read or write, by stream.

    Always: views of a stream are held until the process lets go of the stream, or until *its* end of the connection is
    closed, which the kernel does when the process is gone. That this side wants no more of it (`cut`) frees nothing:
    the process still has the memory mapped. After a stream was let go nothing is held for it again.

    Belongs to one event loop.
    """

    def __init__(
        self,
        number: int,
        connection: socket.socket,
        max_streams: int,
        touched_bytes: int,
        ended: Callable[[int], None],
    ) -> None:
        """`touched_bytes`: what it was told already. `ended` is told `number` once, when the process has gone."""
        self.number = number
        self._connection = connection
        self._max_streams = max_streams
        self._ended = ended
        self._loop = asyncio.get_running_loop()
        self._held: dict[int, list[memoryview]] = {}
        self._gone = Extents(0, 0)  # streams that were let go
        self._numbers = Numbers()
        self._touched = self._told = touched_bytes
        self._unsent = b""  # the rest of a message that is partly sent
        self._is_cut = False
        self.closed = asyncio.Event()
        """Set when the process has gone: nothing is held any more."""
        self._loop.add_reader(connection, self._on_readable)

    @property
    def num_streams(self) -> int:
        """Streams for which something is held."""
        return len(self._held)

    @property
    def num_held(self) -> int:
        """Views that are held, of all streams."""
        return sum(map(len, self._held.values()))

    def hold(self, stream: int, views: Sequence[memoryview]) -> None:
        """Hold views before the process is told of them.

        Raises `LaneBroken` when the process has let go of the stream, or has gone or is to go: do not tell it then.
        """
        if self._is_cut or self.closed.is_set():
            raise LaneBroken("the process is not attached to the memory any more")
        if stream in self._gone:
            raise LaneBroken(f"the process has let go of stream {stream}")
        held = self._held.get(stream)
        if held is None:
            if len(self._held) >= self._max_streams:
                self.cut()
                raise LaneBroken(f"the process holds {self._max_streams} streams and lets go of none")
            held = self._held[stream] = []
        held.extend(views)

    def let_go(self, stream: int) -> None:
        """Hold nothing of a stream any more, ever."""
        self._held.pop(stream, None)
        if stream in self._gone:
            return
        self._gone.give_back(stream, 1)
        if len(self._gone) > 2 * self._max_streams + 2:  # streams in between are neither open nor let go
            self.cut()

    def tell_touched(self, touched_bytes: int) -> None:
        """Tell the process where touched memory ends, as soon as it reads."""
        self._touched = touched_bytes
        self._send()

    def cut(self) -> None:
        """Have the process detach: say that the connection ends, and wait for its own end."""
        if not self._is_cut and not self.closed.is_set():
            self._is_cut = True
            self._loop.remove_writer(self._connection)
            with contextlib.suppress(OSError):
                self._connection.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        """Close the connection and hold nothing any more: the process has gone, or the pool goes. Idempotent."""
        if self.closed.is_set():
            return
        self._loop.remove_reader(self._connection)
        self._loop.remove_writer(self._connection)
        self._connection.close()
        self._held.clear()
        self.closed.set()
        self._ended(self.number)

    def _on_readable(self) -> None:
        try:
            data = self._connection.recv(READ_BYTES)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            data = b""
        if not data:
            self.close()
            return
        for stream in self._numbers.feed(data):
            self.let_go(stream)

    def _send(self) -> None:
        if self._is_cut or self.closed.is_set():
            return
        try:
            while self._unsent or self._told != self._touched:
                if not self._unsent:
                    self._told = self._touched
                    self._unsent = NUMBER.pack(self._told)
                self._unsent = self._unsent[self._connection.send(self._unsent) :]
        except (BlockingIOError, InterruptedError):
            self._loop.add_writer(self._connection, self._send)
            return
        except OSError:
            pass  # its end is read
        self._loop.remove_writer(self._connection)
