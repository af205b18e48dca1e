"""One TCP connection of a link and the two threads that serve it."""

import threading
import time
from collections.abc import Callable, Sequence

from shared.errors import CorruptFrame, LaneBroken, Overloaded
from shared.kv.frame import Frame, headers_of, verify_all
from shared.lanes.records import RECORD_BYTES, EntryRecord
from shared.lanes.sockets.batch import (
    HEADER_BYTES,
    Received,
    entries_of,
    frames_of,
    new_head,
    unpack_announced,
    unpack_header,
)
from shared.lanes.sockets.receiving import LinkInbox
from shared.lanes.sockets.sending import SendQueue
from shared.lanes.sockets.transport import Transport

SLOT_PATIENCE_S = 0.5
"""How long a batch waits for slots, and its connection with it."""
SLOT_POLL_S = 0.005  # nobody is told when the last view of a slot goes
_DISCARD_BYTES = 256 << 10


class LinkConnection:
    """Owns a transport and two threads: one sends batches of the queue, the other receives into the inbox.

    When either ends, for whatever reason, the connection is cut and the other ends too; `on_broken` is called when the
    first ends, with the reason, and `on_ended` when the descriptor is given back, each once, in that thread.
    """

    def __init__(
        self,
        name: str,
        transport: Transport,
        queue: SendQueue,
        inbox: LinkInbox,
        *,
        verify: bool,
        on_broken: Callable[[str], None],
        on_ended: Callable[["LinkConnection"], None],
    ) -> None:
        self.num_bytes_sent = 0
        self.num_bytes_received = 0
        self._name = name
        self._transport = transport
        self._queue = queue
        self._inbox = inbox
        self._verify = verify
        self._head = new_head()
        self._on_broken = on_broken
        self._on_ended = on_ended
        self._lock = threading.Lock()
        self._num_running = 2
        self._threads = [
            threading.Thread(target=self._run, args=(work,), name=f"{name}-{what}", daemon=True)
            for what, work in (("send", self._send), ("receive", self._receive))
        ]

    def start(self) -> None:
        """Begin; where the system has no more threads, end at once."""
        for position, thread in enumerate(self._threads):
            try:
                thread.start()
            except RuntimeError:
                for _ in self._threads[position:]:
                    self._leave("no thread could be started")
                return

    def shut(self) -> None:
        """Cut the connection: both threads end soon. Any thread, before `on_ended`."""
        with self._lock:
            if self._num_running:
                self._transport.shut()

    def join(self) -> None:
        """Wait for both threads: no time at all after `on_ended`."""
        for thread in self._threads:
            if thread.ident is not None:
                thread.join()

    def _run(self, work: Callable[[], str]) -> None:
        reason = "a thread of the connection failed"
        try:
            reason = work()
        except EOFError:
            reason = "the peer closed the connection"
        except (OSError, CorruptFrame, LaneBroken) as error:
            reason = f"{type(error).__name__}: {error}"
        finally:
            self._leave(reason)

    def _leave(self, reason: str) -> None:
        self.shut()
        with self._lock:
            self._num_running -= 1
            is_last = not self._num_running
            if is_last:
                self._transport.close()
        if is_last:
            self._on_ended(self)
        else:
            self._on_broken(f"connection {self._name}: {reason}")

    def _send(self) -> str:
        while (batch := self._queue.get()) is not None:
            failure: str | None = f"connection {self._name} broke under a batch"
            try:
                self._transport.send(batch.parts)
                self.num_bytes_sent += batch.num_bytes
                failure = None
            finally:
                batch.finish(failure)
            del batch  # its payloads are held by nobody while this waits
        return "the link is closed"

    def _receive(self) -> str:
        head = self._head
        while True:
            if not head.is_here and not self._transport.receive_head(head):
                self._transport.receive([head.header], is_start=True)
                unpack_header(head.header)  # before it is believed how many records follow
                self._transport.receive([head.expect()])
            header = unpack_header(head.header)
            records = head.take()
            self.num_bytes_received += HEADER_BYTES + len(records)
            self._receive_payloads(header.stream, unpack_announced(header, records), header.num_bytes)

    def _receive_payloads(self, stream: int, records: list[EntryRecord], num_bytes: int) -> None:
        unread_bytes = num_bytes + len(records) * RECORD_BYTES
        if not self._inbox.admit(stream, unread_bytes):
            self._discard(num_bytes)
            return
        memory = self._inbox.memory
        try:
            views = self._slots([record.num_bytes for record in records])
        except Overloaded:
            self._inbox.consumed(num_bytes)
            self._discard(num_bytes)
            self._inbox.deliver(stream, Received([], [], entries_of(records)), unread_bytes - num_bytes)
            return
        frames = frames_of(records, views)
        try:
            with self._inbox.receiving():
                intact = self._fill(frames)
        except BaseException:
            for view in views:
                memory.free(view)
            self._inbox.consumed(unread_bytes)
            raise
        self.num_bytes_received += num_bytes
        corrupt = [frame for frame, is_good in zip(frames, intact, strict=True) if not is_good]
        if corrupt:
            frames = [frame for frame, is_good in zip(frames, intact, strict=True) if is_good]
            for frame in corrupt:
                memory.free(frame.payload)
        self._inbox.deliver(stream, Received(frames, entries_of(corrupt), []), unread_bytes)

    def _slots(self, sizes: Sequence[int]) -> list[memoryview]:
        """Return slots when there are any: what was received before may be stored meanwhile, in place of other entries.

        Raises `Overloaded`.
        """
        give_up_at = time.monotonic() + SLOT_PATIENCE_S
        while True:
            try:
                return self._inbox.memory.take_all(sizes)
            except Overloaded:
                if time.monotonic() > give_up_at:
                    raise
            time.sleep(SLOT_POLL_S)

    def _fill(self, frames: list[Frame]) -> list[bool]:
        """Receive the payloads of frames, and say which may be passed on."""
        views: list[memoryview] = [frame.payload for frame in frames]  # type: ignore[misc]
        headers = headers_of(frames) if self._verify else None
        digests = self._transport.receive_payloads(views, headers, self._head)
        if digests is None:
            self._transport.receive(views)
            return verify_all(frames) if self._verify else [True] * len(frames)
        if headers is None:
            return [True] * len(frames)
        return [digest == frame.checksum for digest, frame in zip(digests, frames, strict=True)]

    def _discard(self, num_bytes: int) -> None:
        buffer = memoryview(bytearray(min(num_bytes, _DISCARD_BYTES)))
        while num_bytes:
            part = buffer[:num_bytes]
            self._transport.receive([part])
            num_bytes -= len(part)
            self.num_bytes_received += len(part)
