"""The pool's memory as another process of its host has it."""

import asyncio
import contextlib
import itertools
import weakref
from collections.abc import Callable
from threading import Lock

import numpy as np

from shared.allocator import map_memory
from shared.errors import CorruptFrame, LaneBroken
from shared.lanes.shared_memory.greeting import Welcome, greet
from shared.lanes.shared_memory.messages import NUMBER, READ_BYTES, Numbers
from shared.log import get_logger
from shared.proto import prfaas_pb2 as pb

log = get_logger()

MAX_UNSENT_BYTES = 1 << 20
"""Of words to a pool that does not read; a process that has more to say gives the lane up."""
_PIECE_BYTES = 16 << 20


def _map(_memory: memoryview, address: int, num_bytes: int) -> None:
    """Map a part of a memory, which stays while this runs. Where the kernel cannot, pages are mapped at first use."""
    map_memory(address, num_bytes)


class Attachment:
    """Owns the connection to a pool and the mapping of its memory.

    Always: the connection stays open while anything views the mapping, also after `close`: the pool takes its end for
    the end of all access. Whoever has a number from `new_stream` hands it to `let_go` in the end, once, when nothing
    of this process reads or writes what the pool has named in that stream.

    What lies in the memory is not verified, and is to be read while the stream has not been let go.
    """

    def __init__(self, welcome: Welcome) -> None:
        self.number = welcome.number
        self.size_bytes = welcome.size_bytes
        self.touched_bytes = welcome.touched_bytes
        """Where memory ends that the pool has touched: a process may map or register it ahead."""
        self.address = welcome.address
        """Of the mapping in this process."""
        self.ended = asyncio.Event()
        """Set when the pool has gone or wants no more of this process: no new streams, but all views stay readable."""
        self._connection = welcome.connection
        whole = np.frombuffer(welcome.memory, np.uint8)  # gone before the mapping goes, and after all views
        self._all: memoryview | None = whole.data
        self._loop = asyncio.get_running_loop()
        self._streams = itertools.count(1)
        self._numbers = Numbers()
        self._watchers: list[Callable[[int], None]] = []
        self._changed = asyncio.Event()  # memory has grown, or is given up: for `keep_mapped`
        self._sending = Lock()  # of what follows: streams are let go in any thread
        self._unsent = bytearray()
        self._is_deaf = False  # the pool does not hear this process any more
        self._is_closed = False
        # Not at the interpreter's exit, when threads may still write: the kernel closes it once they do not.
        weakref.finalize(welcome.memory, self._connection.close).atexit = False
        self._loop.add_reader(self._connection, self._on_readable)

    @staticmethod
    async def attach(offer: pb.SharedMemoryOffer, timeout_s: float) -> "Attachment":
        """Map the memory that a pool offers. Raises `LaneBroken` when it cannot: that is on another host, say."""
        return Attachment(await greet(offer, timeout_s))

    @property
    def broken(self) -> bool:
        """Whether new streams must not use the memory."""
        return self.ended.is_set()

    def view(self, place: int, num_bytes: int) -> memoryview:
        """Return a read-only view. Raises `CorruptFrame` when there is no such place, `LaneBroken` after `close`."""
        return self.slot(place, num_bytes).toreadonly()

    def slot(self, place: int, num_bytes: int) -> memoryview:
        """Return a view to write to, with the errors of `view`."""
        if self._all is None:
            raise LaneBroken("this process is not attached to the memory any more")
        if not (0 < place < place + num_bytes <= self.size_bytes):
            raise CorruptFrame(f"{num_bytes} bytes at {place} are not in a memory of {self.size_bytes}")
        return self._all[place : place + num_bytes]

    def new_stream(self) -> int:
        """Return a number for a stream, to be told to the pool when it is opened, and to `let_go` in the end."""
        return next(self._streams)

    def let_go(self, stream: int) -> None:
        """Say that this process reads and writes nothing of a stream any more. Does not wait; in any thread."""
        with self._sending:
            if self._is_deaf:
                return
            self._unsent += NUMBER.pack(stream)
            if len(self._unsent) == NUMBER.size:
                self._send()
            elif len(self._unsent) > MAX_UNSENT_BYTES:
                log.warning("pool_does_not_read", attachment=self.number)
                self._is_deaf = True
                self._on_loop(self._end)

    def watch(self, grown: Callable[[int], None]) -> None:
        """Have it said, on the event loop, when the pool has touched more memory: `grown(touched_bytes)`."""
        self._watchers.append(grown)

    async def keep_mapped(self) -> None:
        """Map memory into this process, in a thread, as far as the pool has touched it, until `close`.

        Else each first use of a page waits for the kernel, which takes longer than to write it.
        """
        mapped = 0
        while (memory := self._all) is not None:
            if mapped < self.touched_bytes:
                end = min(mapped + _PIECE_BYTES, self.touched_bytes)
                await asyncio.to_thread(_map, memory, self.address + mapped, end - mapped)
                mapped = end
            else:
                del memory
                self._changed.clear()
                await self._changed.wait()

    def when_unviewed(self, call: Callable[[], None]) -> None:
        """Have it called after `close`, when the last view has gone and before memory is unmapped; in any thread."""
        assert self._all is not None, "closed"
        weakref.finalize(self._all.obj, call).atexit = False

    async def close(self) -> None:
        """Give no more views. The mapping goes with the last view, and the connection with the mapping. Idempotent."""
        if not self._is_closed:
            self._is_closed = True
            self._end()
            with self._sending:
                self._is_deaf = True  # the end of the connection says all, for all streams
                self._unsent.clear()
                self._loop.remove_writer(self._connection)
            self._all = None
            self._changed.set()

    def _end(self) -> None:
        if not self.ended.is_set():
            self._loop.remove_reader(self._connection)
            self.ended.set()

    def _on_readable(self) -> None:
        try:
            data = self._connection.recv(READ_BYTES)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            data = b""
        if not data:
            log.warning("attachment_ended", attachment=self.number)
            self._end()
            return
        if told := self._numbers.feed(data):
            self.touched_bytes = min(max(self.touched_bytes, *told), self.size_bytes)
            self._changed.set()
            for grown in self._watchers:
                grown(self.touched_bytes)

    def _send(self) -> None:
        """Send what is unsent, or as much as goes; the rest once the pool reads. The lock is held."""
        try:
            while self._unsent:
                del self._unsent[: self._connection.send(self._unsent)]
        except (BlockingIOError, InterruptedError):
            self._on_loop(self._await_room)
        except OSError:  # the pool has gone: there is nobody to tell
            self._is_deaf = True
            self._unsent.clear()

    def _await_room(self) -> None:
        with self._sending:
            if not self._is_deaf:
                self._loop.add_writer(self._connection, self._on_writable)

    def _on_writable(self) -> None:
        with self._sending:
            self._loop.remove_writer(self._connection)
            if not self._is_deaf:
                self._send()

    def _on_loop(self, call: Callable[[], None]) -> None:
        with contextlib.suppress(RuntimeError):  # the loop has ended
            self._loop.call_soon_threadsafe(call)
