"""The pool's listening end of socket lanes."""

import asyncio
import secrets
import socket
import ssl
from collections import Counter
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any, TypeAlias

from shared.deadline import Deadline
from shared.errors import LaneBroken, PeerRefused
from shared.lanes.sockets.greeting import encrypted, in_thread, shake_hands, transport_of
from shared.lanes.sockets.hello import NEW_LINK, TOKEN_BYTES, HelloAnswer, HelloStatus, receive_hello, send_answer
from shared.lanes.sockets.link import SocketLink
from shared.lanes.sockets.options import LaneOffer, LinkOptions, set_options
from shared.lanes.sockets.receiving import Slots
from shared.lanes.sockets.tls import TlsSocket
from shared.log import get_logger

_BACKLOG = 128
_DESCRIPTORS_S = 0.1

PeerCheck: TypeAlias = Callable[[Mapping[str, Any] | None, str], None]

POOL_OPTIONS = LinkOptions(verify=True)


class SocketServer:
    """Owns the listening socket, the links of all clients and the threads of their connections. One event loop.

    Always: at most `max_half_open` connections are in their first words, at most `max_connections` are past them.
    """

    def __init__(
        self,
        memory: Slots,
        ssl_context: ssl.SSLContext | None = None,
        *,
        max_connections: int = 64,
        max_connections_per_link: int = 4,
        max_half_open: int = 16,
        handshake_s: float = 5.0,
        options: LinkOptions = POOL_OPTIONS,
        on_link_ended: Callable[[SocketLink], None] | None = None,
        check_peer: PeerCheck | None = None,
    ) -> None:
        """`check_peer` is called with a client's certificate and address, in a thread, and may raise `PeerRefused`."""
        self._memory = memory
        self._ssl_context = ssl_context
        self._max_connections = max_connections
        self._max_connections_per_link = max_connections_per_link
        self._max_half_open = max_half_open
        self._handshake_s = handshake_s
        self._options = options
        self._on_link_ended = on_link_ended
        self._check_peer = check_peer
        self._token = secrets.token_bytes(TOKEN_BYTES)
        self._links: dict[int, SocketLink] = {}
        self._joining: Counter[int] = Counter()  # link -> connections that it will have when they are told so
        self._greetings: set[asyncio.Task[None]] = set()
        self._listener: socket.socket | None = None
        self._accepting: asyncio.Task[None] | None = None
        self._greeters = ThreadPoolExecutor(max_half_open, thread_name_prefix="lane-hello")

    @property
    def port(self) -> int:
        """The port that it listens on, once it has started."""
        assert self._listener is not None, "not started"
        return int(self._listener.getsockname()[1])

    @property
    def offer(self) -> LaneOffer:
        """What clients need to connect; the token is as secret as the calls that carry it."""
        return LaneOffer(self.port, self._token, self._max_connections_per_link)

    @property
    def num_connections(self) -> int:
        return sum(link.num_connections for link in self._links.values()) + self._joining.total()

    @property
    def num_half_open(self) -> int:
        """Connections whose first words are not over."""
        return len(self._greetings)

    def link(self, number: int) -> SocketLink | None:
        """Return the link of a client; None when it has ended or never was."""
        return self._links.get(number)

    async def start(self, host: str, port: int) -> None:
        """Listen; port 0 takes a free one. Raises OSError."""
        loop = asyncio.get_running_loop()
        addresses = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, _, _, _, address = addresses[0]
        self._listener = socket.create_server(address[:2], family=family, backlog=_BACKLOG)
        self._listener.setblocking(False)
        self._accepting = asyncio.create_task(self._accept(self._listener))

    async def close(self) -> None:
        """Stop listening, cut all links and return when no thread is left. Idempotent."""
        tasks = [*self._greetings]
        if self._accepting is not None:
            tasks.append(self._accepting)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._listener is not None:
            self._listener.close()
        await asyncio.gather(*(link.close() for link in list(self._links.values())))
        await asyncio.to_thread(self._greeters.shutdown)

    async def _accept(self, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                sock, _ = await loop.sock_accept(listener)
            except ConnectionError:  # it went while it waited
                continue
            except OSError as error:
                get_logger().warning("lane_connection_refused", reason=str(error))
                await asyncio.sleep(_DESCRIPTORS_S)  # no descriptor is free: others may end meanwhile
                continue
            if len(self._greetings) >= self._max_half_open:
                sock.close()
                continue
            task = asyncio.create_task(self._greet(sock))
            self._greetings.add(task)
            task.add_done_callback(self._greetings.discard)

    async def _greet(self, sock: socket.socket) -> None:
        """Find the link of a connection and hand it over, or close it."""
        deadline = Deadline.after(self._handshake_s)
        is_taken = False
        try:
            set_options(sock, self._options)
            line = encrypted(sock, self._ssl_context)
            number = await in_thread(self._greeters, sock, lambda: self._first_words(sock, line, deadline))
            is_taken = await self._answer(sock, line, number, deadline)
        except (OSError, LaneBroken, PeerRefused) as error:
            get_logger().debug("lane_connection_failed", reason=str(error))
        finally:
            if not is_taken:
                sock.close()

    def _first_words(self, sock: socket.socket, line: socket.socket | TlsSocket, deadline: Deadline) -> int | None:
        shake_hands(line, deadline)
        number = receive_hello(line, self._token, deadline)
        if self._check_peer is not None:
            certificate = line.peer_certificate if isinstance(line, TlsSocket) else None
            try:
                self._check_peer(certificate, "{}:{}".format(*sock.getpeername()[:2]))
            except PeerRefused:
                with suppress(OSError):
                    send_answer(line, HelloAnswer(HelloStatus.FORBIDDEN, NEW_LINK), deadline)
                raise
        return number

    async def _answer(
        self, sock: socket.socket, line: socket.socket | TlsSocket, number: int | None, deadline: Deadline
    ) -> bool:
        """Tell a client what becomes of its connection; True when its link has it."""
        status, link = self._admit(number)
        answer = HelloAnswer(status, NEW_LINK if link is None else link.number)
        try:
            await in_thread(self._greeters, sock, lambda: send_answer(line, answer, deadline))
            if link is None or link.broken is not None:
                return False
            link.add(transport_of(sock, line, self._options))
            return True
        finally:
            if link is not None:
                self._joined(link)

    def _admit(self, number: int | None) -> tuple[HelloStatus, SocketLink | None]:
        """Reserve a connection of a link, which is new where the client says so."""
        if number is None:
            return HelloStatus.WRONG_TOKEN, None
        link = self._links.get(number)
        if link is None and number != NEW_LINK:
            return HelloStatus.UNKNOWN_LINK, None
        of_link = 0 if link is None else link.num_connections + self._joining[link.number]
        if of_link >= self._max_connections_per_link or self.num_connections >= self._max_connections:
            return HelloStatus.FULL, None
        if link is None:
            link = SocketLink(1 + secrets.randbelow((1 << 64) - 1), self._memory, self._options, self._ended)
            self._links[link.number] = link
        self._joining[link.number] += 1
        return HelloStatus.WELCOME, link

    def _joined(self, link: SocketLink) -> None:
        self._joining[link.number] -= 1
        if not self._joining[link.number]:
            del self._joining[link.number]
            if not link.num_connections:
                link.shut("its only connection failed in its first words")

    def _ended(self, link: SocketLink) -> None:
        self._links.pop(link.number, None)
        if self._on_link_ended is not None:
            self._on_link_ended(link)
