"""A closed loop of requests over bare connections: the client counts bytes and events, and parses no more."""

import asyncio
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple, cast

PATH = "/v1/completions"
LIMIT_S = 120.0
_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)\r\n", re.IGNORECASE)
_HEAD_END, _BODY_END = b"\r\n\r\n", b"0\r\n\r\n"


class Refused(RuntimeError):
    """The server does not take such requests."""


class Address(NamedTuple):
    host: str
    port: int


@dataclass
class Drive:
    """What a closed loop has seen."""

    elapsed_s: float = 0.0
    num_events: int = 0  # of streams; several tokens may share one
    latencies_s: list[float] = field(default_factory=list)  # from request to the end of its answer

    def latency_ms(self, share: float) -> float:
        """Return the latency that this share of the requests stays below."""
        ordered = sorted(self.latencies_s)
        return 1e3 * ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def request(address: Address, body: bytes) -> bytes:
    """Return a request as it goes over the wire."""
    head = f"POST {PATH} HTTP/1.1\r\nHost: {address.host}:{address.port}\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


async def drive(address: Address, bodies: Sequence[bytes], width: int) -> Drive:
    """Send all bodies, `width` at a time.

    Raises `Refused` when the server finds fault with a request, `RuntimeError` for another answer that is none, and
    `TimeoutError`.
    """
    loop = asyncio.get_running_loop()
    seen = Drive()
    requests = [request(address, body) for body in bodies]
    requests.reverse()
    connections = [_Connection(requests, seen) for _ in range(width)]
    async with asyncio.timeout(LIMIT_S):
        for connection in connections:
            await loop.create_connection(partial(_itself, connection), *address)
        started = time.perf_counter()
        for connection in connections:
            connection.send_next()
        await asyncio.gather(*(connection.done for connection in connections))
        seen.elapsed_s = time.perf_counter() - started
    for connection in connections:
        connection.close()
    return seen


class _Connection(asyncio.Protocol):
    """Sends what is left, one request after another."""

    _transport: asyncio.Transport
    _tail: bytes

    def __init__(self, requests: list[bytes], seen: Drive) -> None:
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._requests = requests
        self._seen = seen
        self._reset()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's own are no subclass

    def connection_lost(self, error: Exception | None) -> None:
        if not self.done.done():
            self.done.set_exception(error or RuntimeError("the server closed a connection"))

    def close(self) -> None:
        self._transport.close()

    def send_next(self) -> None:
        if not self._requests:
            self.done.set_result(None)
            return
        self._reset()
        self._transport.write(self._requests.pop())

    def data_received(self, data: bytes) -> None:
        if self._num_left is None:
            data = self._take_head(data)
        if self.done.done() or self._num_left is None:
            return
        self._seen.num_events += data.count(b"data: ")
        self._num_left -= len(data)
        self._tail = (self._tail + data)[-len(_BODY_END) :]
        if self._num_left == 0 or (self._is_chunked and self._tail == _BODY_END):
            self._seen.latencies_s.append(time.perf_counter() - self._sent_at)
            self.send_next()

    def _reset(self) -> None:
        self._sent_at = time.perf_counter()
        self._head = b""
        self._num_left: int | None = None  # bytes of the body; unknown before the head is there
        self._is_chunked = False
        self._tail = b""

    def _take_head(self, data: bytes) -> bytes:
        """Return what there is behind the head."""
        head, found, rest = (self._head + data).partition(_HEAD_END)
        if not found:
            self._head = head
        elif not head.startswith(b"HTTP/1.1 200"):
            error = Refused if head.startswith(b"HTTP/1.1 400") else RuntimeError
            self.done.set_exception(error((head + _HEAD_END + rest).decode(errors="replace")))
        else:
            length = _LENGTH.search(head + b"\r\n")
            self._is_chunked = length is None
            self._num_left = int(length[1]) if length else 1 << 62
        return rest


def _itself(connection: _Connection) -> _Connection:
    return connection
