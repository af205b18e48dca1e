"""Bytes in and out of one connected TCP socket, from two threads: one sends, one receives."""

import contextlib
import os
import socket
from collections.abc import Sequence
from typing import Protocol

from shared.kv.codec import Payload
from shared.kv.payloads.received import BatchHead, receive, receive_head
from shared.lanes.sockets.options import LinkOptions, set_timeouts

_MAX_PARTS = min(os.sysconf("SC_IOV_MAX"), 1024)


class Transport(Protocol):
    """A connected socket that carries batches.

    One thread sends while another receives. Both raise OSError when the connection is cut or stalls: nothing moved for
    `stall_s` in the midst of what is sent or received.
    """

    def send(self, parts: Sequence[Payload]) -> None:
        """Return when the kernel has taken all parts."""

    def receive(self, views: Sequence[memoryview], *, is_start: bool = False) -> None:
        """Fill the views. `is_start`: the first byte may take any time. Raises EOFError if the peer ended before it."""

    def receive_head(self, head: BatchHead) -> bool:
        """Wait for the beginning of a batch; False, with nothing received, where `receive` has to do it.

        Raises EOFError if the peer ended before it.
        """

    def receive_payloads(
        self, payloads: Sequence[memoryview], headers: Sequence[bytes] | None, head: BatchHead
    ) -> list[int] | None:
        """Fill the payloads and return their digests, none without `headers`. The next beginning may come along.

        None, with nothing received, where `receive` has to do it.
        """

    def shut(self) -> None:
        """Cut the connection: whoever sends or receives is woken. Any thread, any number of times before `close`."""

    def close(self) -> None:
        """Give the descriptor back, when nobody sends or receives any more."""


class PlainTransport:
    """TCP without encryption: a system call for many parts, straight from and into their memory."""

    def __init__(self, sock: socket.socket, options: LinkOptions) -> None:
        set_timeouts(sock, options.stall_s)
        self._sock = sock

    def send(self, parts: Sequence[Payload]) -> None:
        left = [memoryview(part) for part in parts]
        while left:
            try:
                moved = self._sock.sendmsg(left[:_MAX_PARTS])
            except BlockingIOError:
                raise TimeoutError("the peer takes nothing") from None
            left = after(left, moved)

    def receive(self, views: Sequence[memoryview], *, is_start: bool = False) -> None:
        left = list(views)
        while left:
            try:
                moved = self._sock.recvmsg_into(left[:_MAX_PARTS], 0, socket.MSG_WAITALL)[0]
            except BlockingIOError:
                if is_start:
                    continue
                raise TimeoutError("the peer stopped in the midst of a batch") from None
            if not moved:
                raise EOFError if is_start else ConnectionResetError("the peer went in the midst of a batch")
            left = after(left, moved)
            is_start = False

    def receive_head(self, head: BatchHead) -> bool:
        try:
            return receive_head(self._sock.fileno(), head)
        except BlockingIOError:
            raise TimeoutError("the peer stopped in the midst of a batch") from None

    def receive_payloads(
        self, payloads: Sequence[memoryview], headers: Sequence[bytes] | None, head: BatchHead
    ) -> list[int] | None:
        try:
            return receive(self._sock.fileno(), payloads, headers, head)
        except EOFError:
            raise ConnectionResetError("the peer went in the midst of a batch") from None
        except BlockingIOError:
            raise TimeoutError("the peer stopped in the midst of a batch") from None

    def shut(self) -> None:
        shut_down(self._sock)

    def close(self) -> None:
        self._sock.close()


def after(parts: list[memoryview], num_bytes: int) -> list[memoryview]:
    """Return what is left of parts when their first `num_bytes` are done."""
    for at, part in enumerate(parts):
        if num_bytes < len(part):
            return [part[num_bytes:], *parts[at + 1 :]]
        num_bytes -= len(part)
    return []


def shut_down(sock: socket.socket) -> None:
    """Cut a connection, if it is not cut already: whoever sends or receives on it is woken."""
    with contextlib.suppress(OSError):
        sock.shutdown(socket.SHUT_RDWR)
