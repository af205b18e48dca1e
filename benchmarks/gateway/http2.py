"""The server's end of gRPC over HTTP/2, as little as canned answers need (RFC 9113; gRPC over HTTP2).

gRPC's own server takes, in Python, as much processor time for a token as a gateway: it would be what is measured.
This one puts finished messages into frames. It reads no headers: which method is called follows from the port.
"""

import asyncio
from collections.abc import Iterator, Sequence
from typing import NamedTuple, Protocol, cast

_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_HEAD_BYTES = 9
_DATA, _HEADERS, _RST_STREAM, _SETTINGS, _PING, _WINDOW_UPDATE = 0x0, 0x1, 0x3, 0x4, 0x6, 0x8
_ACK = _END_STREAM = 0x1
_END_HEADERS = 0x4
_INITIAL_WINDOW_BYTES, _WINDOW_BYTES = 65_535, 1 << 30
_INITIAL_WINDOW_SIZE = b"\x00\x04"

# HPACK (RFC 7541): `:status: 200` has a number; the others are spelled out, not indexed.
_ANSWER_HEADERS = b"\x88\x0f\x10\x10application/grpc"
_TRAILERS = b"\x00\x0bgrpc-status\x010"


class Http2Frame(NamedTuple):
    """What of a frame the canned server looks at."""

    kind: int
    flags: int
    stream: int
    payload: bytes


class StreamAnswers(Protocol):
    """Decides what a call is answered with."""

    def answer(self, request: bytes) -> Sequence[bytes]:
        """Return the messages of the answer, framed by `framed`, one for each step."""


class StepClock(Protocol):
    """A connection whose answers go on with each step."""

    def step(self) -> None: ...


def framed(message: bytes) -> bytes:
    """Return a message as a DATA frame has it: uncompressed, behind its length."""
    return b"\0" + len(message).to_bytes(4, "big") + message


def encoded(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    head = len(payload).to_bytes(3, "big") + bytes((kind, flags)) + stream.to_bytes(4, "big")
    return head + payload


def frames_in(buffer: bytearray) -> Iterator[Http2Frame]:
    """Take whole frames out of the beginning of a buffer."""
    at = 0
    while len(buffer) - at >= _HEAD_BYTES:
        end = at + _HEAD_BYTES + int.from_bytes(buffer[at : at + 3], "big")
        if len(buffer) < end:
            break
        stream = int.from_bytes(buffer[at + 5 : at + _HEAD_BYTES], "big")
        yield Http2Frame(buffer[at + 3], buffer[at + 4], stream, bytes(buffer[at + _HEAD_BYTES : end]))
        at = end
    del buffer[:at]


class CannedConnection(asyncio.Protocol):
    """One client's connection. The first message of an answer goes out at once, each other one with a step.

    Windows of streams are not watched: an answer is smaller than the one that gRPC's clients open with. The window of
    the connection is: what does not fit waits for a later step.
    """

    _transport: asyncio.Transport

    def __init__(self, answers: StreamAnswers, open_connections: set[StepClock]) -> None:
        self._answers = answers
        self._open_connections = open_connections
        self._received = bytearray()
        self._has_preface = False
        self._requests: dict[int, bytearray] = {}
        self._rest: dict[int, list[bytes]] = {}  # by stream: what is still to be sent, the last first
        self._window_bytes = _INITIAL_WINDOW_BYTES

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's own are no subclass
        self._open_connections.add(self)
        settings = _INITIAL_WINDOW_SIZE + _WINDOW_BYTES.to_bytes(4, "big")
        more = (_WINDOW_BYTES - _INITIAL_WINDOW_BYTES).to_bytes(4, "big")
        self._transport.write(encoded(_SETTINGS, 0, 0, settings) + encoded(_WINDOW_UPDATE, 0, 0, more))

    def connection_lost(self, error: Exception | None) -> None:
        self._open_connections.discard(self)

    def data_received(self, data: bytes) -> None:
        self._received += data
        if not self._has_preface:
            if len(self._received) < len(_PREFACE):
                return
            del self._received[: len(_PREFACE)]
            self._has_preface = True
        out: list[bytes] = []
        for frame in frames_in(self._received):
            self._take(frame, out)
        if out:
            self._transport.write(b"".join(out))

    def step(self) -> None:
        """Send one message of each open answer."""
        out: list[bytes] = []
        for stream in list(self._rest):
            self._send_next(stream, out)
        if out:
            self._transport.write(b"".join(out))

    def _take(self, frame: Http2Frame, out: list[bytes]) -> None:
        if frame.kind == _DATA:
            self._take_data(frame, out)
        elif frame.kind == _HEADERS:
            self._requests[frame.stream] = bytearray()
        elif frame.kind == _RST_STREAM:
            self._rest.pop(frame.stream, None)
            self._requests.pop(frame.stream, None)
        elif frame.kind == _WINDOW_UPDATE and frame.stream == 0:
            self._window_bytes += int.from_bytes(frame.payload, "big")
        elif frame.kind in (_SETTINGS, _PING) and not frame.flags & _ACK:
            out.append(encoded(frame.kind, _ACK, 0, frame.payload if frame.kind == _PING else b""))

    def _take_data(self, frame: Http2Frame, out: list[bytes]) -> None:
        """Answer a call once its first message is there; later ones, and its end, change nothing."""
        if frame.payload:
            out.append(encoded(_WINDOW_UPDATE, 0, 0, len(frame.payload).to_bytes(4, "big")))
        request = self._requests.get(frame.stream)
        if request is None:
            return
        request += frame.payload
        if len(request) < 5 or len(request) - 5 < int.from_bytes(request[1:5], "big"):
            return
        del self._requests[frame.stream]
        self._rest[frame.stream] = list(reversed(self._answers.answer(bytes(request[5:]))))
        out.append(encoded(_HEADERS, _END_HEADERS, frame.stream, _ANSWER_HEADERS))
        self._send_next(frame.stream, out)

    def _send_next(self, stream: int, out: list[bytes]) -> None:
        rest = self._rest[stream]
        if len(rest[-1]) > self._window_bytes:
            return
        message = rest.pop()
        self._window_bytes -= len(message)
        out.append(encoded(_DATA, 0, stream, message))
        if not rest:
            del self._rest[stream]
            out.append(encoded(_HEADERS, _END_HEADERS | _END_STREAM, stream, _TRAILERS))
