"""Blocking first words on a new connection, run in threads for an event loop that may give up."""

import asyncio
import socket
import ssl
from collections.abc import Callable
from concurrent.futures import Executor
from typing import TypeVar

from shared.deadline import Deadline
from shared.lanes.sockets.options import LinkOptions
from shared.lanes.sockets.tls import TlsSocket, TlsTransport
from shared.lanes.sockets.transport import PlainTransport, Transport, shut_down

T = TypeVar("T")


def encrypted(
    sock: socket.socket, context: ssl.SSLContext | None, *, server_name: str | None = None
) -> socket.socket | TlsSocket:
    """Return what first words are spoken on; `sock` stays the caller's. `server_name` is for the client's end."""
    return sock if context is None else TlsSocket(sock, context, server_name=server_name)


def shake_hands(line: socket.socket | TlsSocket, deadline: Deadline) -> None:
    """Agree on keys where the connection is encrypted. Raises OSError."""
    if isinstance(line, TlsSocket):
        line.shake_hands(deadline)


def transport_of(sock: socket.socket, line: socket.socket | TlsSocket, options: LinkOptions) -> Transport:
    """Return what carries batches, when all words are spoken. The socket belongs to it from now on."""
    return TlsTransport(sock, line, options) if isinstance(line, TlsSocket) else PlainTransport(sock, options)


async def in_thread(executor: Executor | None, sock: socket.socket, work: Callable[[], T]) -> T:
    """Return what `work` returns, which blocks on `sock`. When this is cancelled the socket is cut, so that it ends."""
    future = asyncio.get_running_loop().run_in_executor(executor, work)
    try:
        return await asyncio.shield(future)
    except asyncio.CancelledError:
        shut_down(sock)
        await asyncio.wait([future])
        if not future.cancelled():
            future.exception()  # nobody else asks
        raise
