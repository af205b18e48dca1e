"""Both ends of socket lanes in one process, memory that counts, and frames to send."""

import asyncio
import os
import socket
import ssl
import threading
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass

from shared.deadline import Deadline
from shared.errors import Overloaded
from shared.ids import BlockKey
from shared.kv.codec import Codec, Payload
from shared.kv.frame import Frame, seal
from shared.lanes.sockets.dial import dial
from shared.lanes.sockets.hello import NEW_LINK, HelloStatus, receive_answer, send_hello
from shared.lanes.sockets.link import SocketLink
from shared.lanes.sockets.options import LinkOptions
from shared.lanes.sockets.server import SocketServer
from tests.support.waiting import LIMIT_S, until


class CountedSlots:
    """Memory for payloads without slabs: says how much is taken, and takes no more than its limit."""

    def __init__(self, limit_bytes: int = 1 << 30) -> None:
        self._limit_bytes = limit_bytes
        self._lock = threading.Lock()
        self._taken: dict[int, memoryview] = {}

    @property
    def num_taken(self) -> int:
        return len(self._taken)

    @property
    def taken_bytes(self) -> int:
        with self._lock:
            return sum(map(len, self._taken.values()))

    def take_all(self, sizes: Iterable[int]) -> list[memoryview]:
        sizes = list(sizes)
        with self._lock:
            if sum(map(len, self._taken.values())) + sum(sizes) > self._limit_bytes:
                raise Overloaded("no slot is free")
            views = [memoryview(bytearray(size)) for size in sizes]
            self._taken |= {id(view.obj): view for view in views}
            return views

    def free(self, view: Payload) -> None:
        assert isinstance(view, memoryview)
        with self._lock:
            del self._taken[id(view.obj)]

    def free_all(self, frames: Iterable[Frame]) -> None:
        for frame in frames:
            self.free(frame.payload)


def sealed(number: int, num_bytes: int, layer: int = 0) -> Frame:
    """Return a frame whose key and payload follow from its number."""
    key = BlockKey(number.to_bytes(32, "big"))
    payload = (number.to_bytes(8, "little") * (num_bytes // 8 + 1))[:num_bytes]
    return seal(key, layer, payload, Codec.RAW)


def plain(frames: Iterable[Frame]) -> list[Frame]:
    """Return frames with payloads that can be compared and outlive their slots."""
    return [frame._replace(payload=bytes(frame.payload)) for frame in frames]


@dataclass
class Ends:
    """A pool's server, its end of one link, and the client's."""

    server: SocketServer
    far: SocketLink
    near: SocketLink
    far_slots: CountedSlots
    near_slots: CountedSlots


@asynccontextmanager
async def linked(
    num_connections: int = 1,
    *,
    far: LinkOptions | None = None,
    near: LinkOptions | None = None,
    far_slots: CountedSlots | None = None,
    near_slots: CountedSlots | None = None,
    tls: tuple[ssl.SSLContext, ssl.SSLContext] | None = None,
) -> AsyncIterator[Ends]:
    """Connect a client to a server; afterwards no slot, thread or descriptor of theirs may be left."""
    far_slots, near_slots = far_slots or CountedSlots(), near_slots or CountedSlots()
    with_all_returned = Census()
    server = SocketServer(
        far_slots,
        tls[0] if tls else None,
        max_connections_per_link=max(4, num_connections),
        options=far or LinkOptions(verify=True),
    )
    await server.start("127.0.0.1", 0)
    try:
        near_link = await dial(
            "localhost" if tls else "127.0.0.1",
            server.offer,
            near_slots,
            tls[1] if tls else None,
            num_connections,
            timeout_s=LIMIT_S,
            options=near or LinkOptions(),
        )
        try:
            far_link = server.link(near_link.number)
            assert far_link is not None
            await until(lambda: far_link.num_connections == num_connections)
            yield Ends(server, far_link, near_link, far_slots, near_slots)
        finally:
            await near_link.close()
    finally:
        await server.close()
    await with_all_returned.check()
    assert (far_slots.num_taken, near_slots.num_taken) == (0, 0)


async def introduced(server: SocketServer, number: int = NEW_LINK) -> tuple[socket.socket, SocketLink]:
    """Connect to a server by hand; returns a socket past its first words that does not block, and the server's end."""

    known = server.link(number)
    num_before = known.num_connections if known is not None else 0

    def connect() -> tuple[socket.socket, int]:
        sock = socket.create_connection(("127.0.0.1", server.port), timeout=LIMIT_S)
        deadline = Deadline.after(LIMIT_S)
        send_hello(sock, server.offer.token, number, deadline)
        answer = receive_answer(sock, deadline)
        assert answer.status is HelloStatus.WELCOME
        sock.setblocking(False)
        return sock, answer.link

    sock, given = await asyncio.to_thread(connect)
    link = server.link(given)
    assert link is not None
    await until(lambda: link.num_connections > num_before)
    return sock, link


class Census:
    """Descriptors and lane threads of this process when it is made, and whether there are more later."""

    def __init__(self) -> None:
        self._descriptors = _descriptors()

    async def check(self) -> None:
        """Fail unless all that came since is gone; the loop's own descriptors and its executor stay."""
        await until(lambda: not lane_threads() and len(_descriptors()) <= len(self._descriptors))


def lane_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("lane-")]


def _descriptors() -> set[str]:
    return set(os.listdir("/proc/self/fd"))
