"""Batches over an encrypted connection: the same as over a plain one, but a system call and a copy for each 16 KiB."""

import select
import socket
import ssl
import threading
from collections.abc import Sequence

from shared.kv.codec import Payload
from shared.lanes.sockets.options import LinkOptions
from shared.lanes.sockets.transport import PlainTransport, Transport, shut_down

_PART_BYTES = 64 << 10  # what one call encrypts: the other thread waits for the session no longer than that takes


def transport_of(sock: socket.socket, options: LinkOptions) -> Transport:
    """Return what carries batches over a socket, which belongs to it from now on."""
    if isinstance(sock, ssl.SSLSocket):
        return TlsTransport(sock, options)
    return PlainTransport(sock, options)


class TlsTransport:
    """TLS over TCP. OpenSSL lets only one thread at a time use a session: nobody waits for the peer while using it."""

    def __init__(self, sock: ssl.SSLSocket, options: LinkOptions) -> None:
        sock.setblocking(False)
        self._sock = sock
        self._stall_ms = max(1, round(options.stall_s * 1000))
        self._session = threading.Lock()

    def send(self, parts: Sequence[Payload]) -> None:
        for part in parts:
            view = memoryview(part)
            while view:
                view = view[self._send_some(view[:_PART_BYTES]) :]

    def receive(self, views: Sequence[memoryview], *, is_start: bool = False) -> None:
        for view in views:
            while view:
                moved = self._receive_some(view, is_start=is_start)
                if not moved:
                    raise EOFError if is_start else ConnectionResetError("the peer went in the midst of a batch")
                view = view[moved:]
                is_start = False

    def shut(self) -> None:
        shut_down(self._sock)

    def close(self) -> None:
        self._sock.close()

    def _send_some(self, view: memoryview) -> int:
        while True:
            try:
                with self._session:
                    return self._sock.send(view)
            except ssl.SSLWantWriteError:
                event = select.POLLOUT
            except ssl.SSLWantReadError:
                event = select.POLLIN
            if not self._wait(event):
                raise TimeoutError("the peer takes nothing")

    def _receive_some(self, view: memoryview, *, is_start: bool) -> int:
        while True:
            try:
                with self._session:
                    return self._sock.recv_into(view)
            except ssl.SSLWantReadError:
                event = select.POLLIN
            except ssl.SSLWantWriteError:
                event = select.POLLOUT
            if not self._wait(event) and not is_start:
                raise TimeoutError("the peer stopped in the midst of a batch")

    def _wait(self, event: int) -> bool:
        poll = select.poll()
        poll.register(self._sock, event)
        return bool(poll.poll(self._stall_ms))
