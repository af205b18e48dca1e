"""The client's end of a link: connects to a pool that offers one."""

import asyncio
import socket
import ssl
from typing import NamedTuple

from shared.deadline import Deadline
from shared.errors import LaneBroken
from shared.lanes.sockets.greeting import encrypted, in_thread, shake_hands, transport_of
from shared.lanes.sockets.hello import NEW_LINK, TOKEN_BYTES, HelloStatus, receive_answer, send_hello
from shared.lanes.sockets.link import SocketLink
from shared.lanes.sockets.options import LaneOffer, LinkOptions, set_options
from shared.lanes.sockets.receiving import Slots
from shared.lanes.sockets.tls import TlsSocket

_DEFAULTS = LinkOptions()


async def dial(
    host: str,
    offer: LaneOffer,
    memory: Slots,
    ssl_context: ssl.SSLContext | None,
    num_connections: int,
    *,
    timeout_s: float,
    options: LinkOptions = _DEFAULTS,
    server_name: str | None = None,
) -> SocketLink:
    """Return a link of `num_connections`, or of as many as are offered. `memory` is where payloads arrive.

    Where `ssl_context` says that names are checked, the pool's certificate must have the name `server_name`, by default
    `host`. Raises `LaneBroken` when any connection cannot be had in `timeout_s`.
    """
    num_connections = min(num_connections, offer.max_connections)
    if num_connections < 1 or len(offer.token) != TOKEN_BYTES:
        raise LaneBroken("the pool offers no connection")
    call = _Call(host, offer, ssl_context, options, Deadline.after(timeout_s), server_name or host)
    try:
        async with asyncio.timeout(timeout_s):
            return await call.link(num_connections, memory)
    except (OSError, ValueError) as error:  # TimeoutError and TLS's errors among them; ValueError: no possible host
        raise LaneBroken(f"{type(error).__name__}: {error}") from error


class _Opened(NamedTuple):
    sock: socket.socket
    line: socket.socket | TlsSocket
    link: int


class _Call:
    """Opens the connections of one link."""

    def __init__(
        self,
        host: str,
        offer: LaneOffer,
        ssl_context: ssl.SSLContext | None,
        options: LinkOptions,
        deadline: Deadline,
        server_name: str,
    ) -> None:
        self._host = host
        self._server_name = server_name
        self._offer = offer
        self._ssl_context = ssl_context
        self._options = options
        self._deadline = deadline

    async def link(self, num_connections: int, memory: Slots) -> SocketLink:
        first = await self._connect(NEW_LINK)
        opened = [first]
        try:
            others = [asyncio.create_task(self._connect(first.link)) for _ in range(num_connections - 1)]
            try:
                await asyncio.gather(*others)
            finally:
                for task in others:
                    task.cancel()
                done = await asyncio.gather(*others, return_exceptions=True)
                opened += [result for result in done if not isinstance(result, BaseException)]
            link = SocketLink(first.link, memory, self._options)
        except BaseException:
            for each in opened:
                each.sock.close()
            raise
        for each in opened:
            link.add(transport_of(each.sock, each.line, self._options))
        return link

    async def _connect(self, link: int) -> _Opened:
        sock = await self._reach()
        try:
            set_options(sock, self._options)
            line = encrypted(sock, self._ssl_context, server_name=self._server_name)
            return _Opened(sock, line, await in_thread(None, sock, lambda: self._introduce(line, link)))
        except BaseException:
            sock.close()
            raise

    async def _reach(self) -> socket.socket:
        loop = asyncio.get_running_loop()
        addresses = await loop.getaddrinfo(self._host, self._offer.port, type=socket.SOCK_STREAM)
        failure: OSError = OSError(f"{self._host} has no address")
        for family, kind, protocol, _, address in addresses:
            sock = socket.socket(family, kind, protocol)
            try:
                sock.setblocking(False)
                await loop.sock_connect(sock, address)
                return sock
            except OSError as error:
                sock.close()
                failure = error
            except BaseException:
                sock.close()
                raise
        raise failure

    def _introduce(self, line: socket.socket | TlsSocket, link: int) -> int:
        shake_hands(line, self._deadline)
        send_hello(line, self._offer.token, link, self._deadline)
        status, number = receive_answer(line, self._deadline)
        if status is not HelloStatus.WELCOME:
            raise LaneBroken(f"the pool refuses the connection: {status.name}")
        return number
