"""Blocking first words on a new connection, run in threads for an event loop that may give up."""

import asyncio
import socket
import ssl
from collections.abc import Callable
from concurrent.futures import Executor
from typing import TypeVar

from shared.deadline import Deadline
from shared.lanes.sockets.transport import shut_down

T = TypeVar("T")


def encrypted(
    sock: socket.socket, context: ssl.SSLContext | None, *, server_name: str | None = None
) -> socket.socket | ssl.SSLSocket:
    """Return the socket to use in place of `sock`, before any handshake. `server_name` is for the client's end.

    Raises OSError or ValueError when the peer has gone already.
    """
    if context is None:
        return sock
    return context.wrap_socket(
        sock,
        server_side=server_name is None,
        server_hostname=server_name,
        do_handshake_on_connect=False,
    )


def shake_hands(sock: socket.socket, deadline: Deadline) -> None:
    """Agree on keys where the connection is encrypted. Raises OSError."""
    if isinstance(sock, ssl.SSLSocket):
        sock.settimeout(max(deadline.remaining(), 1e-3))
        sock.do_handshake()


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
