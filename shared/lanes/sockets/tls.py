"""TLS above a connected socket, for two threads: records are made and read in memory, many for each system call."""

import contextlib
import socket
import ssl
import threading
from collections.abc import Mapping, Sequence
from typing import Any

from shared.deadline import Deadline
from shared.kv.codec import Payload
from shared.kv.payloads.received import BatchHead
from shared.lanes.sockets.options import LinkOptions
from shared.lanes.sockets.transport import PlainTransport

_PART_BYTES = 64 << 10  # encrypted in one go: the thread that receives waits for the session no longer than that takes
_BUFFER_BYTES = 256 << 10


class TlsSocket:
    """A session over a socket that somebody else closes. One thread at a time may use it, and none waits meanwhile.

    Only whoever sends flushes what the session has to say, so that records leave in the order in which they were made.
    """

    def __init__(self, sock: socket.socket, context: ssl.SSLContext, *, server_name: str | None) -> None:
        """`server_name` is for the client's end; None makes this the server's."""
        self._sock = sock
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._session = context.wrap_bio(
            self._incoming, self._outgoing, server_side=server_name is None, server_hostname=server_name
        )
        self._lock = threading.Lock()
        self._buffer = memoryview(bytearray(_BUFFER_BYTES))

    def shake_hands(self, deadline: Deadline) -> None:
        """Agree on keys. Raises OSError."""
        while True:
            self.settimeout(max(deadline.remaining(), 1e-3))
            try:
                self._session.do_handshake()
            except ssl.SSLWantReadError:
                self._flush()
            except ssl.SSLError:
                with contextlib.suppress(OSError):
                    self._flush()  # the peer is told why
                raise
            else:
                self._flush()
                return
            if deadline.expired:
                raise TimeoutError("the handshake took too long")
            if not self.feed():
                raise ConnectionResetError("the peer went in the handshake")

    @property
    def peer_certificate(self) -> Mapping[str, Any] | None:
        """The peer's certificate after the handshake, as `ssl` shows it."""
        return self._session.getpeercert()

    def settimeout(self, seconds: float) -> None:
        self._sock.settimeout(seconds)

    def sendall(self, data: bytes) -> None:
        self.encrypt(memoryview(data))
        self._flush()

    def recv(self, num_bytes: int) -> bytes:
        """As a socket's."""
        view = memoryview(bytearray(num_bytes))
        while (found := self.decrypt(view)) is None:
            if not self.feed():
                return b""
        return bytes(view[:found])

    def encrypt(self, view: memoryview) -> None:
        with self._lock:
            self._session.write(view)

    def encrypted(self) -> bytes:
        """Take the records that are to be sent now."""
        with self._lock:
            return self._outgoing.read()

    def decrypt(self, view: memoryview) -> int | None:
        """Fill the beginning of a view; None when that needs more of the peer's records, 0 when it has ended."""
        with self._lock:
            try:
                return self._session.read(len(view), view)  # type: ignore[return-value]
            except ssl.SSLWantReadError:
                return None
            except ssl.SSLZeroReturnError:
                return 0

    def feed(self) -> bool:
        """Wait for records of the peer; False when there will be none. Raises OSError as the socket does."""
        num_bytes = self._sock.recv_into(self._buffer)
        with self._lock:
            self._incoming.write(self._buffer[:num_bytes])
        return bool(num_bytes)

    def _flush(self) -> None:
        if data := self.encrypted():
            self._sock.sendall(data)


class TlsTransport:
    """Batches over TLS: the same as over plain TCP, and a copy more at each end. One thread sends, another receives."""

    def __init__(self, sock: socket.socket, session: TlsSocket, options: LinkOptions) -> None:
        self._plain = PlainTransport(sock, options)
        self._session = session

    def send(self, parts: Sequence[Payload]) -> None:
        for part in parts:
            view = memoryview(part)
            while view:
                self._session.encrypt(view[:_PART_BYTES])
                view = view[_PART_BYTES:]
                self._plain.send([self._session.encrypted()])

    def receive(self, views: Sequence[memoryview], *, is_start: bool = False) -> None:
        for view in views:
            while view:
                found = self._receive_some(view, is_start=is_start)
                if not found:
                    raise EOFError if is_start else ConnectionResetError("the peer went in the midst of a batch")
                view = view[found:]
                is_start = False

    def receive_head(self, head: BatchHead) -> bool:
        return False

    def receive_payloads(
        self, payloads: Sequence[memoryview], headers: Sequence[bytes] | None, head: BatchHead
    ) -> list[int] | None:
        return None

    def shut(self) -> None:
        self._plain.shut()

    def close(self) -> None:
        self._plain.close()

    def _receive_some(self, view: memoryview, *, is_start: bool) -> int:
        while (found := self._session.decrypt(view)) is None:
            try:
                if not self._session.feed():
                    return 0
            except BlockingIOError:
                if not is_start:
                    raise TimeoutError("the peer stopped in the midst of a batch") from None
        return found
